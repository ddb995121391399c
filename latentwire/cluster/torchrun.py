"""Stages on several processes: starts them as torchrun does, or joins those that were started.

torchrun gives processes 30 s from a signal to their end, and ends with 1 whatever they end with.
Its engine, used as the library that it is, leaves both to us: signals go on to the processes, which
take the time that they need to save, and we end as they do.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import FrameType

from latentwire.errors import Interrupted, ProcessLostError, UserError

# What processes that we started find in their environment as ROLE_NAME.
_ROLE = "latentwire"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# As long as another training may hold the lease; the end of a process is noticed at once.
_PATIENCE = timedelta(days=7)
_OTHERS_FIRST_SECONDS = 20

# They tell at length of every end, which processes tell themselves.
_TALKATIVE = ("torch.multiprocessing.spawn", "torch.distributed.elastic.multiprocessing.api")

Main = Callable[[list[str]], int]

logger = logging.getLogger(__name__)


def count_processes(asked: int | None, device: str) -> int:
    """How many processes to start: as many as asked for, or one for each GPU.

    Raises:
        UserError: if that is less than one, or more than there are GPUs.
    """
    import torch

    gpus = torch.cuda.device_count() if device == "cuda" else None
    count = (gpus or 1) if asked is None else asked
    if count < 1:
        raise UserError(f"--processes {count}: give 1 or more")
    if gpus is not None and count > gpus:
        raise UserError(
            f"--processes {count}, but torch finds {gpus} GPUs here. Ask for as many (`gpu` in the "
            f"profile), or give --processes {gpus}: a stage goes on with any number"
        )
    return count


def is_joint() -> bool:
    """Whether this process is one of several that launch, torchrun or srun started."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def has_launcher() -> bool:
    """Whether `launch` has started this process, and sees to what follows its end."""
    return os.environ.get("ROLE_NAME") == _ROLE


def launch(main: Main, arguments: Sequence[str], count: int) -> None:
    """Runs a command line on several processes of this machine, and ends as they do.

    Raises:
        Interrupted: if a signal has ended them.
        SystemExit: with the exit code of the first that failed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, _passing_signals_on():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            role=_ROLE,
            run_id=_ROLE,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            # It would not wait for the processes on those that it handles.
            signals_to_handle="SIGQUIT",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, _work)(main, [*arguments])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            _end_like(rank, failure.exitcode)


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """For the length of a stage, joins the processes that were started together, if any were."""
    if not is_joint():
        yield
        return
    import torch
    import torch.distributed as dist

    from latentwire.training.processes import agree, is_leader

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # What they agree on is on the CPU, and does not wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    leads = is_leader()
    if not leads:
        logging.disable(logging.WARNING)
    try:
        yield
        if not leads:
            # All that is left is what the leader writes.
            _ignore_signals()
        agree()
    except BaseException as error:
        if not leads or isinstance(error, ProcessLostError):
            # Another ends too, and its end is to tell why; whoever started us then ends us.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(_OTHERS_FIRST_SECONDS)
        raise
    dist.destroy_process_group()


def _work(main: Main, arguments: list[str]) -> None:
    code = main(arguments)
    _ignore_signals()
    sys.exit(code)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Passes signals on to the processes that were started, which decide what to make of them."""

    def pass_on(number: int, _: FrameType | None) -> None:
        started = [process.pid for process in multiprocessing.active_children() if process.pid]
        if not started:
            raise Interrupted(number)
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_like(rank: int, code: int) -> None:
    number = -code if code < 0 else code - 128
    if number in _SIGNALS:
        raise Interrupted(number)
    if code < 0:
        logger.error(
            "process %d of the stage was killed by %s; memory may have run out",
            rank,
            signal.Signals(number).name,
        )
    raise SystemExit(max(1, code))
