"""Whether answers through the public interface are those that evaluation gave.

    python benchmarks/api_agreement.py results/pocket

For every receiver and target ratio: the first 200 test questions, asked of messages that went
through bytes, against the predictions of `evaluate-wire`; and the F1 of messages as int8 beside
that of fp16. Leaves with 1 if more than one answer in 200 differs, or int8 costs over half a
percent.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq

from latentwire import LatentReceiver, Latents, Wire, open_receiver
from latentwire.configuration import load_experiment
from latentwire.data.tables import Example, read_examples
from latentwire.evaluation.scoring import f1
from latentwire.layout import Layout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="the folder of a finished experiment")
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    experiment = load_experiment(options.results / "config.yaml")
    layout = Layout(experiment.experiment, options.results.parent)
    seed = experiment.seeds[0]
    folder = layout.wire(experiment.wire.name, seed)
    wire = Wire.from_pretrained(folder)
    examples = read_examples(layout.split("test"))[: options.questions]
    is_good = True
    for name in wire.receivers:
        receiver = open_receiver(folder, name)
        path = layout.predictions("latent", name, experiment.wire.name, seed)
        rows = pq.read_table(path).to_pylist()
        evaluated = {(row["target_ratio"], row["example_id"]): row["prediction"] for row in rows}
        for ratio in wire.widths:
            answers = {
                dtype: ask(wire, receiver, examples, ratio, dtype) for dtype in ("fp16", "int8")
            }
            same = sum(
                evaluated[ratio, example.example_id] == answer
                for example, answer in zip(examples, answers["fp16"], strict=True)
            )
            scores = {dtype: score(examples, own) for dtype, own in answers.items()}
            share = scores["int8"] / scores["fp16"] - 1
            print(
                f"{name} {ratio:g}x: {same} of {len(examples)} answers are evaluation's; "
                f"F1 as fp16 {scores['fp16']:.4f}, as int8 {scores['int8']:.4f} ({share:+.2%})",
                flush=True,
            )
            is_good &= same >= len(examples) * 199 / 200 and share >= -0.005
    return 0 if is_good else 1


def ask(
    wire: Wire, receiver: LatentReceiver, examples: list[Example], ratio: float, dtype: str
) -> list[str]:
    """Answers about messages that went through bytes; a passage is encoded once."""
    contexts = list(dict.fromkeys(example.context for example in examples))
    payloads = [latents.to_bytes(dtype) for latents in wire.encode(contexts, ratio)]
    messages = dict(zip(contexts, map(Latents.from_bytes, payloads), strict=True))
    return receiver.answer(
        [messages[example.context] for example in examples],
        [example.question for example in examples],
    )


def score(examples: list[Example], answers: list[str]) -> float:
    return fmean(
        f1(answer, example.answers) for example, answer in zip(examples, answers, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
