"""What Snakemake plans, without running it."""

import re

import pytest
import yaml
from conftest import REPOSITORY  # the one beside this file

CONFIGS = sorted(path.name for path in (REPOSITORY / "config").glob("*.yaml"))
RULES = sorted((REPOSITORY / "workflow" / "rules").glob("*.smk"))
