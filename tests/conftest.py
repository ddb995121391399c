"""What tests of the workflow and of clusters share."""

from collections.abc import Callable

import pytest
from repository import Repository
from xdist.scheduler import LoadFileScheduling

READ_SMOKE = ("test_smoke.py", "test_report_browser.py")


@pytest.fixture(scope="session")
def copy_repository(tmp_path_factory) -> Callable[[], Repository]:
    return lambda: Repository(tmp_path_factory.mktemp("repository"))


class Sharing(LoadFileScheduling):
    """Gives each file to one process, and those that read the same long run to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "smoke" if file.endswith(READ_SMOKE) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log) -> Sharing:
    return Sharing(config, log)
