"""What SLURM says, and what a stage does then; outputs of scontrol are those of SLURM 22.05."""

import os
import signal
import subprocess
import sys

import pytest

from latentwire import cli
from latentwire.cluster import slurm
from latentwire.cluster.signals import interruptible
from latentwire.errors import Interrupted, UserError

JOB = """\
JobId=1 JobName=train_wire
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=marlowe-m000066 QOS=(null)
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime={run_time} TimeLimit={limit} TimeMin=N/A
   SubmitTime=2026-11-25T00:01:47 EligibleTime=2026-11-25T00:01:47
   StartTime=2026-11-25T00:01:48 EndTime=2026-11-25T12:01:48 Deadline=N/A
   PreemptEligibleTime=2026-11-25T00:01:48 PreemptTime={preempted}
   Partition=preempt AllocNode:Sid=localhost:8720
   NumNodes=1 NumCPUs=8 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   Command=/home/ada/my job.sh
   Comment=rule_train_wire PreemptTimes
   TresPerJob=gres:gpu:4
"""


def job(state="RUNNING", run_time="00:00:01", limit="12:00:00", preempted="None"):
    return JOB.format(state=state, run_time=run_time, limit=limit, preempted=preempted)


def test_fields_are_parted_at_white_space():
    fields = slurm.parse_fields(job())
    assert fields["JobId"] == "1"
    assert fields["CPUs/Task"] == "1"
    assert fields["TresPerJob"] == "gres:gpu:4"
    assert fields["AllocNode:Sid"] == "localhost:8720"


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (job(), None),
        (job(preempted="2026-11-25T00:01:49"), "preempted"),
        # An earlier start was preempted, not this one.
        (job(preempted="2026-11-24T23:00:00"), None),
        (job(run_time="11:58:00"), "time limit"),
        (job(run_time="11:00:00"), None),
        (job(run_time="00:00:35", limit="00:01:00"), "time limit"),
        (job(run_time="3-00:00:00", limit="UNLIMITED"), None),
        (job(run_time="2-23:57:00", limit="3-00:00:00"), "time limit"),
        # By scancel; and by whoever has queued it again already.
        (job("COMPLETING", run_time="00:00:35", limit="00:01:00"), None),
        (job("CANCELLED", preempted="2026-11-25T00:01:49"), None),
        ("", None),
    ],
)
def test_why_slurm_ends_a_job(shown, reason):
    found = slurm.why_taken(slurm.parse_fields(shown))
    assert found is None if reason is None else reason in found


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """SLURM's commands, as a test would have them answer; what they are asked is noted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def answer(command, output="", code=0):
        (folder / f"{command}.txt").write_text(output)
        path = folder / command
        path.write_text(
            f'#!/bin/sh\necho {command} "$@" >> {folder}/asked\n'
            f'[ "$1" = requeue ] || cat {folder}/{command}.txt\nexit {code}\n'
        )
        path.chmod(0o755)

    answer.asked = lambda: (folder / "asked").read_text().splitlines()
    return answer


@pytest.fixture
def handlers():
    """Leaves the handler of TERM as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handlers")
def test_a_preempted_job_asks_to_be_queued_again_and_waits(commands, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    commands("scontrol", job(preempted="2026-11-25T00:01:49"))
    slurm.requeue_if_taken(wait_seconds=0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert commands.asked() == ["scontrol show job 1", "scontrol requeue 1"]
    assert "queued again" in caplog.text


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("shown", [job(), job("COMPLETING")])
def test_a_job_that_its_user_ends_stays_ended(commands, monkeypatch, shown):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    commands("scontrol", shown)
    slurm.requeue_if_taken()
    assert commands.asked() == ["scontrol show job 1"]


def test_outside_slurm_nobody_is_asked(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(slurm, "run_command", lambda *_: pytest.fail("asked SLURM"))
    slurm.requeue_if_taken()


@pytest.mark.parametrize(("number", "asks"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_the_command_line_queues_again_after_term_but_not_after_ctrl_c(monkeypatch, number, asks):
    asked = []

    def stop(*_):
        raise Interrupted(number)

    monkeypatch.setattr(cli, "_run", stop)
    monkeypatch.setattr(cli, "requeue_if_taken", lambda: asked.append(True))
    assert cli.main(["train-wire"]) == 128 + number
    assert bool(asked) == asks


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_what_cleans_up(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop, interruptible():
        signal.raise_signal(number)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("nodes", "code", "refuses"),
    [("n1 n1\nn2 n2\n", 0, True), ("n1 n1\n{host} n2\n", 0, False), ("", 1, False)],
)
def test_only_a_login_node_refuses_to_train(commands, monkeypatch, nodes, code, refuses):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    commands("sbatch")
    commands("sinfo", nodes.format(host=os.uname().nodename.partition(".")[0]), code)
    if refuses:
        with pytest.raises(UserError, match="is a login node"):
            slurm.refuse_login_node()
    else:
        slurm.refuse_login_node()


def test_a_job_may_train_anywhere(commands, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    commands("sbatch")
    commands("sinfo", "n1 n1\n")
    slurm.refuse_login_node()


def test_training_verbs_are_refused_on_a_login_node_unless_forced(
    commands, monkeypatch, tmp_path, caplog
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    commands("sbatch")
    commands("sinfo", "n1 n1\n")
    options = ["--results", str(tmp_path)]
    assert cli.main(["train-wire", *options]) == cli.USER_ERROR
    assert "is a login node" in caplog.text
    caplog.clear()
    assert cli.main(["train-wire", "--force", *options]) == cli.USER_ERROR
    assert "is a login node" not in caplog.text


def test_a_stage_that_is_terminated_leaves_with_the_number_of_the_signal(tmp_path):
    script = (
        "import signal, sys\nfrom latentwire import cli\n"
        "cli._run = lambda *_: signal.raise_signal(signal.SIGTERM)\n"
        "sys.exit(cli.main(['prepare']))\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in outcome.stderr


@pytest.mark.parametrize(
    ("restarts_now", "restarts_of_ours", "cancelled"),
    [(0, None, True), (1, None, False), (1, 1, True)],
)
def test_a_job_that_slurm_starts_again_is_not_cancelled(
    commands, monkeypatch, restarts_now, restarts_of_ours, cancelled
):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if restarts_of_ours is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts_of_ours))
    commands("scontrol", job("COMPLETING").replace("Restarts=0", f"Restarts={restarts_now}"))
    assert slurm.is_cancelled() == cancelled


def test_where_slurm_is_silent_nothing_counts_as_cancelled(commands, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    commands("scontrol", code=1)
    assert not slurm.is_cancelled()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.is_cancelled()


def test_jobs_of_a_run_are_known_by_their_names(commands):
    commands("squeue", "7 mine-1_head\n8 mine-1_a0b1\n9 mine-12\n10 other\n")
    assert slurm.jobs_of_run("mine-1_") == {"7": "mine-1_head", "8": "mine-1_a0b1"}
    commands("squeue", code=1)
    assert slurm.jobs_of_run("mine-1_") is None


@pytest.mark.parametrize(
    ("cancelled", "refuses"),
    [("", False), ("5 rule_prepare\n", False), ("5 rule_prepare\n6 rule_train_wire\n", True)],
)
def test_a_cancelled_job_is_not_tried_again_in_the_same_run(
    commands, monkeypatch, cancelled, refuses
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    commands("scontrol", job())
    commands("squeue", cancelled)
    if refuses:
        with pytest.raises(UserError, match="job 6 of this run was cancelled"):
            slurm.refuse_retry_of_cancelled()
    else:
        slurm.refuse_retry_of_cancelled()
    assert "--name train_wire --states CANCELLED" in commands.asked()[-1]


def test_a_job_of_no_run_is_no_retry(commands, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    commands("scontrol", job().replace("Comment=", "Nothing="))
    slurm.refuse_retry_of_cancelled()
    assert commands.asked() == ["scontrol show job 7"]
