"""The data card: what the prepared tables hold, and what was left out and why."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from latentwire.config import Experiment
from latentwire.data.corpus import Corpus
from latentwire.data.lengths import Reader
from latentwire.data.selection import SPLITS, Selection, count
from latentwire.data.tables import Example, source_text


def make_card(
    corpus: Corpus, selection: Selection, experiment: Experiment, readers: Sequence[Reader]
) -> dict[str, Any]:
    """The card as plain values for JSON."""
    return {
        "source": corpus.name,
        "licence": corpus.licence,
        "origin": corpus.origin,
        "source_mode": experiment.wire.source_mode,
        "splits": {
            split: {
                "questions": count(selection.examples[split]).questions,
                "passages": count(selection.examples[split]).passages,
                "unanswerable": sum(not example.answers for example in selection.examples[split]),
                "tasks": dict(Counter(example.task for example in selection.examples[split])),
                "read": vars(selection.read[split]),
                "dropped": {
                    reason: vars(lost) for reason, lost in selection.dropped[split].items()
                },
                "source_tokens": {
                    reader.name: _summarise(
                        reader, experiment.wire.source_mode, selection.examples[split]
                    )
                    for reader in readers
                },
            }
            for split in SPLITS
        },
    }


def render_card(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    splits = card["splits"]
    counts = [
        [split, *(f"{values[key]:,}" for key in ("questions", "passages", "unanswerable"))]
        for split, values in splits.items()
    ]
    tasks = [
        [split, task, f"{questions:,}"]
        for split, values in splits.items()
        for task, questions in values["tasks"].items()
    ]
    dropped = [
        [split, reason, f"{lost['questions']:,}", f"{lost['passages']:,}"]
        for split, values in splits.items()
        for reason, lost in values["dropped"].items()
    ]
    read = " and ".join(
        f"{values['read']['questions']:,} questions for {split}" for split, values in splits.items()
    )
    lengths = [
        [split, reader, *(f"{summary[key]:,}" for key in ("median", "p95", "max"))]
        for split, values in splits.items()
        for reader, summary in values["source_tokens"].items()
    ]
    return "\n".join(
        [
            "# Data card",
            "",
            f"Source: {card['source']}. Licence: {card['licence']}.",
            "",
            *_origin_lines(card["origin"]),
            "",
            "## Counts",
            "",
            *_table(["split", "questions", "passages", "unanswerable"], counts),
            "",
            *_table(["split", "task", "questions"], tasks),
            "",
            "## Left out",
            "",
            f"Read: {read}.",
            "",
            *(
                _table(["split", "reason", "questions", "whole passages"], dropped)
                if dropped
                else ["Nothing was left out."]
            ),
            "",
            f"## Tokens of the source ({card['source_mode']})",
            "",
            *_table(["split", "tokenizer of", "median", "95th percentile", "longest"], lengths),
            "",
        ]
    )


def _summarise(reader: Reader, source_mode: str, examples: Sequence[Example]) -> dict[str, int]:
    """Lengths over the different sources: passages, or questions where the source holds them."""
    sources = dict.fromkeys(source_text(example, source_mode) for example in examples)
    lengths = reader.num_tokens(sources)
    return {
        "median": int(np.percentile(lengths, 50, method="higher")),
        "p95": int(np.percentile(lengths, 95, method="higher")),
        "max": max(lengths),
    }


def _origin_lines(origin: dict[str, Any]) -> list[str]:
    files = origin.get("files")
    if files:
        rows = [
            [key, file["path"], f"{file['questions']:,}", file["sha256"]]
            for key, file in files.items()
        ]
        return _table(["split", "file", "questions", "SHA-256"], rows)
    return [f"* {key}: {value}" for key, value in origin.items() if value is not None]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    ]
