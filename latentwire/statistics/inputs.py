"""The prediction files that a configuration implies, checked and brought into one order."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentwire.config import Experiment, Method
from latentwire.errors import UserError
from latentwire.evaluation.predictions import PredictionRun, prediction_runs, read_predictions
from latentwire.files import read_json
from latentwire.layout import NO_WIRE, Layout
from latentwire.statistics.clusters import Floats

SCORES = ("em", "f1", "nll", "first_token_correct")
COUNTS = (
    "source_tokens",
    "prompt_tokens",
    "soft_tokens",
    "payload_bytes",
    "source_gzip_bytes",
)
PREDICTORS = ("linear_probe", "shuffled_labels", "majority", "sender_label")
TIMES = ("encode_seconds", "answer_seconds")


@dataclass(frozen=True)
class Answers:
    """The rows of one method on one receiver at one target ratio and seed, sorted by example.

    Attributes:
        seed: training seed of the wire; 0 for methods without one.
        example_ids, passages, tasks: `[examples]`.
        columns: `[examples]` for each of SCORES, COUNTS and TIMES, `ratio`, which is NaN where
            nothing stands for the source, `swap_followed`, NaN where no answer was swapped, and
            `fell_back`.
    """

    method: Method
    receiver: str
    sender: str
    wire: str
    target_ratio: float | None
    source_mode: str
    question_aware: bool
    seed: int
    example_ids: NDArray[np.str_]
    passages: NDArray[np.str_]
    tasks: NDArray[np.str_]
    columns: dict[str, Floats]


@dataclass(frozen=True)
class Guesses:
    """The labels that a sender's probe, and what it is compared with, give to test examples.

    Attributes:
        example_ids, passages, tasks: `[examples]`.
        correct: by predictor `[examples]`, 1 where its label is right.
        label_bytes: size of a label as a message.
    """

    sender: str
    example_ids: NDArray[np.str_]
    passages: NDArray[np.str_]
    tasks: NDArray[np.str_]
    correct: dict[str, Floats]
    label_bytes: int


def read_guesses(layout: Layout, sender: str) -> Guesses:
    """The outcome of a sender's probe.

    Raises:
        UserError: if it is missing or malformed.
    """
    path = layout.probe(sender)
    label_bytes = read_json(path.with_suffix(".json"))["label_bytes"]
    try:
        rows = pq.read_table(path)
        labels = _strings(rows, "label")
        return Guesses(
            sender,
            _strings(rows, "example_id"),
            _strings(rows, "passage_id"),
            _strings(rows, "task"),
            {name: (_strings(rows, name) == labels).astype(float) for name in PREDICTORS},
            label_bytes,
        )
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(
            f"{path} is not the outcome of a probe: {error}; run the stage `probe` again"
        ) from error


def read_answers(experiment: Experiment, layout: Layout, receiver: str) -> list[Answers]:
    """All answers of a receiver; every entry holds the same examples in the same order.

    Raises:
        UserError: if a file that the configuration implies is missing or malformed, lacks examples
            or target ratios that it should hold, repeats an example, or holds a score that is not a
            number.
    """
    answers: list[Answers] = []
    for run in prediction_runs(experiment, receiver):
        path = layout.predictions(run.method, receiver, run.wire, run.seed)
        table = read_predictions(path)
        _check_parts(run, table, path)
        for sender, target_ratio in product(run.senders, run.target_ratios):
            rows = _rows(table, sender, target_ratio)
            answers.append(_answers(rows, run.method, receiver, run.seed, target_ratio, path))
            _check_same_examples(answers[0], answers[-1], path)
    return answers


def _check_parts(run: PredictionRun, table: pa.Table, path: Path) -> None:
    for column, key, wanted in (
        ("target ratio", "wire.target_ratios", run.target_ratios),
        ("sender", "wire.senders.names", run.senders),
    ):
        found = table[column.replace(" ", "_")].unique().to_pylist()
        if set(found) != set(wanted):
            raise UserError(
                f"{path} holds the {column}s {found}, but the configuration ({key}) asks for "
                f"{[*wanted]}; run the stage `evaluate` again"
            )


def _rows(table: pa.Table, sender: str, target_ratio: float | None) -> pa.Table:
    columns = (table[name].to_pylist() for name in ("sender", "target_ratio"))
    wanted = [own == (sender, target_ratio) for own in zip(*columns, strict=True)]
    return table.filter(pa.array(wanted)).sort_by("example_id")


def _answers(
    rows: pa.Table,
    method: Method,
    receiver: str,
    seed: int,
    target_ratio: float | None,
    path: Path,
) -> Answers:
    example_ids = _strings(rows, "example_id")
    if len(np.unique(example_ids)) != len(example_ids):
        raise UserError(f"{path} repeats an example at target ratio {target_ratio}; evaluate again")
    return Answers(
        method=method,
        receiver=receiver,
        sender=rows["sender"][0].as_py() or "",
        wire=rows["wire"][0].as_py() or NO_WIRE,
        target_ratio=target_ratio,
        source_mode=rows["source_mode"][0].as_py() or "",
        question_aware=bool(rows["question_aware"][0].as_py()),
        seed=seed,
        example_ids=example_ids,
        passages=_strings(rows, "passage_id"),
        tasks=_strings(rows, "task"),
        columns={name: _numbers(rows, name, path) for name in (*SCORES, *COUNTS, *TIMES)}
        | {name: _float_column(rows, name) for name in ("ratio", "swap_followed", "fell_back")},
    )


def _strings(rows: pa.Table, name: str) -> NDArray[np.str_]:
    return np.array(rows[name].to_pylist(), dtype=np.str_)


def _numbers(rows: pa.Table, name: str, path: Path) -> Floats:
    values = _float_column(rows, name)
    if not np.isfinite(values).all():
        worst = rows["example_id"][int(np.argmin(np.isfinite(values)))].as_py()
        raise UserError(
            f"{path}: {name} is missing or not a finite number for example {worst!r}; "
            "run the stage `evaluate` again"
        )
    if name == "em" and not np.isin(values, (0, 1)).all():
        raise UserError(f"{path}: em must be 0 or 1; run the stage `evaluate` again")
    return values


def _float_column(rows: pa.Table, name: str) -> Floats:
    """Null becomes NaN."""
    return rows[name].cast(pa.float64()).to_numpy()


def _check_same_examples(reference: Answers, answers: Answers, path: Path) -> None:
    expected, found = set(reference.example_ids), set(answers.example_ids)
    if expected != found:
        examples = sorted(map(str, expected ^ found))
        raise UserError(
            f"{path}: at target ratio {answers.target_ratio} {len(expected - found)} examples are "
            f"missing and {len(found - expected)} are too many compared with the method "
            f"{reference.method.value!r}, for example {examples[:3]}; run `evaluate` again"
        )
    for name in ("passages", "tasks"):
        if not np.array_equal(getattr(reference, name), getattr(answers, name)):
            raise UserError(
                f"{path}: {name} differ from those of the method {reference.method.value!r}; "
                "run the stage `evaluate` again"
            )
