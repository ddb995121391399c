"""A private SLURM, and the workflow of a small wire to run on it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, missing_programs, running_cluster
from small_wire import CONFIG, EXPERIMENT, PROFILE, SEEDS, Training, Workflow

PACKAGES = "apt-get install --no-install-recommends slurm-wlm munge"


def pytest_collection_modifyitems(items) -> None:
    missing = missing_programs()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if missing:
                reason = f"no {', '.join(missing)} here; to install them: {PACKAGES}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def workflow(cluster, copy_repository) -> Workflow:
    """A copy in which all but the wires is made, and how the wires are without SLURM is known."""
    repository = copy_repository()
    (repository.path / CONFIG).write_text(yaml.safe_dump(EXPERIMENT))
    _write_profile(repository.path)
    workflow = Workflow(repository.path, cluster)
    wires = [Training(workflow, seed).target for seed in SEEDS]
    repository.snakemake(*wires, "--cores", "2", "--configfile", CONFIG)
    shutil.move(workflow.wires, workflow.expected)
    return workflow


def _write_profile(path: Path) -> None:
    """The profile for SLURM, for a cluster that answers sooner."""
    profile = yaml.safe_load((path / "profiles/slurm/config.yaml").read_text())
    profile |= {
        "slurm-init-seconds-before-status-checks": 2,
        "seconds-between-status-checks": 1,
        "latency-wait": 20,
    }
    (path / PROFILE).mkdir()
    (path / PROFILE / "config.yaml").write_text(yaml.safe_dump(profile))
