"""One line of metrics.jsonl per logged step, and a line on the terminal with the time left."""

import json
import logging
import time
from pathlib import Path

from latentwire.files import write_text

logger = logging.getLogger(__name__)


class MetricsLog:
    """JSON lines, in a file for whoever watches and in the text that is part of a saved state.

    Args:
        path: the file, made anew: a process that lost the run may still hold the one before.
        text: lines of before, when training resumes.
    """

    def __init__(self, path: Path, text: str = "") -> None:
        self.text = text
        write_text(path, text)
        # Unbuffered, so that whoever watches the file sees each line at once.
        self._file = path.open("ab", buffering=0)

    def write(self, row: dict[str, float]) -> None:
        line = json.dumps(row) + "\n"
        self.text += line
        self._file.write(line.encode())

    def close(self) -> None:
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
