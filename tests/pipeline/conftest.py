"""Copies of the repository in which nothing, or the default experiment, has been run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repository import SMOKE, Repository

from latentwire.layout import Layout


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
