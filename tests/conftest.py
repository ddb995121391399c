"""What tests of the workflow and of clusters share."""

from collections.abc import Callable

import pytest
from repository import Repository


@pytest.fixture(scope="session")
def copy_repository(tmp_path_factory) -> Callable[[], Repository]:
    return lambda: Repository(tmp_path_factory.mktemp("repository"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps together what shares a long preparation, where several processes share the tests."""
    for item in items:
        shared = "smoke" if "smoke" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(shared))
