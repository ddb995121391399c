"""The command `publish`: small results and the report of an experiment, committed to a branch.

A person runs it and agrees to the list. The working tree and its index stay as they are.
"""

import argparse
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentwire.errors import UserError

MOST_BYTES = 10_000_000
# Weights, data and predictions are no small results; the state of a run is nobody's.
PUBLISHED = (
    "config.yaml",
    "metrics.csv",
    "results.json",
    "statistics.json",
    "statistical_report.json",
    "provenance.json",
    "report.html",
    "data/card.*",
    "figures/*",
    "tables/*",
    "benchmarks/*.tsv",
    "wires/*/seed*/README.md",
    "wires/*/seed*/config.json",
    "wires/*/seed*/metrics.jsonl",
)
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "CI")
_TOKENS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "an OpenAI or Anthropic key": rb"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{32,}",
    "an AWS key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}

logger = logging.getLogger(__name__)


def publish_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", type=Path, help="the folder, for example results/pocket")
    parser.add_argument(
        "--branch",
        default="results",
        help="the branch to commit to, made from the present commit if there is none "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--push", metavar="REMOTE", help="push the branch there too, never by force"
    )


def run_publish(options: argparse.Namespace) -> None:
    """Shows the list, asks, commits.

    Raises:
        UserError: in a job or without a terminal, without a git repository around the folder, if
            there is nothing to publish, if a file is too large or holds a token, or if git refuses.
    """
    _check_person()
    folder = options.experiment.resolve()
    repository = Path(_git(["rev-parse", "--show-toplevel"], folder).strip())
    files = published_files(folder)
    check_files(files)
    _check_branch(options.branch, repository)
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(repository)}")
    where = f"branch {options.branch!r}" + (
        f", and push it to {options.push}" if options.push else ""
    )
    print(f"Commit these {len(files)} files to {where}? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        logger.info("nothing was committed")
        return
    commit = _commit(repository, files, options.branch, f"Results of {folder.name}")
    logger.info("committed %s to %s", commit[:12], options.branch)
    if options.push:
        _git(["push", options.push, f"refs/heads/{options.branch}"], repository)
        logger.info("pushed %s to %s", options.branch, options.push)


def published_files(folder: Path) -> list[Path]:
    """The small results of an experiment.

    Raises:
        UserError: if there are none.
    """
    files = {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    if not files:
        raise UserError(f"{folder} holds no results: give the folder of a finished experiment")
    return sorted(files)


def check_files(files: Sequence[Path]) -> None:
    """Refuses files that do not belong into a repository.

    Raises:
        UserError: with all that are too large, are links, or hold what looks like a token.
    """
    if faults := [fault for path in files for fault in _faults(path)]:
        raise UserError("\n  ".join(["nothing was committed:", *faults]))


def _faults(path: Path) -> Iterator[str]:
    if path.is_symlink():
        yield f"{path} is a link"
    if (size := path.stat().st_size) > MOST_BYTES:
        yield f"{path} has {size:,} bytes, more than {MOST_BYTES:,}: keep it elsewhere"
        return
    content = path.read_bytes()
    for kind, pattern in _TOKENS.items():
        if found := re.search(pattern, content):
            line = content.count(b"\n", 0, found.start()) + 1
            yield f"{path}, line {line}: looks like {kind}: take it out, and revoke it"


def _check_person() -> None:
    if job := next((name for name in _JOB_VARIABLES if os.environ.get(name)), None):
        raise UserError(f"publish is for a person, not for a job ({job} is set)")
    if not sys.stdin.isatty():
        raise UserError("publish asks a person: run it in a terminal")


def _check_branch(branch: str, repository: Path) -> None:
    _git(["check-ref-format", "--branch", branch], repository)
    if _git(["branch", "--show-current"], repository).strip() == branch:
        raise UserError(f"the branch {branch!r} is checked out; choose another with --branch")


def _commit(repository: Path, files: Sequence[Path], branch: str, message: str) -> str:
    """Commits files on top of a branch by way of an index of its own."""
    reference = f"refs/heads/{branch}"
    tip = _git(["for-each-ref", "--format=%(objectname)", reference], repository).strip()
    parent = tip or _git(["rev-parse", "HEAD"], repository).strip()
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(["read-tree", parent], repository, index)
        names = [str(path.relative_to(repository)) for path in files]
        # What git ignores is meant here.
        _git(["add", "--force", "--", *names], repository, index)
        tree = _git(["write-tree"], repository, index).strip()
    commit = _git(["commit-tree", tree, "-p", parent, "-m", message], repository).strip()
    # The old value makes sure that nobody else moved the branch meanwhile.
    _git(["update-ref", "-m", "latentwire publish", reference, commit, tip or "0" * 40], repository)
    return commit


def _git(arguments: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} does not exist") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"git {arguments[0]} failed: {error.stderr.strip()}") from error
