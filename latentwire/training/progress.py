"""One line of metrics.jsonl per logged step, and a line on the terminal with the time left."""

import json
import logging
import os
import time
from pathlib import Path

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends JSON lines, and can be cut back to an earlier length when training resumes.

    Args:
        path: the file.
        offset_bytes: length to cut the file to; what came after was not part of the saved state.
    """

    def __init__(self, path: Path, offset_bytes: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that whoever watches the file sees each line at once.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(offset_bytes)

    def write(self, row: dict[str, float]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")

    def sync(self) -> int:
        """Puts everything on disk and returns the length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self.sync()
        self._file.close()


class Progress:
    """Seconds since the start and an estimate of the seconds left.

    Args:
        first_step: where this process began.
        num_steps: where the run ends.
    """

    def __init__(self, first_step: int, num_steps: int) -> None:
        self._started = time.monotonic()
        self._first_step, self._num_steps = first_step, num_steps

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def report(self, step: int, row: dict[str, float]) -> None:
        done = step - self._first_step
        left = self.seconds / max(1, done) * (self._num_steps - step)
        values = "  ".join(
            f"{key} {row[key]:.3f}" for key in row if key.endswith(("loss", "entropy"))
        )
        logger.info("step %d/%d  %s  %s left", step, self._num_steps, values, format_seconds(left))


def format_seconds(seconds: float) -> str:
    """Reads as 45 s, 12 min or 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
