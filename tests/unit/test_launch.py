"""The workflow's head: when it is refused, what it waits for, and which lock it clears."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.cluster import launch as module
from latentwire.cluster.launch import Head, launch
from latentwire.cluster.lease import Lease, Owner
from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.files import write_json
from latentwire.layout import Layout

PROFILES = Path(__file__).parents[2] / "profiles"
LAYOUT = Layout("pocket")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The working directory of a workflow, on a machine without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "has_slurm", lambda: False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "Snakefile").touch()
    (tmp_path / "profiles").symlink_to(PROFILES)
    return tmp_path


@pytest.fixture
def submitted(monkeypatch):
    """What is submitted, in place of a submission."""
    heads = []

    class Job:
        job_id = "7"

        class paths:  # noqa: N801
            stdout = "7.out"

    monkeypatch.setattr(module, "_submit", lambda head, *_: heads.append(head) or Job)
    return heads


def head(jobs=None):
    folder = LAYOUT.launch
    folder.mkdir(parents=True, exist_ok=True)
    return Head(str(LAYOUT.root), str(folder), jobs, [])


def test_a_head_runs_snakemake_on_the_experiment_as_it_was_launched(repository, submitted):
    launch(Experiment(), LAYOUT, "local", None, "all")
    (made,) = submitted
    assert made._command[1:4] == ["-m", "snakemake", "all"]
    assert made._command[4:] == [
        "--profile",
        "profiles/local",
        "--configfile",
        "results/pocket/logs/launch/config.yaml",
    ]
    assert (LAYOUT.launch / "config.yaml").is_file()


def test_jobs_of_slurm_bear_the_name_of_the_run(repository, submitted, monkeypatch):
    monkeypatch.setattr(module, "has_slurm", lambda: True)
    monkeypatch.setattr(module, "jobs_of_run", lambda _: {})
    launch(Experiment(), LAYOUT, "slurm", None, "all")
    launch(Experiment(), Layout("other.one"), "slurm", None, "all")
    names = [made._jobs for made in submitted]
    assert names == [made._command[-1] for made in submitted]
    assert len(set(names)) == 2
    assert all(name.replace("-", "").isalnum() and len(name) <= 50 for name in names)


def test_what_submitit_pickles_are_strings(repository):
    state = vars(head("run"))
    assert {type(value) for value in state.values()} <= {str, list, type(None)}
    assert all(isinstance(word, str) for word in state["_command"])
    assert pickle.loads(pickle.dumps(head("run"))).__dict__ == state  # noqa: S301


@pytest.mark.parametrize(
    ("cluster", "profile", "layout", "message"),
    [
        ("slurm", None, LAYOUT, "there is no sbatch here"),
        ("local", Path("nowhere"), LAYOUT, "cannot read the profile nowhere/config.yaml"),
        ("local", None, Layout("pocket", Path("out")), "leave --results out"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    repository, submitted, cluster, profile, layout, message
):
    with pytest.raises(UserError, match=message):
        launch(Experiment(), layout, cluster, profile, "all")
    assert not submitted


def test_a_profile_with_faults_and_a_folder_without_workflow_are_refused(repository, submitted):
    folder = repository / "mine"
    folder.mkdir()
    text = (PROFILES / "slurm/config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("marlowe-m000066", "marlowe"))
    with pytest.raises(UserError, match="set 'marlowe-m000066'"):
        launch(Experiment(), LAYOUT, "local", folder, "all")
    (repository / "Snakefile").unlink()
    with pytest.raises(UserError, match="the folder that holds the Snakefile"):
        launch(Experiment(), LAYOUT, "local", None, "all")
    assert not submitted


def test_a_second_head_is_refused_while_the_first_lives_or_is_queued(
    repository, submitted, monkeypatch
):
    lease = Lease(LAYOUT.launch / "lease")
    lease.acquire()
    with pytest.raises(UserError, match=f"has a head already: process {os.getpid()}"):
        launch(Experiment(), LAYOUT, "local", None, "all")
    lease.release()
    launch(Experiment(), LAYOUT, "local", None, "all")
    monkeypatch.setattr(module, "has_slurm", lambda: True)
    monkeypatch.setattr(module, "jobs_of_run", lambda prefix: {"4": f"{prefix}head"})
    with pytest.raises(UserError, match="has a head already: SLURM job 4"):
        launch(Experiment(), LAYOUT, "slurm", None, "all")
    assert len(submitted) == 1


def test_only_the_lock_of_the_predecessor_is_cleared(repository):
    locks = {
        "0.input.lock": "results/pocket/data/train.parquet",
        "0.output.lock": "results/pocket/metrics.csv",
        "1.output.lock": "results/pocket/data/card.md",
        "2.output.lock": "results/other/metrics.csv",
    }
    module.LOCKS.mkdir(parents=True)
    for name, file in locks.items():
        (module.LOCKS / name).write_text(f"{file}\n")
    made = head()
    noted = made._locks()
    assert set(noted) == set(locks) - {"2.output.lock"}
    # Another Snakemake took one of that name since.
    noted["1.output.lock"][1] -= 1
    made._clear_own_lock()
    assert len(list(module.LOCKS.iterdir())) == 4
    write_json(made._record, {"owner": dataclasses.asdict(Owner()), "locks": noted})
    made._clear_own_lock()
    assert {path.name for path in module.LOCKS.iterdir()} == {"1.output.lock", "2.output.lock"}


def test_a_head_waits_for_the_snakemake_of_one_that_was_killed(repository, monkeypatch, caplog):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    made = head()
    write_json(made._record, {"owner": dataclasses.asdict(Owner(pid=process.pid)), "locks": {}})

    def end(_):
        process.communicate()

    monkeypatch.setattr(module.time, "sleep", end)
    with caplog.at_level("INFO"):
        made._wait_for_predecessor()
    assert process.returncode is not None
    assert f"waiting for Snakemake, process {process.pid}" in caplog.text


def test_a_head_waits_for_the_jobs_of_one_that_was_preempted(repository, monkeypatch, caplog):
    answers = [None, {"5": "run_a0", "6": "run_head"}, {"6": "run_head"}]
    monkeypatch.setattr(module, "jobs_of_run", lambda _: answers.pop(0))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    with caplog.at_level("INFO"):
        head("run")._wait_for_predecessor()
    assert not answers
    assert caplog.messages == [
        "waiting for SLURM, which does not answer, for the jobs of an earlier head",
        "waiting for job 5 of an earlier head",
    ]


def test_the_same_job_of_slurm_on_another_node_does_not_wait_for_itself(repository, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    earlier = Owner(host="elsewhere", slurm_job_id="3")
    made = head()
    write_json(made._record, {"owner": dataclasses.asdict(earlier), "locks": {}})
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("waits"))
    made._wait_for_predecessor()


def test_snakemake_inherits_nothing_of_the_heads_job(repository, monkeypatch):
    for name in ("SLURM_MEM_PER_NODE", "SBATCH_ACCOUNT", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    made = head()
    # As submitit sets it for a job on this machine.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    environment = made._environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "2"
    ours = [name for name in environment if name.startswith(("SLURM", "SBATCH", "SUBMITIT"))]
    assert ours == ["SLURM_CONF"]
