"""How far what `plan` says of memory is from what a training takes.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/plan_memory.py --config config/config.yaml

Takes some steps of the largest batch of a prepared experiment, optimiser and saves among it, and
prints both peaks: on a GPU that of torch's allocator, on the CPU that of the process, less what it
had once all was imported. The variable makes the C library give back at once what is freed.
"""

import argparse
import os
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from latentwire.configuration import load_experiment
from latentwire.layout import Layout
from latentwire.planning.training import plan_memory
from latentwire.receivers.loading import load_receiver
from latentwire.training.loop import Schedule, fit
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.state import Identity, StateDirectory
from latentwire.training.wire import WireTask, make_wire

NUM_STEPS = 4


class LargestBatch:
    """A wire's training in which every step has the largest batch."""

    def __init__(self, task: WireTask, step: int) -> None:
        self._task, self._step = task, step

    @property
    def module(self) -> nn.Module:
        return self._task.module

    def losses(self, step: int, _: Part = WHOLE, /) -> tuple[Losses, Counts]:
        return self._task.losses(self._step)

    def dev(self) -> dict[str, float]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--wire", help="name of the wire (default: the experiment's)")
    options = parser.parse_args()
    experiment = load_experiment(options.config)
    layout = Layout(experiment.experiment, options.results)
    wire = options.wire or experiment.wire.name
    own, seed = experiment.of_wire(wire), experiment.of_wire(wire).seeds[0]
    # Alignment comes first, and takes less.
    settings = own.training.model_copy(update={"alignment_steps": 0})
    own = own.model_copy(update={"training": settings})
    torch.set_num_threads(own.threads)
    before = resident_bytes()
    receivers = [load_receiver(own, layout, receiver.name) for receiver in own.readers]
    task = WireTask(own, layout, make_wire(own, layout, receivers, seed), receivers, seed)
    costs = [passage.num_tokens for passage in task._passages[None]]

    def size(step: int) -> int:
        _, batch = task.order.batch(step)
        return len(batch) * max(costs[index] for index in batch)

    largest = max(range(task.order.num_steps(1)), key=size)
    schedule = Schedule(NUM_STEPS, 1, 1e-4, 1e-4, checkpoint_interval_seconds=1e-3)
    with (
        tempfile.TemporaryDirectory() as folder,
        StateDirectory(Path(folder) / "run", Identity({}, "")) as state,
    ):
        fit(LargestBatch(task, largest), schedule, state)
    if own.device == "cuda":
        measured = torch.cuda.max_memory_allocated()
    else:
        measured = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # What CUDA takes itself is not torch's.
    planned = replace(plan_memory(experiment, layout, wire), cuda=0)
    print(
        f"{wire} on {own.device}: planned {planned.peak / 2**20:.0f} MiB, taken "
        f"{measured / 2**20:.0f} MiB, {planned.peak / measured - 1:+.0%}"
    )


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
