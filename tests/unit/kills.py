"""Trainings in processes of their own, to be killed at any file that they touch.

Run as a program it is a server that has torch imported and forks a process for each training, since
importing takes far longer than these trainings do.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A busy machine may keep a process waiting for longer than one would think.
LEASE_INTERVAL_SECONDS = 2.0
# What `sys.addaudithook` tells of files that are made, changed, moved or removed.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}


class Server:
    """Forks processes that each run one verb of the command line."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self._ask()

    def start(
        self,
        results: Path,
        *arguments: str,
        strike: tuple[signal.Signals, int] | None = None,
        environment: dict[str, str] | None = None,
        prepare: str | None = None,
    ) -> int:
        """Starts a verb, and returns the number of its process.

        Args:
            results: its `--results`.
            arguments: the verb and its options.
            strike: a signal, and at which change of a file below `results` to send it.
            environment: variables to set.
            prepare: a module beside this one whose import prepares the process.
        """
        job = {
            "results": str(results),
            "arguments": [*arguments, "--results", str(results)],
            "strike": strike,
            "environment": environment or {},
            "prepare": prepare,
            "log": str(self._log),
        }
        return self._ask(job)

    def wait(self, pid: int) -> int:
        """The exit code of a process, negative if a signal ended it."""
        return self._ask({"wait": pid})

    def run(self, *arguments: Any, **options: Any) -> int:
        return self.wait(self.start(*arguments, **options))

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, request: dict[str, Any] | None = None) -> int:
        if request is not None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has died"
        return int(answer)


def poll(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Waits for a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def process_state(pid: int) -> str:
    """The letter by which Linux tells what a process does; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _serve() -> None:
    import pyarrow.parquet  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from latentwire.cli import main
    from latentwire.training import wire  # noqa: F401
    from latentwire.training.state import StateDirectory

    torch.set_num_threads(1)
    init = StateDirectory.__init__
    StateDirectory.__init__ = lambda self, *arguments: init(
        self, *arguments, lease_interval_seconds=LEASE_INTERVAL_SECONDS
    )
    print(0, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            _run(request, main)


def _run(job: dict[str, Any], main: Callable[[list[str]], int]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    os.environ.update(job["environment"])
    try:
        if job["prepare"] is not None:
            importlib.import_module(job["prepare"])
        if job["strike"] is not None:
            sys.addaudithook(_striker(job["results"], *job["strike"]))
        code = main(job["arguments"])
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code)


def _striker(root: str, number: int, moment: int) -> Callable[[str, tuple[Any, ...]], None]:
    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        is_open = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (is_open or event in CHANGES) or not str(arguments[0]).startswith(root):
            return
        changes += 1
        if changes == moment:
            os.kill(os.getpid(), number)

    return count


if __name__ == "__main__":
    _serve()
