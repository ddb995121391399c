"""What a planted massive activation does to telepathy: one channel of a sender's states x 1,000.

Two wires are trained alike, one on the sender as it is, and one on states of which one channel is
multiplied where they leave the sender. Prints JSON: F1 of both on test, relative to the text's.

    python benchmarks/massive_activations.py results/telepathy --wire telepathy-qwen-layer2-blind
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import torch
from torch import Tensor

from latentwire.configuration import load_experiment
from latentwire.evaluation.evaluate import evaluate_wire
from latentwire.evaluation.predictions import read_predictions
from latentwire.layout import Layout
from latentwire.receivers.receiver import Receiver
from latentwire.receivers.states import token_states
from latentwire.training.wire import train_wire
from latentwire.wire import wire as wire_module

CHANNEL, FACTOR = 7, 1000.0


def planted_states(
    sender: Receiver, source_ids: Sequence[Sequence[int]], layers: Sequence[int]
) -> Tensor:
    """The sender's states, one channel of which is massive."""
    states = token_states(sender, source_ids, layers)
    states[..., CHANNEL] *= FACTOR
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder of an experiment that was run")
    parser.add_argument("--wire", required=True, help="a wire of it with a sender")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    whole = load_experiment(options.results / "config.yaml").of_wire(options.wire)
    training = whole.training.model_copy(update={"steps": options.steps})
    experiment = whole.model_copy(update={"training": training})
    torch.set_num_threads(experiment.threads)
    there = Layout(whole.experiment, options.results.parent)
    relative = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, states in (("as it is", token_states), ("planted", planted_states)):
            layout = Layout(name.replace(" ", "-"), Path(folder))
            layout.root.mkdir()
            for part in ("data", "receivers", "wires"):
                (layout.root / part).mkdir()
                for path in (there.root / part).iterdir():
                    if path.name != options.wire:
                        (layout.root / part / path.name).symlink_to(path.resolve())
            wire_module.token_states = states
            train_wire(experiment, layout, experiment.seeds[0])
            evaluate_wire(experiment, layout, experiment.seeds[0])
            relative[name] = {
                reader.name: _f1(
                    layout, experiment.evaluation.wire_methods[0], reader.name, options.wire
                )
                / _f1(there, "text", reader.name)
                for reader in experiment.readers
            }
    differences = [
        abs(relative["planted"][name] - relative["as it is"][name]) for name in relative["planted"]
    ]
    outcome = {"relative_f1": relative, "largest_difference": max(differences)}
    print(json.dumps(outcome | {"steps": options.steps, "asked": 0.02}, indent=2))
    sys.exit(max(differences) >= 0.02)


def _f1(layout: Layout, method: str, receiver: str, wire: str | None = None) -> float:
    of_wire = (wire, 1) if wire else ()
    path = layout.predictions(method, receiver, *of_wire)
    return pc.mean(read_predictions(path)["f1"]).as_py()


if __name__ == "__main__":
    main()
