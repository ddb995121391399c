"""The metrics table: every measured quantity with its interval over passages, in tidy form."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latentwire.config import COMPRESSOR_METHODS, Experiment, Method
from latentwire.files import whole_file
from latentwire.layout import NO_WIRE, Layout
from latentwire.statistics.bootstrap import Estimate, bootstrap_cis
from latentwire.statistics.clusters import Floats
from latentwire.statistics.inputs import TIMES, Answers, Guesses, read_answers, read_guesses

COLUMNS = (
    "experiment",
    "task",
    "method",
    "receiver",
    "sender",
    "wire",
    "target_ratio",
    "ratio",
    "source_mode",
    "question_aware",
    "seed",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "n_clusters",
)
ALL_TASKS = "all"
MEANS = {
    "em": "em",
    "f1": "f1",
    "nll": "nll",
    "first_token_accuracy": "first_token_correct",
    "source_tokens": "source_tokens",
    "prompt_tokens": "prompt_tokens",
    "payload_bytes": "payload_bytes",
    "source_gzip_bytes": "source_gzip_bytes",
} | {name: name for name in TIMES}
"""Metrics that are means over questions, and their prediction columns."""


@dataclass(frozen=True)
class Quantity:
    """A metric as sum(numerator) / sum(denominator) over examples.

    Attributes:
        numerator, denominator: `[examples]`.
    """

    metric: str
    numerator: Floats
    denominator: Floats


def write_metrics(experiment: Experiment, layout: Layout) -> None:
    """Writes `metrics.csv`: a row per task, method, receiver, target ratio, seed and metric.

    Intervals are percentile intervals of a bootstrap over passages, given the training seed. An
    empty value or interval is one that cannot be estimated: no variation between passages, a single
    passage, or a division by zero.

    Raises:
        UserError: if a prediction file is missing or does not hold what the configuration implies.
    """
    names = [receiver.name for receiver in experiment.receivers]
    guesses = [read_guesses(layout, name) for name in names if experiment.probe]
    classified = {own for guess in guesses for own in guess.example_ids.tolist()}
    rows = [
        row
        for name in names
        for row in _receiver_rows(experiment, read_answers(experiment, layout, name), classified)
    ]
    for guess in guesses:
        rows += _probe_rows(experiment, guess)
    with (
        whole_file(layout.metrics) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _receiver_rows(
    experiment: Experiment, answers: list[Answers], classified: set[str]
) -> Iterator[dict[str, object]]:
    """Rows of one receiver; those of accuracy are of the examples that the probe classifies."""
    is_classified = np.isin(answers[0].example_ids, list(classified)).astype(float)
    text_f1 = next(own.columns["f1"] for own in answers if own.method == Method.text)
    text_followed = _text_followed(answers)
    for task, members in _tasks(answers[0].tasks):
        measured = [
            (own, quantity)
            for own in answers
            for quantity in _quantities(own, text_f1, text_followed, is_classified, members)
        ]
        passages = answers[0].passages[members]
        estimates = _estimates(experiment, [quantity for _, quantity in measured], passages)
        for (own, quantity), estimate in zip(measured, estimates, strict=True):
            ratio = _measured_ratio(own, members)
            yield (
                {"experiment": experiment.experiment, "task": task}
                | _facts(own, ratio)
                | _values(quantity.metric, estimate)
            )


def _probe_rows(experiment: Experiment, guesses: Guesses) -> Iterator[dict[str, object]]:
    """How often the sender's label is found in its states, and in its own answer."""
    for task, members in _tasks(guesses.tasks):
        ones = np.ones(int(members.sum()))
        label_bytes = np.full(len(ones), float(guesses.label_bytes))
        measured = [
            (method, Quantity(metric, values, ones))
            for method, metric, values in (
                (Method.linear_probe, "accuracy", guesses.correct["linear_probe"][members]),
                (Method.linear_probe, "majority_accuracy", guesses.correct["majority"][members]),
                (
                    Method.linear_probe,
                    "shuffled_accuracy",
                    guesses.correct["shuffled_labels"][members],
                ),
                (Method.sender_label, "accuracy", guesses.correct["sender_label"][members]),
                (Method.sender_label, "payload_bytes", label_bytes),
            )
        ]
        passages = guesses.passages[members]
        estimates = _estimates(experiment, [quantity for _, quantity in measured], passages)
        for (method, quantity), estimate in zip(measured, estimates, strict=True):
            yield {
                "experiment": experiment.experiment,
                "task": task,
                "method": method.value,
                "receiver": guesses.sender,
                "sender": guesses.sender,
                "wire": NO_WIRE,
                "target_ratio": None,
                "ratio": None,
                "source_mode": "context",
                "question_aware": True,
                "seed": 0,
            } | _values(quantity.metric, estimate)


def _tasks(tasks: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """All examples, then those of each task."""
    yield ALL_TASKS, np.ones(len(tasks), dtype=bool)
    for task in np.unique(tasks):
        yield str(task), tasks == task


def _estimates(
    experiment: Experiment, quantities: list[Quantity], passages: np.ndarray
) -> list[Estimate]:
    return bootstrap_cis(
        np.column_stack([quantity.numerator for quantity in quantities]),
        np.column_stack([quantity.denominator for quantity in quantities]),
        clusters=passages,
        confidence=experiment.statistics.confidence,
        n_resamples=experiment.statistics.resamples,
        random_state=experiment.statistics.seed,
    )


def _text_followed(answers: list[Answers]) -> Floats | None:
    """Where the full text's answer followed a swapped one, 1 or 0; none if it was not asked."""
    for own in answers:
        if own.method == Method.control_swap and own.wire == NO_WIRE:
            return np.nan_to_num(own.columns["swap_followed"])
    return None


def _quantities(
    answers: Answers,
    text_f1: Floats,
    text_followed: Floats | None,
    is_classified: Floats,
    members: np.ndarray,
) -> list[Quantity]:
    columns = {name: values[members] for name, values in answers.columns.items()}
    ones = np.ones(int(members.sum()))
    quantities = [Quantity(metric, columns[name], ones) for metric, name in MEANS.items()]
    quantities.append(Quantity("relative_f1", columns["f1"], text_f1[members]))
    if is_classified[members].any():
        weight = is_classified[members]
        quantities.append(Quantity("accuracy", columns["em"] * weight, weight))
    if answers.method == Method.control_swap and text_followed is not None:
        followed = columns["swap_followed"]
        # A message can be followed no further than the text; the text wherever an answer changed.
        followable = (
            (~np.isnan(followed)).astype(float)
            if answers.wire == NO_WIRE
            else text_followed[members]
        )
        quantities.append(
            Quantity("swap_followed", np.nan_to_num(followed) * followable, followable)
        )
    if answers.method in COMPRESSOR_METHODS:
        quantities.append(Quantity("fell_back", columns["fell_back"], ones))
    if (positions := _positions(answers)) is not None:
        quantities.append(Quantity("ratio", columns["source_tokens"], positions[members]))
    return quantities


def _positions(answers: Answers) -> Floats | None:
    """Vectors or tokens in place of the source, `[examples]`; none where nothing stands for it."""
    soft_tokens, ratio = answers.columns["soft_tokens"], answers.columns["ratio"]
    if np.isnan(ratio).all():
        return None
    kept_tokens = np.nan_to_num(np.rint(answers.columns["source_tokens"] / ratio))
    return np.where(soft_tokens > 0, soft_tokens, kept_tokens)


def _measured_ratio(answers: Answers, members: np.ndarray) -> float | None:
    positions = _positions(answers)
    if positions is None or not positions[members].any():
        return None
    return float(answers.columns["source_tokens"][members].sum() / positions[members].sum())


def _facts(answers: Answers, ratio: float | None) -> dict[str, object]:
    return {
        "method": answers.method.value,
        "receiver": answers.receiver,
        "sender": answers.sender,
        "wire": answers.wire,
        "target_ratio": answers.target_ratio,
        "ratio": ratio,
        "source_mode": answers.source_mode,
        "question_aware": answers.question_aware,
        "seed": answers.seed,
    }


def _values(metric: str, estimate: Estimate) -> dict[str, object]:
    low, high = estimate.ci or (None, None)
    return {
        "metric": metric,
        "value": estimate.value,
        "ci_low": low,
        "ci_high": high,
        "n": estimate.n,
        "n_clusters": estimate.n_clusters,
    }
