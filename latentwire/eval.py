"""The original's command `python latentwire/eval.py --ckpt ... --samples ...`."""

import sys

if __name__ == "__main__" and not __package__:
    # Run as a file, its folder is first on the path, and `statistics` in it would take the place of
    # the standard library's module.
    sys.path[0] = __file__.rpartition("/latentwire/")[0]

from latentwire.original import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
