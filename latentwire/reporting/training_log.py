"""Reading a wire's `metrics.jsonl`: time spent, and where an interrupted run went on."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from latentwire.errors import UserError

Row = dict[str, float]


def read_training_log(path: Path) -> list[Row]:
    """Reads a `metrics.jsonl`.

    Raises:
        UserError: if it is missing or malformed.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage `train-wire` first") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON lines: {error}; train the wire again") from error


def resumed_after(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows behind which another process went on: its clock starts at 0."""
    return [
        index
        for index, (row, following) in enumerate(itertools.pairwise(rows))
        if following["seconds"] < row["seconds"]
    ]


def minutes(rows: Sequence[Row]) -> list[float]:
    """Minutes of training at each row, over all processes; work that was lost is not counted."""
    resumes, before, spent = set(resumed_after(rows)), 0.0, []
    for index, row in enumerate(rows):
        spent.append((before + row["seconds"]) / 60)
        if index in resumes:
            before += row["seconds"]
    return spent
