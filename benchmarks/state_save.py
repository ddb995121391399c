"""How long training stands still while a state of 2 GB is saved beside it.

    nice -n 15 python benchmarks/state_save.py

The state is that of AdamW: weights and two moments. Prints the median step, the longest of
those that a save is begun in, goes on beside, or ends in, and the longest of the others.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from latentwire.training.loop import Schedule, fit
from latentwire.training.state import Identity, StateDirectory

NUM_PARTS, PART = 40, 4_200_000
# A save that takes longer than this would be waited for by the next.
NUM_STEPS, SAVE_SECONDS = 80, 60.0


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
    """Notes when saves are begun and when they are on disk."""

    spans: list[tuple[float, float]]

    def _write(self, slot: int, step: int, content: dict[str, object]) -> None:
        started = time.perf_counter()
        super()._write(slot, step, content)
        self.spans.append((started, time.perf_counter()))


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
        state.spans = []
        fit(task, schedule, state)
        size = max(path.stat().st_size for path in state.path.glob("slot*.pt"))
    steps = [(a, b - a) for a, b in zip(task.started, task.started[1:], strict=False)]
    # The last save is waited for: there is nothing left to train.
    beside = state.spans[:-1]
    during = [
        seconds
        for start, seconds in steps
        if any(start < end and start + seconds > begin for begin, end in beside)
    ]
    others = [seconds for _, seconds in steps[1:] if seconds not in during]
    median = statistics.median(seconds for _, seconds in steps[1:])
    writing = ", ".join(f"{end - begin:.1f}" for begin, end in state.spans)
    print(f"state {size / 1e9:.2f} GB; {len(beside)} saves beside the training")
    print(f"median step {median:.2f} s, longest while saving {max(during):.2f} s")
    print(f"longest of all others {max(others):.2f} s")
    print(f"writing took {writing} s")


if __name__ == "__main__":
    main()
