"""How fast a wire's questions are answered, against `generate` of transformers in a loop.

    python benchmarks/evaluation_speed.py results/pocket

Test questions are answered from messages, written beforehand, in turn by

* evaluation as it is: passages of like length together, whose questions share what was read of the
  message; with the likelihood of the gold answers, and scores;
* `generate` in a loop, one question a row, left-padded, in the order of the questions. Its prompts
  are made beforehand, and nothing is scored.

Both have as many questions at once. Prints JSON: medians over the repetitions, in seconds by the
clock and of CPU time; the seconds of evaluation in which the receiver answers, which is what the
loop does; and how many answers are the same.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import clock

from latentwire import LatentReceiver, Latents, Wire
from latentwire.cluster.machine import computing_facts
from latentwire.config import Experiment
from latentwire.configuration import load_experiment
from latentwire.data.tables import Example, group_by_passage, read_examples
from latentwire.evaluation.methods import encode_payloads, send_latents
from latentwire.evaluation.predict import predict, warm_up
from latentwire.evaluation.predictions import Prediction
from latentwire.layout import Layout
from latentwire.receivers.loading import load_receiver


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of a finished experiment")
    parser.add_argument("--wire", type=Path, help="folder of another wire (default: its own)")
    parser.add_argument("--receiver", help="its name (default: the wire's first)")
    parser.add_argument("--ratio", type=float, default=4.0, help="target ratio (default: 4)")
    parser.add_argument("--questions", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument(
        "--rows", type=int, help="rows at once in the loop (default: as evaluation has)"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="of each (default: 3)")
    options = parser.parse_args()
    experiment = load_experiment(options.results / "config.yaml")
    layout = Layout(experiment.experiment, options.results.parent)
    torch.set_num_threads(experiment.threads)
    folder = options.wire or layout.wire(experiment.wire.name, experiment.seeds[0])
    wire = Wire.from_pretrained(folder, experiment.device)
    name = options.receiver or next(iter(wire.receivers))
    examples = read_examples(layout.split("test"))[: options.questions]
    contexts = [group[0].context for group in group_by_passage(examples)]
    form = (options.ratio, "fp16")
    at_once = experiment.evaluation.batch_passages
    payloads, _ = encode_payloads(wire, contexts, [form], at_once, None)
    most = experiment.evaluation.batch_passages * len(examples) / len(contexts)
    rows = options.rows or min(len(examples), round(most))

    receiver = load_receiver(experiment, layout, name)
    warm_up(experiment, receiver, examples)
    reader = wire.receiver(name)
    messages = dict(zip(contexts, map(Latents.from_bytes, payloads[form]), strict=True))
    batches = [
        prompts(reader, messages, examples[start : start + rows])
        for start in range(0, len(examples), rows)
    ]
    longest = experiment.evaluation.max_new_tokens
    answering: list[float] = []

    def evaluation() -> list[str]:
        rows = evaluate(experiment, receiver, wire, examples, payloads[form])
        answering.append(sum(row.answer_seconds for row in rows))
        return [row.prediction for row in rows]

    ways = {
        "evaluation": evaluation,
        "generate": lambda: [
            text for batch in batches for text in generate(reader, batch, longest)
        ],
    }
    times: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    answers: dict[str, list[str]] = {}
    for _ in range(options.repetitions):
        for way, call in ways.items():
            started = clock()
            answers[way] = call()
            times[way].append(clock() - started)
    medians = {way: np.median(own, axis=0) for way, own in times.items()}
    same = sum(map(str.__eq__, *answers.values()))
    outcome = {
        "machine": computing_facts(),
        "threads": torch.get_num_threads(),
        "receiver": name,
        "questions": len(examples),
        "rows": rows,
        **{
            way: {"seconds": float(own[0]), "cpu_seconds": float(own[1])}
            for way, own in medians.items()
        },
        "generate_over_evaluation": {
            "by_clock": float(medians["generate"][0] / medians["evaluation"][0]),
            "by_cpu_time": float(medians["generate"][1] / medians["evaluation"][1]),
        },
        "answering_seconds": float(np.median(answering)),
        "generate_over_answering": float(medians["generate"][0] / np.median(answering)),
        "same_answers": same,
        "asked": {"generate_over_evaluation": 3},
    }
    print(json.dumps(outcome, indent=2))


def evaluate(
    experiment: Experiment,
    receiver: Any,
    wire: Wire,
    examples: Sequence[Example],
    payloads: Sequence[bytes],
) -> list[Prediction]:
    groups = group_by_passage(examples)
    contexts = [group[0].context for group in groups]
    rows = predict(
        experiment,
        receiver,
        groups,
        contexts,
        receiver.prompt.source_ids(contexts),
        partial(send_latents, wire, receiver.name, payloads),
        ratio=None,
    )
    given = {row.example_id: row for row in rows}
    return [given[example.example_id] for example in examples]


def prompts(
    reader: LatentReceiver, messages: dict[str, Latents], examples: Sequence[Example]
) -> Any:
    return reader._soft_prompt(
        [messages[example.context] for example in examples],
        [example.question for example in examples],
        0,
    )


def generate(reader: LatentReceiver, prompt: Any, max_new_tokens: int) -> list[str]:
    receiver = reader.receiver
    with torch.no_grad(), reader.deepened(prompt):
        output = receiver.model.generate(
            inputs_embeds=prompt.inputs_embeds,
            attention_mask=prompt.attention_mask,
            position_ids=prompt.position_ids,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=receiver.pad_id,
            eos_token_id=sorted(receiver.stop_ids),
        )
    return receiver.decode(output.tolist())


if __name__ == "__main__":
    main()
