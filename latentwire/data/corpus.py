"""What a data source hands over: articles in splits, and where they come from."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latentwire.data.tables import Example, group_by_passage
from latentwire.errors import UserError

Article = list[Example]
"""Examples that must stay in one split; those of one passage stand together."""


@dataclass(frozen=True)
class Question:
    """A question as a source has it, before passages are numbered."""

    example_id: str
    title: str
    context: str
    question: str
    answers: list[str]


@dataclass(frozen=True)
class Corpus:
    """Everything that a source holds, nothing dropped yet.

    Attributes:
        origin: what pins the source down: files with checksums, repository and revision, or seed.
    """

    name: str
    licence: str
    origin: dict[str, Any]
    train: list[Article]
    dev: list[Article]
    test: list[Article]


def make_articles(questions: Iterable[Question], task: str) -> list[Article]:
    """Groups questions by title and passage, in order of appearance.

    Passages are named `<title>/<number>`. References are kept in order, each once.
    """
    titles: dict[str, dict[str, list[Question]]] = {}
    for question in questions:
        titles.setdefault(question.title, {}).setdefault(question.context, []).append(question)
    return [
        [
            Example(
                example_id=question.example_id,
                passage_id=f"{title}/{number:04d}",
                context=context,
                question=question.question,
                answers=list(dict.fromkeys(question.answers)),
                task=task,
            )
            for number, (context, questions) in enumerate(passages.items())
            for question in questions
        ]
        for title, passages in titles.items()
    ]


def hold_out(
    articles: list[Article], share: float, seed: int
) -> tuple[list[Article], list[Article]]:
    """Parts articles, or the passages of a single article, into (kept, held out).

    Raises:
        UserError: if there is only one passage.
    """
    units = group_by_passage(articles[0]) if len(articles) == 1 else articles
    if len(units) < 2:
        raise UserError(
            f"data: cannot hold out dev questions from {len(units)} training passage(s); add "
            "passages, or give a file as data.dev"
        )
    number = min(len(units) - 1, max(1, round(share * len(units))))
    held_out = set(random.Random(f"{seed}/dev").sample(range(len(units)), number))
    kept = [unit for index, unit in enumerate(units) if index not in held_out]
    return kept, [units[index] for index in sorted(held_out)]


def refuse_repeated_ids(example_ids: Iterable[str], origin: str) -> None:
    """Raises a UserError if an id occurs twice."""
    repeated = [name for name, count in Counter(example_ids).items() if count > 1]
    if repeated:
        raise UserError(
            f"{origin}: {len(repeated)} example id(s) occur more than once, such as "
            f"{', '.join(repeated[:5])}; ids must differ within a file, rename or remove these"
        )
