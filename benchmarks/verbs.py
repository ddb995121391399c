"""The pocket experiment, verb by verb, for the benchmarks beside it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from latentwire.config import Experiment
from latentwire.layout import Layout

CONFIG = Path(__file__).parents[1] / "config/config.yaml"


def prepare(experiment: Experiment, layout: Layout) -> None:
    """Makes what a training reads."""
    for receiver in experiment.receivers:
        run(layout, "receiver", "--name", receiver.name)
    run(layout, "prepare")


def run(layout: Layout, *arguments: object, stop_at: int | None = None) -> None:
    """Runs a verb to its end, or stops it by TERM once it has logged a step."""
    where = ("--config", CONFIG, "--results", layout.results)
    command = [sys.executable, "-m", "latentwire", *map(str, (*arguments, *where))]
    process = subprocess.Popen(command)
    if stop_at is not None:
        metrics = layout.state("shared-seed1") / "metrics.jsonl"
        while process.poll() is None and _last_step(metrics) < stop_at:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    expected = 0 if stop_at is None else 128 + signal.SIGTERM
    if process.wait() != expected:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}, not {expected}")


def _last_step(metrics: Path) -> int:
    rows = metrics_rows(metrics) if metrics.exists() else []
    return rows[-1]["step"] if rows else 0


def metrics_rows(metrics: Path) -> list[dict[str, Any]]:
    # What is being written may end in half a line.
    lines = metrics.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
