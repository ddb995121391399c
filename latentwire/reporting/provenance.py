"""Where results come from: commit, versions, hardware, threads and configuration."""

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

from latentwire import __version__
from latentwire.cluster.machine import hardware, package_versions
from latentwire.config import Experiment
from latentwire.configuration import dump_yaml
from latentwire.files import write_json, write_text
from latentwire.layout import Layout
from latentwire.reporting.html import Table, html_page

REPOSITORY = Path(__file__).parents[2]
# The packages whose versions may move a number or a figure.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "statsmodels",
    "datasets",
    "pyarrow",
    "pydantic",
    "matplotlib",
    "snakemake",
)


def write_provenance(experiment: Experiment, layout: Layout) -> None:
    """Writes `provenance.json`, and the same as a page of the report."""
    facts = {
        "experiment": experiment.experiment,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _is_dirty(),
        "latentwire": __version__,
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "hardware": hardware(),
        "device": experiment.device,
        "threads": experiment.threads,
        "config_sha256": hashlib.sha256(dump_yaml(experiment).encode()).hexdigest(),
    }
    write_json(layout.provenance, facts)
    rows = [[key, "unknown" if fact is None else str(fact)] for key, fact in _flatten(facts)]
    page = html_page(
        "Provenance",
        [],
        [
            Table("What the results were made with", ["fact", "value"], rows),
            Table(
                "The complete configuration",
                ["key", "value"],
                [[key, str(value)] for key, value in _flatten(experiment.model_dump(mode="json"))],
            ),
        ],
    )
    write_text(layout.page("provenance"), page)


def _git(*arguments: str) -> str | None:
    """Output of git about this repository; none without git or outside a repository."""
    try:
        outcome = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return outcome.stdout.strip()


def _is_dirty() -> bool | None:
    changes = _git("status", "--porcelain")
    return None if changes is None else bool(changes)


def _flatten(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings by dotted key; lists stay whole."""
    leaves: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        if isinstance(value, dict):
            leaves += _flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves
