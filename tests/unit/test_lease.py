"""Two processes that want one folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from latentwire.cluster.lease import Lease, LeaseLostError, Owner, read_owner

INTERVAL = 0.5

HOLDER = f"""
import sys
from pathlib import Path
from latentwire.cluster.lease import Lease, LeaseLostError

lease = Lease(Path(sys.argv[1]), {INTERVAL})
lease.acquire()
print("held", flush=True)
for command in sys.stdin:
    try:
        getattr(lease, command.strip())()
    except LeaseLostError as error:
        print("lost", flush=True)
    else:
        print("done", flush=True)
"""


class Process:
    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def hear(self):
        return self.process.stdout.readline().strip()

    def tell(self, command):
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def ask(self, command):
        self.tell(command)
        return self.hear()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lease.json"


@pytest.fixture
def holder(path):
    with Process(HOLDER, path) as holder:
        assert holder.hear() == "held"
        yield holder


def acquire(path):
    lease = Lease(path, INTERVAL)
    lease.acquire()
    return lease


def test_a_second_process_waits_and_is_told_for_whom(path, holder, caplog):
    caplog.set_level("INFO", "latentwire")
    leases = []
    waiting = threading.Thread(target=lambda: leases.append(acquire(path)), daemon=True)
    waiting.start()
    # Six renewals, twice as many as a silent owner may miss.
    seen = set()
    while len(seen) < 7:
        seen.add(path.read_bytes())
        time.sleep(INTERVAL / 20)
    assert waiting.is_alive()
    assert f"process {holder.process.pid} on {os.uname().nodename} works in" in caplog.text
    assert holder.ask("check") == "done"
    assert holder.ask("release") == "done"
    waiting.join(60)
    (lease,) = leases
    assert read_owner(path).pid == os.getpid()
    lease.release()
    assert not path.exists()


def test_the_lease_of_a_killed_process_is_taken_over_at_once(path, holder, caplog):
    holder.process.kill()
    holder.process.wait()
    started = time.monotonic()
    lease = Lease(path, interval_seconds=20)
    lease.acquire()
    assert time.monotonic() - started < 20
    assert "took over from process" in caplog.text
    lease.release()


def test_a_stopped_process_loses_the_lease_and_finds_out(path, holder):
    holder.process.send_signal(signal.SIGSTOP)
    lease = acquire(path)
    holder.process.send_signal(signal.SIGCONT)
    assert holder.ask("check") == "lost"
    assert holder.ask("release") == "done"
    lease.check()
    lease.release()


def test_a_lease_that_is_gone_is_lost(path):
    lease = acquire(path)
    path.unlink()
    with pytest.raises(LeaseLostError, match="is gone"):
        lease.check()
    lease.release()


@pytest.mark.parametrize("content", [b"", b"\0\0", b'{"counter": "1"}'])
def test_a_lease_that_says_nothing_is_taken_over(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    acquire(path).release()


@pytest.mark.parametrize(
    ("state", "goes"), [("RUNNING", False), ("PENDING", True), ("", True), ("COMPLETING", False)]
)
def test_slurm_says_whether_an_owner_elsewhere_is_gone(tmp_path, monkeypatch, state, goes):
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {state}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert Owner(host="elsewhere", slurm_job_id="7").is_gone() == goes
    assert not Owner(host="elsewhere").is_gone()


def test_an_owner_elsewhere_is_not_judged_by_its_pid(path):
    path.parent.mkdir()
    gone = Owner(host="elsewhere", pid=2**22 + 1)
    path.write_text(json.dumps({"counter": "1", **asdict(gone)}))
    lease = acquire(path)
    assert lease.waited_for == gone
    lease.release()


def test_an_owner_that_was_killed_is_gone_before_its_parent_has_noticed():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner(pid=process.pid)
    assert not owner.is_gone()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert owner.is_gone()
    process.communicate()
