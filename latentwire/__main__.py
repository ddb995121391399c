"""`python -m latentwire <verb>`."""

import sys

from latentwire.cli import main

sys.exit(main())
