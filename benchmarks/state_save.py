"""How long training stands still while a state of 2 GB is saved beside it.

    python benchmarks/state_save.py

The state is that of AdamW: weights and two moments. Prints the median step, the longest of those
that a save is begun in, goes on beside, or ends in, and the longest of the others, by the clock and
by the CPU time of the thread that trains, in which other programs on the machine do not count.
"""

import statistics
import tempfile
import time
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentwire.training.loop import Schedule, fit
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.state import Identity, StateDirectory

NUM_PARTS, PART = 40, 4_200_000
# A save that takes longer than this would be waited for by the next.
NUM_STEPS, SAVE_SECONDS = 120, 30.0
# Memory comes page by page at first.
WARM_UP_STEPS = 10


class Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Vectors go to AdamW, and a matrix to the other optimiser, which must have one.
        self.parts = nn.ParameterList(torch.zeros(PART) for _ in range(NUM_PARTS))
        self.parts.append(torch.zeros(2, 2))


class Large:
    """A quadratic loss over many numbers, which costs little but the optimiser's work."""

    def __init__(self) -> None:
        self.module = Vectors()
        self.started: list[tuple[float, float]] = []

    def losses(self, step: int, _: Part = WHOLE, /) -> tuple[Losses, Counts]:
        self.started.append((time.perf_counter(), time.thread_time()))
        loss = torch.stack([(part - 1).square().sum() for part in self.module.parts]).sum()
        return {"loss": loss}, {"examples": 1, "tokens": 1}

    def dev(self) -> dict[str, float]:
        return {}


class Timed(StateDirectory):
    """Notes when saves begin to be written, and when they are on disk."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: list[tuple[float, float]] = []

    def _write(self, slot: int, step: int, content: dict[str, Any]) -> None:
        started = time.perf_counter()
        super()._write(slot, step, content)
        self.written.append((started, time.perf_counter()))


def main() -> None:
    torch.set_num_threads(1)
    task = Large()
    schedule = Schedule(
        num_steps=NUM_STEPS,
        warmup_steps=1,
        matrix_learning_rate=1e-3,
        other_learning_rate=1e-3,
        checkpoint_interval_seconds=SAVE_SECONDS,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Timed(Path(folder) / "run", Identity({}, "")) as state,
    ):
        fit(task, schedule, state)
        size = max(path.stat().st_size for path in state.path.glob("slot*.pt"))
    # The last save is waited for: there is nothing left to train.
    beside = state.written[:-1]
    print(f"state {size / 1e9:.2f} GB; {len(beside)} saves beside the training")
    steps = list(pairwise(task.started))[WARM_UP_STEPS:]
    is_saving = [
        any(start[0] < written and end[0] > begun for begun, written in beside)
        for start, end in steps
    ]
    for clock, name in enumerate(("by the clock", "of CPU time")):
        seconds = [end[clock] - start[clock] for start, end in steps]
        during = max(compress(seconds, is_saving))
        others = max(compress(seconds, (not saving for saving in is_saving)))
        print(
            f"{name}: median step {statistics.median(seconds):.2f} s, longest while saving "
            f"{during:.2f} s, longest of the others {others:.2f} s"
        )
    print(f"writing took {', '.join(f'{end - begun:.1f}' for begun, end in state.written)} s")


if __name__ == "__main__":
    main()
