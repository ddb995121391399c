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
import tempfile
from pathlib import Path
from typing import Any

from verbs import metrics_rows, prepare, run

from latentwire.config import Experiment
from latentwire.files import file_digest, read_json
from latentwire.layout import Layout
from latentwire.wire.description import WEIGHTS

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
        prepare(experiment, layout)
        training = ("train-wire", "--threads", "1", "--training.steps", str(steps))
        training += ("--training.micro_batches", str(options.micro_batches))
        run(layout, *training)
        wire = layout.wire(experiment.wire.name, 1)
        undisturbed, weights = metrics_rows(wire / "metrics.jsonl"), file_digest(wire / WEIGHTS)
        shutil.rmtree(wire)
        for part, count in enumerate(PROCESSES, 1):
            is_last = part == len(PROCESSES)
            stop = None if is_last else steps * part // len(PROCESSES)
            run(layout, *training, "--processes", str(count), stop_at=stop)
        elastic = metrics_rows(wire / "metrics.jsonl")
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


def _examples(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["step"], row["examples"]) for row in rows]


if __name__ == "__main__":
    main()
