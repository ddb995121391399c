"""The prepared tables: one row per question, grouped by passage."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from latentwire.data.source import with_question
from latentwire.errors import UserError
from latentwire.files import whole_file

SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answers", pa.list_(pa.string()), nullable=False),
        pa.field("task", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Example:
    """A question about a passage; no answers means that it is unanswerable."""

    example_id: str
    passage_id: str
    context: str
    question: str
    answers: list[str]
    task: str


def source_text(example: Example, source_mode: str) -> str:
    """What is compressed: the passage, or passage and question."""
    if source_mode == "context":
        return example.context
    return with_question(example.context, example.question)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    table = pa.Table.from_pylist([vars(example) for example in examples], schema=SCHEMA)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_examples(path: Path) -> list[Example]:
    """Reads a prepared table.

    Raises:
        UserError: if the file is missing, is not Parquet, or lacks a column.
    """
    try:
        table = pq.read_table(path, columns=SCHEMA.names)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage `prepare` first") from None
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path} is not a prepared table: {error}") from error
    return [Example(**row) for row in table.to_pylist()]


def group_by_passage(examples: Iterable[Example]) -> list[list[Example]]:
    """The examples of each passage; rows of one passage stand together in a prepared table."""
    return [list(group) for _, group in groupby(examples, key=lambda example: example.passage_id)]
