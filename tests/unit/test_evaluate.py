"""Evaluation of the bundled receivers: what gold answers may and may not change."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from latentwire.baselines.classifier import train_compressor
from latentwire.baselines.compressed import evaluate_compressed
from latentwire.config import Baselines, Experiment, PocketData
from latentwire.data.prepare import prepare
from latentwire.data.tables import read_examples, write_examples
from latentwire.evaluation.evaluate import evaluate_text, evaluate_wire
from latentwire.layout import Layout
from latentwire.receivers.build import build_receiver
from latentwire.receivers.loading import load_receiver
from latentwire.training.wire import make_wire


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Rows of the predictions by method and receiver, with gold answers and with wrong ones."""
    data = PocketData(train_passages=4, dev_passages=2, test_passages=2)
    baselines = Baselines(steps=10, passages_per_step=4)
    experiment = Experiment(experiment="gold", data=data, baselines=baselines)
    layout = Layout("gold", tmp_path_factory.mktemp("results"))
    receivers = []
    for receiver in experiment.receivers:
        build_receiver(experiment, layout, receiver.name)
        receivers.append(load_receiver(experiment, layout, receiver.name))
    prepare(experiment, layout)
    make_wire(experiment, layout, receivers, 1).save_pretrained(layout.wire("shared", 1))
    train_compressor(experiment, layout)
    gold = evaluate(experiment, layout)
    examples = read_examples(layout.split("test"))
    shifted = [*examples[1:], examples[0]]
    write_examples(
        layout.split("test"),
        [replace(e, answers=other.answers) for e, other in zip(examples, shifted, strict=True)],
    )
    return gold, evaluate(experiment, layout)


def evaluate(experiment: Experiment, layout: Layout) -> dict[str, list[dict]]:
    for receiver in experiment.receivers:
        evaluate_text(experiment, layout, receiver.name)
        evaluate_compressed(experiment, layout, receiver.name)
    evaluate_wire(experiment, layout, 1)
    folder = layout.root / "predictions"
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pylist()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_answers_do_not_depend_on_gold_answers(evaluated):
    gold, wrong = evaluated
    # Swapped answers are asked by text too.
    assert len(gold) == 2 * (len(Experiment().evaluation.methods) + 1)
    own = ("prediction", "source_tokens", "prompt_tokens", "soft_tokens", "payload_bytes")
    # What is swapped are gold answers; what is asked of the changed passage is not.
    independent = {name: rows for name, rows in gold.items() if not name.startswith("control_swap")}
    assert len(independent) == len(gold) - 4
    for name, rows in independent.items():
        for before, after in zip(rows, wrong[name], strict=True):
            assert [before[key] for key in own] == [after[key] for key in own]


def test_scores_do(evaluated):
    gold, wrong = (
        [row["em"] for name, rows in part.items() if name.startswith("text/") for row in rows]
        for part in evaluated
    )
    assert sum(gold) / len(gold) > 0.95
    assert sum(wrong) / len(wrong) < 0.3
