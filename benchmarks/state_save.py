"""How long training stands still while a state of 2 GB is saved beside it.

    nice -n 15 python benchmarks/state_save.py

The state is that of AdamW: weights and two moments. Prints the median step, the longest of those
that a save is begun in, goes on beside, or ends in, the longest of the others, and what the
training itself waits for: the copy that is written.
"""

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.training.loop import Schedule, fit
from latentwire.training.state import Identity, StateDirectory

NUM_PARTS, PART = 40, 4_200_000
# A save that takes longer than this would be waited for by the next.
NUM_STEPS, SAVE_SECONDS = 80, 45.0
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
        self.started: list[float] = []

    def losses(self, step: int) -> tuple[dict[str, Tensor], dict[str, int]]:
        self.started.append(time.perf_counter())
        loss = torch.stack([(part - 1).square().sum() for part in self.module.parts]).sum()
        return {"loss": loss}, {"examples": 1, "tokens": 1}

    def dev(self) -> dict[str, float]:
        return {}


class Timed(StateDirectory):
    """Notes when saves are begun, when training goes on, and when they are on disk."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.copied: list[float] = []
        self.written: list[tuple[float, float]] = []

    def save(self, step: int, state: dict[str, Any], wait: bool = False) -> None:
        started = time.perf_counter()
        super().save(step, state, wait)
        if not wait:
            self.copied.append(time.perf_counter() - started)

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
    during, others = [], []
    for start, end in list(pairwise(task.started))[WARM_UP_STEPS:]:
        is_saving = any(start < written and end > begun for begun, written in beside)
        (during if is_saving else others).append(end - start)
    print(f"state {size / 1e9:.2f} GB; {len(beside)} saves beside the training")
    print(f"median step {statistics.median(during + others):.2f} s")
    print(f"longest step while saving {max(during):.2f} s, of all others {max(others):.2f} s")
    print(f"longest copy {max(state.copied):.2f} s")
    print(f"writing took {', '.join(f'{end - begun:.1f}' for begun, end in state.written)} s")


if __name__ == "__main__":
    main()
