"""A copy of the repository to run the workflow in, away from its results and its records."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentwire.layout import Layout

REPOSITORY = Path(__file__).parents[2]
SMOKE = "config/smoke.yaml"
PARTS = ("Snakefile", "workflow", "profiles", "latentwire", "config", "resources")


class Repository:
    """A copy of what the workflow needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in PARTS:
            source = REPOSITORY / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, path / part)
        shutil.copy(REPOSITORY / "environment.yml", path)
        (path / "results").mkdir()

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        outcome = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("SNAKEMAKE")},
        )
        assert not check or outcome.returncode == 0, outcome.stdout
        return outcome

    def plan(self, *arguments: str) -> dict[str, int]:
        """Jobs per rule that a dry run plans."""
        outcome = self.snakemake(*arguments, "--dry-run", "--quiet", "rules")
        lines = iter(outcome.stdout.splitlines())
        for line in lines:
            if line.startswith("job ") and line.endswith("count"):
                break
        next(lines, None)
        jobs: dict[str, int] = {}
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "total":
                break
            jobs[name] = int(count)
        return jobs

    def outputs(self, *arguments: str) -> list[Path]:
        """Every file that the workflow declares."""
        summary = self.snakemake("--summary", *arguments).stdout.splitlines()
        rows = [line.split("\t") for line in summary if line.startswith("results/")]
        return [self.path / row[0] for row in rows]

    def pretend_done(self) -> None:
        """Puts empty outputs in place and records them as made by the code as it stands."""
        for path in self.outputs():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self.snakemake("--touch", "--forceall", "--cores", "2")


@pytest.fixture(scope="session")
def copy_repository(tmp_path_factory) -> Callable[[], Repository]:
    return lambda: Repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def smoke(copy_repository) -> Repository:
    """A copy in which the smallest experiment has been run, from data to report."""
    repository = copy_repository()
    repository.snakemake("--cores", "2", "--configfile", SMOKE)
    return repository


@pytest.fixture(scope="session")
def smoke_layout(smoke) -> Layout:
    return Layout("smoke", smoke.path / "results")


@pytest.fixture(scope="session")
def clean(copy_repository) -> Repository:
    """A copy in which nothing has been run."""
    return copy_repository()


@pytest.fixture(scope="session")
def finished(copy_repository) -> Repository:
    """A copy in which the default experiment is done; what a test edits, it restores."""
    repository = copy_repository()
    repository.pretend_done()
    return repository


@pytest.fixture
def edited(finished) -> Iterator[Callable[[str], None]]:
    """Edits files of the finished copy for the length of a test."""
    before: dict[Path, tuple[bytes, float]] = {}

    def edit(file: str) -> None:
        path = finished.path / file
        before[path] = (path.read_bytes(), path.stat().st_mtime)
        with path.open("a") as target:
            target.write("\n# A comment.\n")

    yield edit
    for path, (content, modified) in before.items():
        path.write_bytes(content)
        os.utime(path, (modified, modified))
