"""The workflow's head as a job on this machine: launched, killed in the middle, launched again."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

CONFIG = "config/config.yaml"
SECONDS = 300


def test_a_head_that_was_killed_leaves_a_lock_that_the_next_one_clears(copy_repository):
    repository = copy_repository()
    folder = repository.path / "results/pocket/logs/launch"
    record, lease = folder / "snakemake.json", folder / "lease"

    first = launch(repository)
    await_that(lambda: record.is_file() and json.loads(record.read_text())["locks"])
    assert "has a head already" in launch(repository, check=False)
    for pid in (first, owner(lease), owner(record)):
        kill(pid)
    assert list((repository.path / ".snakemake/locks").iterdir())

    second = launch(repository)
    await_that((folder / f"{second}_0_result.pkl").exists)
    log = (folder / f"{second}_0_log.out").read_text()
    assert "clearing .snakemake/locks/0.output.lock" in log
    assert (repository.path / "results/pocket/data/train.parquet").is_file()
    assert not record.exists()
    assert not lease.exists()


def launch(repository, check=True):
    """Launches a head; its number, or why it was refused."""
    arguments = ["--config", CONFIG, "--cluster", "local", "--target", "prepare"]
    outcome = subprocess.run(
        [sys.executable, "-m", "latentwire", "launch", *arguments],
        cwd=repository.path,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not check:
        return outcome.stderr
    assert outcome.returncode == 0, outcome.stderr
    return int(re.search(r"head (\d+) is on its way", outcome.stderr).group(1))


def owner(file):
    facts = json.loads(file.read_text())
    return facts.get("owner", facts)["pid"]


def kill(pid):
    # Snakemake leads a group, with what it runs.
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            end(pid, signal.SIGKILL)


def await_that(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
