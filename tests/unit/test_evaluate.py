"""Evaluation of the bundled receivers: what gold answers may and may not change."""

import re
import signal
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import pytest

from latentwire.baselines import compressed
from latentwire.baselines.classifier import train_compressor
from latentwire.baselines.compressed import evaluate_compressed
from latentwire.config import Baselines, Experiment, Method, PocketData
from latentwire.data.prepare import prepare
from latentwire.data.tables import read_examples, write_examples
from latentwire.errors import Interrupted
from latentwire.evaluation import evaluate as evaluate_module
from latentwire.evaluation.evaluate import evaluate_text, evaluate_wire
from latentwire.layout import Layout
from latentwire.receivers.build import build_receiver
from latentwire.receivers.loading import load_receiver
from latentwire.training.wire import make_wire


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An experiment, and the results of all that goes before its evaluation."""
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
    return experiment, layout


@pytest.fixture(scope="module")
def evaluated(prepared):
    """Rows of the predictions by method and receiver, with gold answers and with wrong ones."""
    experiment, layout = prepared
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


TIMES = ("encode_seconds", "answer_seconds")


def rows_without_times(layout):
    return {
        path: pq.read_table(path).drop_columns(TIMES).to_pylist()
        for path in (layout.root / "predictions").rglob("*.parquet")
    }


@pytest.mark.parametrize("stage", ["text", "compressed", "wire"])
def test_a_killed_evaluation_goes_on_with_its_finished_parts(prepared, monkeypatch, caplog, stage):
    experiment, layout = prepared
    caplog.set_level("INFO", "latentwire")
    runs = {
        "text": (evaluate_module, partial(evaluate_text, experiment, layout, "llama")),
        "compressed": (compressed, partial(evaluate_compressed, experiment, layout, "llama")),
        "wire": (evaluate_module, partial(evaluate_wire, experiment, layout, 1)),
    }
    module, run = runs[stage]
    predict, parts = module.predict, []

    def counted(*arguments, **options):
        if len(parts) == stop_after:
            raise Interrupted(signal.SIGTERM)
        parts.append(predict(*arguments, **options))
        return parts[-1]

    monkeypatch.setattr(module, "predict", counted)
    stop_after = None
    run()
    whole, num_parts = rows_without_times(layout), len(parts)
    assert parts_left(caplog) == [*reversed(range(num_parts))]
    parts.clear()
    stop_after = 3
    with pytest.raises(Interrupted):
        run()
    stop_after = None
    caplog.clear()
    run()
    assert len(parts) == num_parts > 4
    assert parts_left(caplog) == [*reversed(range(num_parts - 3))]
    assert rows_without_times(layout) == whole
    assert not list(layout.state("any").parent.glob("evaluate*"))


def test_methods_of_a_wire_can_be_evaluated_at_once(prepared, monkeypatch):
    experiment, layout = prepared
    evaluate_wire(experiment, layout, 1)
    whole = rows_without_times(layout)
    methods = [Method.latent, Method.control_swap, Method.control_shuffled]
    outputs = [layout.predictions(method, "llama", "shared", 1) for method in methods]
    for output in outputs:
        output.unlink()
    predict, finished, waiting = evaluate_module.predict, [], methods[1:]

    def with_others_beside(*arguments, **options):
        # Once a part of the first is kept, the others begin and end.
        if finished and waiting:
            evaluate_wire(experiment, layout, 1, (waiting.pop(), "llama"))
        finished.append(predict(*arguments, **options))
        return finished[-1]

    monkeypatch.setattr(evaluate_module, "predict", with_others_beside)
    evaluate_wire(experiment, layout, 1, (methods[0], "llama"))
    assert rows_without_times(layout) == whole
    # Each writes its own file alone, as the others' may be under way.
    written = [path.stat().st_mtime_ns for path in outputs[1:]]
    evaluate_wire(experiment, layout, 1, (methods[0], "llama"))
    assert [path.stat().st_mtime_ns for path in outputs[1:]] == written


def parts_left(caplog):
    """What the progress of an evaluation says at each part."""
    found = (re.search(r"answered, (\d+) parts and some .* left", text) for text in caplog.messages)
    return [int(match[1]) for match in found if match]


def test_finished_parts_of_other_settings_are_not_used(prepared, monkeypatch):
    experiment, layout = prepared
    predict = evaluate_module.predict

    def num_parts_after_two_more(most_tokens):
        left = [None, None]

        def twice(*arguments, **options):
            if not left:
                raise Interrupted(signal.SIGTERM)
            left.pop()
            return predict(*arguments, **options)

        update = {"max_new_tokens": most_tokens}
        evaluation = experiment.evaluation.model_copy(update=update)
        own = experiment.model_copy(update={"evaluation": evaluation})
        with monkeypatch.context() as patch:
            patch.setattr(evaluate_module, "predict", twice)
            with pytest.raises(Interrupted):
                evaluate_text(own, layout, "llama")
        return len(list(layout.state("evaluate_text-llama").glob("*.parquet")))

    assert [num_parts_after_two_more(most) for most in (8, 8, 9)] == [2, 4, 2]
