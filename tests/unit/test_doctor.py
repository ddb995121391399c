"""What `doctor` finds wrong, and how to mend it."""

import json
import os
import shutil

import pytest
import yaml

from latentwire import cli
from latentwire.cluster import doctor
from latentwire.cluster.doctor import run_checks
from latentwire.config import Experiment
from latentwire.fingerprint import PACKAGE
from latentwire.layout import Layout

PROFILE = PACKAGE.parent / "profiles" / "slurm"

# A cluster's answers, of SLURM 22.05 where they matter.
PARTITION = """\
PartitionName=preempt
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime={grace} Hidden=NO
   OverTimeLimit=NONE PreemptMode={mode}
"""
CONFIG = """\
Configuration data as of 2026-11-25T00:01:49
JobRequeue              = 1
KillWait                = 30 sec
PreemptType             = preempt/partition_prio
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Puts SLURM's commands on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def answer(mode="REQUEUE", grace="120", accounts="marlowe-m000066\n", controller=0):
        replies = {
            "sbatch": ":",
            "sinfo": "echo preempt",
            "sacctmgr": f"printf '{accounts}'",
            "scontrol": f"""case "$*" in
            ping) exit {controller};;
            "show partition preempt") cat <<'E'\n{PARTITION.format(grace=grace, mode=mode)}E\n;;
            "show config") cat <<'E'\n{CONFIG}E\n;;
            *) exit 1;; esac""",
        }
        for name, script in replies.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return answer


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.setattr(doctor, "has_slurm", lambda: False)


def checks(tmp_path, profile=PROFILE, **changes):
    experiment = Experiment().model_copy(update=changes)
    found = run_checks(experiment, Layout("pocket", tmp_path / "results"), profile)
    return {check.name: check for check in found}


def profile_with(tmp_path, **resources):
    settings = yaml.safe_load((PROFILE / "config.yaml").read_text())
    settings["default-resources"] |= resources
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def test_nothing_is_wrong_here(tmp_path, no_cluster):
    found = checks(tmp_path)
    assert not [check for check in found.values() if check.verdict == "FAIL"]
    assert found["torch"].found.startswith("2.")


@pytest.mark.parametrize(
    ("resources", "fix"),
    [
        ({"slurm_account": "marlowe"}, "marlowe-m000066"),
        ({"slurm_partition": "gpu"}, "preempt"),
        ({"slurm_extra": "'--signal=B:TERM@120 --open-mode=append'"}, "without `B:`"),
    ],
)
def test_a_profile_that_only_looks_right_fails(tmp_path, no_cluster, resources, fix):
    (key,) = resources
    failed = [c for c in checks(tmp_path, profile_with(tmp_path, **resources)).values() if c.fix]
    assert [(c.verdict, key in c.name, fix in c.fix) for c in failed] == [("FAIL", True, True)]


def test_a_cluster_that_is_as_it_should_be(tmp_path, cluster):
    cluster()
    found = checks(tmp_path)
    assert not [check for check in found.values() if check.verdict == "FAIL"]
    assert found["partition"].found == "preempt, preemption REQUEUE, grace 120 s"
    assert found["account"].found == "marlowe-m000066"
    assert "JobRequeue 1" in found["preemption"].found


@pytest.mark.parametrize(
    ("answers", "name", "verdict", "fix"),
    [
        ({"accounts": "marlowe-m000077\\n"}, "account", "FAIL", "one of marlowe-m000077"),
        # No database, or none that knows the user.
        ({"accounts": ""}, "account", "ok", ""),
        ({"mode": "CANCEL"}, "partition", "note", "PreemptMode=REQUEUE"),
        ({"grace": "5"}, "partition", "note", "GraceTime="),
        ({"controller": 1}, "slurm", "ok", ""),
    ],
)
def test_a_cluster_that_is_not(tmp_path, cluster, answers, name, verdict, fix):
    cluster(**answers)
    check = checks(tmp_path)[name]
    assert check.verdict == verdict
    assert fix in check.fix


def test_an_unknown_partition_names_those_there_are(tmp_path, cluster):
    cluster()
    check = checks(tmp_path, profile_with(tmp_path, slurm_partition="batch"))["partition"]
    assert (check.verdict, check.fix) == ("FAIL", "set slurm_partition to one of preempt")


def test_a_gpu_that_is_not_there_and_a_full_disk(tmp_path, no_cluster, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor, "gpu_names", list)
    found = checks(tmp_path, device="cuda")
    assert found["device"].verdict == found["disk"].verdict == "FAIL"
    assert "--results" in found["disk"].fix


def test_the_verb_fails_with_what_it_found_and_prints_json(tmp_path, no_cluster, capsys):
    profile = profile_with(tmp_path, slurm_account="marlowe")
    options = ["--results", str(tmp_path / "results"), "--profile", str(profile)]
    assert cli.main(["doctor", *options]) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert "1 of" in err
    assert cli.main(["doctor", "--json", *options]) == cli.USER_ERROR
    found = json.loads(capsys.readouterr().out)
    (fix,) = (row["fix"] for row in found if row["verdict"] == "FAIL")
    assert fix.endswith("set 'marlowe-m000066'")
