"""Which questions of a corpus are used; whatever is left out is counted with its reason."""

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from latentwire.data.corpus import Corpus
from latentwire.data.tables import Example, group_by_passage
from latentwire.errors import UserError
from latentwire.layout import Split

SPLITS: tuple[Split, ...] = ("train", "dev", "test")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Count:
    questions: int
    passages: int


def count(examples: Sequence[Example]) -> Count:
    return Count(len(examples), len({example.passage_id for example in examples}))


class Selection:
    """The examples of each split, and the account of those that were dropped.

    Attributes:
        examples: what is left of each split.
        read: what each split held at first.
        dropped: for each split, what every reason cost.
    """

    def __init__(self, corpus: Corpus) -> None:
        articles = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
        self.examples = {
            split: [example for article in articles[split] for example in article]
            for split in SPLITS
        }
        self.read = {split: count(self.examples[split]) for split in SPLITS}
        self.dropped: dict[Split, dict[str, Count]] = {split: {} for split in SPLITS}

    def drop(self, split: Split, reason: str, unwanted: Iterable[Example]) -> None:
        """Drops examples and counts them under the reason."""
        ids = {example.example_id for example in unwanted}
        if not ids:
            return
        before = count(self.examples[split])
        self.examples[split] = [
            example for example in self.examples[split] if example.example_id not in ids
        ]
        after = count(self.examples[split])
        lost = Count(before.questions - after.questions, before.passages - after.passages)
        self.dropped[split][reason] = lost
        logger.info("%s: dropped %d of %d: %s", split, lost.questions, before.questions, reason)

    def refuse_empty_splits(self) -> None:
        """Raises a UserError that accounts for what an empty split has lost."""
        for split in SPLITS:
            if not self.examples[split]:
                account = "; ".join(
                    f"{lost.questions} dropped: {reason}"
                    for reason, lost in self.dropped[split].items()
                )
                raise UserError(
                    f"the {split} split is empty: {self.read[split].questions} questions read"
                    f"{'; ' + account if account else ''}. Change `data` or `length` so that "
                    "questions remain"
                )


def drop_duplicates(selection: Selection) -> None:
    """Keeps every passage in one split and every question of a passage once.

    Test keeps its passages, dev those that are not in test, train those that are in neither.
    Passages and questions that differ in case or white space only are the same.
    """
    for split in SPLITS:
        selection.examples[split] = _merge_passages(selection.examples[split])
    precedence: list[tuple[Split, Split]] = [("dev", "test"), ("train", "test"), ("train", "dev")]
    for split, other in precedence:
        shared = _shared_examples(selection.examples[split], selection.examples[other])
        selection.drop(split, f"passage also in {other}", shared)
    for split in SPLITS:
        repeated = _repeated_questions(selection.examples[split])
        selection.drop(split, "question asked before of the passage", repeated)


def limit_questions(selection: Selection, split: Split, limit: int | None, seed: int) -> None:
    """Keeps whole passages, drawn at random, up to a number of questions.

    Raises:
        UserError: if not even one passage fits.
    """
    if limit is None or len(selection.examples[split]) <= limit:
        return
    passages = group_by_passage(selection.examples[split])
    random.Random(f"{seed}/{split}").shuffle(passages)
    totals = accumulate(len(passage) for passage in passages)
    num_chosen = sum(total <= limit for total in totals)
    key = f"max_{split}_questions"
    if not num_chosen:
        raise UserError(
            f"data.{key}: {limit} is less than the {len(passages[0])} questions of one passage; "
            "whole passages are kept, so allow more"
        )
    rest = [example for passage in passages[num_chosen:] for example in passage]
    selection.drop(split, f"above {key}", rest)


def _merge_passages(examples: Sequence[Example]) -> list[Example]:
    """Gives equal contexts one passage id, and puts the rows of a passage together."""
    passages: dict[str, list[Example]] = {}
    for example in examples:
        rows = passages.setdefault(example.context, [])
        same = not rows or rows[0].passage_id == example.passage_id
        rows.append(example if same else replace(example, passage_id=rows[0].passage_id))
    return [example for rows in passages.values() for example in rows]


def _shared_examples(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    taken = set(map(_normalise, _contexts(others)))
    shared = {context for context in _contexts(examples) if _normalise(context) in taken}
    return [example for example in examples if example.context in shared]


def _repeated_questions(examples: Sequence[Example]) -> list[Example]:
    """All but the first of the questions that a passage holds more than once."""
    seen: set[tuple[str, str]] = set()
    repeated = []
    for example in examples:
        key = (example.passage_id, _normalise(example.question))
        if key in seen:
            repeated.append(example)
        seen.add(key)
    return repeated


def _contexts(examples: Iterable[Example]) -> set[str]:
    return {example.context for example in examples}


def _normalise(text: str) -> str:
    return " ".join(text.split()).casefold()
