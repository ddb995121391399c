"""Whether a wire is as good when the number of processes that train it changes on the way.

    python benchmarks/elastic_training.py --steps 600
    python benchmarks/elastic_training.py --steps 600 --micro-batches 2

Trains the pocket wire twice, with the default optimiser and fewer steps: undisturbed on one
process, and stopped by TERM at a third and two thirds of the steps, to go on with two processes and
then one. Each process has one thread. Prints JSON: the final F1 on dev relative to the text's, by
receiver and ratio, for both, the largest difference and that of the means; the steps after which
the second training went on; whether both had seen as many examples after every logged step, and
whether their weights are the same to the bit.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from latentwire.config import Experiment
from latentwire.files import file_digest, read_json
from latentwire.layout import Layout
from latentwire.wire.description import WEIGHTS

CONFIG = Path(__file__).parents[1] / "config/config.yaml"
PROCESSES = (1, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600, help="more than the alignment's 200")
    parser.add_argument("--micro-batches", type=int, default=1, help="parts of a step")
    options = parser.parse_args()
    steps = options.steps
    experiment = Experiment()
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(experiment.experiment, Path(folder))
        for receiver in experiment.receivers:
            _run(layout, "receiver", "--name", receiver.name)
        _run(layout, "prepare")
        training = ("train-wire", "--threads", "1", "--training.steps", str(steps))
        training += ("--training.micro_batches", str(options.micro_batches))
        _run(layout, *training)
        wire = layout.wire(experiment.wire.name, 1)
        undisturbed, weights = _rows(wire / "metrics.jsonl"), file_digest(wire / WEIGHTS)
        shutil.rmtree(wire)
        for part, count in enumerate(PROCESSES, 1):
            is_last = part == len(PROCESSES)
            stop = None if is_last else steps * part // len(PROCESSES)
            _run(layout, *training, "--processes", str(count), stop_at=stop)
        elastic = _rows(wire / "metrics.jsonl")
        same_bits = file_digest(wire / WEIGHTS) == weights
        resumes = read_json(wire / "resumes.json")["resumes"]
    pairs = {
        key.removeprefix("dev/").removesuffix("/relative_f1"): (value, elastic[-1][key])
        for key, value in undisturbed[-1].items()
        if key.endswith("/relative_f1")
    }
    outcome = {
        "steps": steps,
        "micro_batches": options.micro_batches,
        "went_on_after": [resume["step"] for resume in resumes],
        "processes": PROCESSES,
        "dev_relative_f1": pairs,
        "largest_difference": max(abs(one - other) for one, other in pairs.values()),
        "difference_of_means": abs(sum(one - other for one, other in pairs.values())) / len(pairs),
        "same_examples": _examples(undisturbed) == _examples(elastic),
        "same_bits": same_bits,
    }
    print(json.dumps(outcome, indent=2))


def _run(layout: Layout, *arguments: str, stop_at: int | None = None) -> None:
    """Runs a verb to its end, or stops it by TERM once it has logged a step."""
    where = ("--config", str(CONFIG), "--results", str(layout.results))
    process = subprocess.Popen([sys.executable, "-m", "latentwire", *arguments, *where])
    if stop_at is not None:
        metrics = layout.state("shared-seed1") / "metrics.jsonl"
        while process.poll() is None and _last_step(metrics) < stop_at:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    expected = 0 if stop_at is None else 128 + signal.SIGTERM
    if process.wait() != expected:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}, not {expected}")


def _last_step(metrics: Path) -> int:
    rows = _rows(metrics) if metrics.exists() else []
    return rows[-1]["step"] if rows else 0


def _rows(metrics: Path) -> list[dict[str, Any]]:
    # What is being written may end in half a line.
    lines = metrics.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _examples(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["step"], row["examples"]) for row in rows]


if __name__ == "__main__":
    main()
