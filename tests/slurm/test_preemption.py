"""A training on a real SLURM is killed in every way there is; the wire is the same to the bit."""

import shlex
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import wait_for
from small_wire import CONFIG, PROFILE, START_SECONDS, STEPS, Training


@pytest.fixture(autouse=True)
def _clean(workflow, cluster):
    workflow.forget()
    yield
    # Shown where the test fails.
    for path in sorted(workflow.logs.rglob("*.log")):
        print(f"{path}:\n{path.read_text()[-3000:]}")
    print(cluster.log[-3000:])
    for job in cluster.jobs():
        cluster.run("scancel", job)
    wait_for(lambda: not cluster.jobs(), "the jobs to end", 60)


def test_every_death_in_one_workflow_leaves_the_wire_the_same(workflow, cluster):
    training, other = Training(workflow, 1), Training(workflow, 2)
    with workflow.running(training) as snakemake:
        job = training.hold(3)
        cluster.preempt(cluster.job(job)["NodeList"])

        training.hold(8)
        cluster.run("scontrol", "requeue", job)

        training.hold(12)
        node = cluster.job(job)["NodeList"]
        cluster.kill_node(node)
        wait_for(lambda: cluster.job(job)["JobState"] == "PENDING", "the node to be missed", 90)
        training.hold(16)
        assert cluster.job(job)["NodeList"] != node
        cluster.start_node(node)
        wait_for(lambda: cluster.idle_nodes() == {node}, "the node to be back", 60)

        # The other one is not warned, and reaches its limit while it is held.
        extra = f"--nodelist={node} --open-mode=append"
        limit = ["train_wire:runtime=1", f"train_wire:slurm_extra='{extra}'"]
        with (
            workflow.running(other, "--set-resources", *limit) as limited,
            ThreadPoolExecutor() as pool,
        ):
            held = pool.submit(other.hold, 4)
            change_limit(cluster, job, minutes=1)
            wait_for(lambda: cluster.job(job)["JobState"] == "PENDING", "a limit that is near", 90)
            change_limit(cluster, job, minutes=60)

            assert training.hold(20) == job
            # As the kernel does where memory runs out.
            training.signal(signal.SIGKILL)

            ended = held.result()
            wait_for(lambda: cluster.job(ended)["JobState"] == "TIMEOUT", "the time limit", 180)
            wait_for(lambda: other.processes, "a second attempt", START_SECONDS)
            change_limit(cluster, other.job, minutes=60)
            assert (snakemake.wait(START_SECONDS), limited.wait(START_SECONDS)) == (0, 0)

    training.assert_same_as_without_slurm()
    other.assert_same_as_without_slurm()
    preempted, requeued, died, warned, killed = training.resumes
    assert 3 <= preempted < 8 <= requeued == died < 16 <= warned == killed < STEPS
    assert [step >= 4 for step in other.resumes] == [True]
    for step in training.resumes:
        assert f"resuming after step {step}\n" in training.log
    # What SLURM queues again is one job to Snakemake; what ends is submitted again.
    assert workflow.log.read_text().count("has been submitted with SLURM jobid") == 2 + 2


def change_limit(cluster, job, minutes):
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


def test_a_training_on_two_processes_goes_on_after_preemption_and_requeue(workflow, cluster):
    training, whole = Training(workflow, 1), workflow.path / "two-processes"
    command = ["latentwire", "train-wire", "--config", CONFIG, "--processes", "2", "--seed", "1"]
    workflow.run(*command)
    shutil.move(training.wire, whole)

    log = workflow.path / "two-processes.log"
    job = cluster.run(
        "sbatch",
        "--parsable",
        "--requeue",
        "--signal=TERM@120",
        "--open-mode=append",
        f"--output={log}",
        f"--chdir={workflow.path}",
        "--cpus-per-task=2",
        f"--wrap=srun {shlex.join([sys.executable, '-m', *command])}",
    )
    assert training.hold(3) == job
    cluster.preempt(cluster.job(job)["NodeList"])
    training.hold(10)
    cluster.run("scontrol", "requeue", job)
    wait_for(lambda: not cluster.jobs(), "the training to end", START_SECONDS)

    assert cluster.job(job)["JobState"] == "COMPLETED", log.read_text()
    assert cluster.job(job)["Restarts"] == "2"
    training.assert_same_as(whole)
    preempted, requeued = training.resumes
    assert 3 <= preempted < 10 <= requeued < STEPS
    for step in training.resumes:
        assert log.read_text().count(f"resuming after step {step}\n") == 1


def test_a_cancelled_training_ends_the_workflow_with_an_error(workflow, cluster):
    training = Training(workflow, 1)
    with workflow.running(training) as snakemake:
        job = training.hold(2)
        # A thread for each of the processes that four GPUs would have.
        assert cluster.job(job)["NumCPUs"] == "4"
        cluster.run("scancel", job)
        assert snakemake.wait(START_SECONDS) != 0
    assert not training.wire.exists()
    assert training.step < STEPS
    assert f"job {job} of this run was cancelled" in training.log


def test_a_second_head_does_not_train_beside_the_job_of_one_that_was_killed(workflow, cluster):
    training = Training(workflow, 1)
    with workflow.running(training) as killed:
        training.hold(2)
        killed.kill()
    workflow.run("snakemake", "--unlock", "--configfile", CONFIG)
    with workflow.running(training) as snakemake:
        wait_for(lambda: len(training.processes) == 2, "a second job", START_SECONDS)
        training.signal(signal.SIGCONT)
        assert snakemake.wait(START_SECONDS) == 0
    training.assert_same_as_without_slurm()
    assert training.log.count(f"step {STEPS}/{STEPS} ") == 1


def test_a_preempted_head_waits_for_its_jobs_and_goes_on(workflow, cluster):
    training = Training(workflow, 1)
    arguments = ["--config", CONFIG, "--profile", PROFILE]
    workflow.run("latentwire", "launch", *arguments, "--target", training.target)
    (head,) = cluster.jobs()
    job = training.hold(3)
    log = workflow.results / f"logs/launch/{head}_0_log.out"
    cluster.preempt(cluster.job(head)["NodeList"])
    wait_for(lambda: f"waiting for job {job}" in log.read_text(), "the head to be back", 180)
    wait_for(lambda: not cluster.jobs(), "the workflow to end", START_SECONDS)
    assert cluster.job(head)["JobState"] == "COMPLETED", log.read_text()
    training.assert_same_as_without_slurm()
    assert log.read_text().count("has been submitted with SLURM jobid") == 1
