"""How much faster a wire trains on several processes.

    python benchmarks/scaling.py --processes 1 2

Trains the pocket wire from its own receivers and data, at its three ratios from the first step, in
so many processes of one thread each, or on so many GPUs; every step is read in as many parts as
there are processes at most. Prints JSON: seconds a step, the first and the last 20 left out, the
loss behind them, and how much faster that is than with the first number of processes.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from verbs import metrics_rows, prepare, run

from latentwire.cluster.machine import computing_facts
from latentwire.config import Experiment
from latentwire.layout import Layout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=80, help="60 or more (default: 80)")
    options = parser.parse_args()
    experiment = Experiment()
    settings = {
        "steps": options.steps,
        "alignment_steps": 0,
        "ratio_growth": 0,
        "softening": 0,
        "log_every_steps": 20,
        "micro_batches": max(options.processes),
    }
    given = [word for key, own in settings.items() for word in (f"--training.{key}", own)]
    outcome: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(experiment.experiment, Path(folder))
        prepare(experiment, layout)
        wire = layout.wire(experiment.wire.name, experiment.seeds[0])
        for count in options.processes:
            run(layout, "train-wire", "--threads", 1, "--processes", count, *given)
            # The last is written after the dev split was measured.
            first, *_, last, _ = metrics_rows(wire / "metrics.jsonl")
            seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
            outcome[count] = {"seconds_per_step": seconds, "last_loss": last["loss"]}
            shutil.rmtree(wire)
    reference = outcome[options.processes[0]]["seconds_per_step"]
    for own in outcome.values():
        own["speedup"] = reference / own["seconds_per_step"]
    facts = {"machine": computing_facts(), "steps": options.steps, "processes": outcome}
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
