"""What tests of the workflow and of clusters share."""

from collections.abc import Callable

import pytest
from repository import Repository


@pytest.fixture(scope="session")
def copy_repository(tmp_path_factory) -> Callable[[], Repository]:
    return lambda: Repository(tmp_path_factory.mktemp("repository"))
