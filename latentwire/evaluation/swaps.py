"""Passages in which each answer gives way to a like one: who reads the passage answers the new."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentwire.data.tables import Example, group_by_passage

_MOST_PREFIX_WORDS = 8


@dataclass(frozen=True)
class Swaps:
    """Questions about changed passages.

    Attributes:
        examples: all questions, with the passages changed; references stay as they were.
        answers: by example id what now stands where the answer stood, for those that gave way.
    """

    examples: list[Example]
    answers: dict[str, str]


def swap_answers(examples: Sequence[Example], seed: int) -> Swaps:
    """Puts answers to like questions elsewhere in the place of a passage's own.

    Questions are the more alike the more words, names aside, they begin with in common. An answer
    stays if the passage does not hold it as whole words, if it overlaps another answer of the
    passage, or if there is none to take its place.

    Args:
        examples: the questions of each passage, side by side.
        seed: seed of the choice among equally like questions.
    """
    answers = _answers_by_prefix(examples)
    draw = random.Random(seed)
    swapped: list[Example] = []
    taken: dict[str, str] = {}
    for group in group_by_passage(examples):
        swaps = _choose(group, answers, draw)
        context = _replace(group[0].context, swaps)
        swapped += [replace(example, context=context) for example in group]
        taken |= {
            example.example_id: swaps[example.answers[0]]
            for example in group
            if example.answers and example.answers[0] in swaps
        }
    return Swaps(swapped, taken)


def _answers_by_prefix(examples: Sequence[Example]) -> dict[tuple[str, ...], list[str]]:
    """The answers to all questions that begin with some words."""
    answers: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for example in examples:
        if example.answers:
            words = _words(example.question)
            for length in range(len(words) + 1):
                answers[words[:length]].setdefault(example.answers[0])
    return {prefix: list(found) for prefix, found in answers.items()}


def _words(question: str) -> tuple[str, ...]:
    """The first words of a question, less those in capitals after the first: names."""
    first, *others = question.split() or [""]
    kept = (first, *(word for word in others if word == word.lower()))
    return kept[:_MOST_PREFIX_WORDS]


def _choose(
    group: Sequence[Example], answers: dict[tuple[str, ...], list[str]], draw: random.Random
) -> dict[str, str]:
    """What takes the place of which answer of a passage."""
    context = group[0].context
    questions = {example.answers[0]: example.question for example in group if example.answers}
    swaps: dict[str, str] = {}
    for answer, question in questions.items():
        overlaps = any(answer in other or other in answer for other in questions if other != answer)
        if overlaps or not _whole(answer).search(context):
            continue
        words = _words(question)
        for length in range(len(words), 0, -1):
            free = [
                other
                for other in answers[words[:length]]
                if other not in context and other not in swaps.values()
            ]
            if free:
                swaps[answer] = draw.choice(free)
                break
    return swaps


def _replace(context: str, swaps: dict[str, str]) -> str:
    if not swaps:
        return context
    any_of_them = re.compile("|".join(_whole(answer).pattern for answer in swaps))
    return any_of_them.sub(lambda match: swaps[match[0]], context)


def _whole(answer: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
