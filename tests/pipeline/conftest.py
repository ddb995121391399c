"""Copies of the repository in which nothing, or the default experiment, has been run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repository import Repository


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
