"""The prediction tables: one row per test question and target ratio, for one method."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from latentwire.config import Experiment, Method
from latentwire.errors import UserError
from latentwire.files import whole_file
from latentwire.layout import NO_WIRE

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("passage_id", pa.string()),
        ("task", pa.string()),
        ("prediction", pa.string()),
        ("em", pa.float64()),
        ("f1", pa.float64()),
        ("nll", pa.float64()),
        ("first_token_correct", pa.float64()),
        ("source_tokens", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("soft_tokens", pa.int64()),
        ("source_bytes", pa.int64()),
        ("source_gzip_bytes", pa.int64()),
        ("payload_bytes", pa.int64()),
        ("encode_seconds", pa.float64()),
        ("answer_seconds", pa.float64()),
        ("wire", pa.string()),
        ("sender", pa.string()),
        ("target_ratio", pa.float64()),
        ("ratio", pa.float64()),
        ("source_mode", pa.string()),
        ("question_aware", pa.bool_()),
        ("swap_followed", pa.float64()),
        ("fell_back", pa.bool_()),
    ]
)


WITHOUT_RATIO = (Method.text, Method.closed_book, Method.control_swap)
"""Methods that have no target ratio where there is no wire."""


@dataclass(frozen=True)
class PredictionRun:
    """One prediction file of a receiver, and what it must hold.

    Attributes:
        target_ratios: at each of these every example, from every sender.
        senders: the models that messages come from; one that is empty where there is none.
    """

    method: Method
    wire: str
    seed: int
    target_ratios: list[float | None]
    senders: tuple[str, ...] = ("",)


def prediction_runs(experiment: Experiment, receiver: str) -> list[PredictionRun]:
    """The prediction files of a receiver, the text's first."""
    budgets: list[float | None] = [float(ratio) for ratio in experiment.wire.target_ratios]
    texts = [
        PredictionRun(method, NO_WIRE, 0, [None] if method in WITHOUT_RATIO else budgets)
        for method in sorted(
            experiment.evaluation.text_methods + experiment.evaluation.compressor_methods,
            key=Method.text.__ne__,
        )
    ]
    senders = tuple(experiment.senders)
    if senders:
        texts += [
            PredictionRun(Method.text_relay, NO_WIRE, 0, [None, *budgets], senders),
            PredictionRun(Method.sender_alone, NO_WIRE, 0, [None], senders),
        ]
    return texts + [
        PredictionRun(
            method,
            own.wire.name,
            seed,
            [float(ratio) for ratio in own.wire.target_ratios],
            tuple(own.wire.sender_names) or ("",),
        )
        for own in map(experiment.of_wire, experiment.wires)
        if receiver in [reader.name for reader in own.readers]
        for method in own.evaluation.wire_methods
        for seed in own.seeds
    ]


@dataclass(frozen=True)
class Prediction:
    """One answer and what it cost.

    Attributes:
        em, f1: official SQuAD scores against the original references, 0 to 1.
        nll: mean -log p per token of the first reference, end of sequence included.
        first_token_correct: 1 if the most likely first token starts any reference.
        source_tokens: the receiver's tokens of the whole source text, no special tokens.
        prompt_tokens: positions that the receiver reads before it answers, soft tokens included.
        soft_tokens: vectors inserted in place of the source; 0 for text methods.
        source_bytes: UTF-8 bytes of the whole source text.
        source_gzip_bytes: the same, compressed by gzip on its own.
        payload_bytes: bytes sent: UTF-8 of the text sent, or the latents' byte form.
        encode_seconds: wall time of writing the message, or shortening the text, divided by the
            questions about it; of sources that are written together, their mean.
        answer_seconds: wall time of the batch's generation, divided by its questions.
        target_ratio: the ratio asked for; none where the method has none.
        ratio: this row's source_tokens over the positions that stand for the source; none where
            nothing stands for it.
        swap_followed: 1 if the answer is what was put in the place of the original one; none where
            nothing was.
        fell_back: whether a compressor left nothing, so that the head of the text was sent.
    """

    example_id: str
    passage_id: str
    task: str
    prediction: str
    em: float
    f1: float
    nll: float
    first_token_correct: float
    source_tokens: int
    prompt_tokens: int
    soft_tokens: int
    source_bytes: int
    source_gzip_bytes: int
    payload_bytes: int
    encode_seconds: float
    answer_seconds: float
    wire: str
    sender: str
    target_ratio: float | None
    ratio: float | None
    source_mode: str
    question_aware: bool
    swap_followed: float | None
    fell_back: bool


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    table = pa.Table.from_pylist([vars(prediction) for prediction in predictions], schema=SCHEMA)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_predictions(path: Path) -> pa.Table:
    """Reads a prediction table.

    Raises:
        UserError: if the file is missing or lacks a column.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage `evaluate` first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a prediction table: {error}") from error
    if missing := set(SCHEMA.names) - set(table.column_names):
        raise UserError(
            f"{path} lacks the columns {sorted(missing)}; remove it and run the stage `evaluate`"
        )
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} holds a column of the wrong type: {error}") from error
