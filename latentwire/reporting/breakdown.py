"""F1 on parts of the test questions: by task, by length of the source, by kind of question."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentwire.config import Experiment, Method
from latentwire.reporting.scores import Mean
from latentwire.reporting.series import Series, means
from latentwire.statistics.clusters import Floats
from latentwire.statistics.inputs import Answers

LENGTH, WORD = "source tokens", "question word"
NUM_LENGTHS = 3
_QUESTION_WORD = re.compile(r"\b(what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """F1 of a series on some of the questions.

    Attributes:
        grouping, group: what the questions are divided by, and what these have in common.
        n, n_clusters: these questions, and their passages.
    """

    grouping: str
    group: str
    series: Series
    f1: Mean
    n: int
    n_clusters: int


def break_down(
    experiment: Experiment, series: Sequence[Series], questions: Mapping[str, str]
) -> list[Part]:
    """Every series on every part of the questions of its receiver.

    Args:
        questions: the text of each question by example id.
    """
    return [
        part
        for receiver in dict.fromkeys(own.receiver for own in series)
        for part in _parts(
            experiment, [own for own in series if own.receiver == receiver], questions
        )
    ]


def _parts(
    experiment: Experiment, series: Sequence[Series], questions: Mapping[str, str]
) -> Iterator[Part]:
    (text,) = next(own.runs for own in series if own.method == Method.text)
    for grouping, group, members in _groups(text, questions):
        num_passages = len(np.unique(text.passages[members]))
        quality = means(experiment, [own.runs for own in series], text, members)
        for own, own_quality in zip(series, quality, strict=True):
            yield Part(grouping, group, own, own_quality["f1"], int(members.sum()), num_passages)


def _groups(
    text: Answers, questions: Mapping[str, str]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Grouping, group and the examples in it, in the order in which they are shown."""
    for task in np.unique(text.tasks):
        yield "task", str(task), text.tasks == task
    tokens = text.columns["source_tokens"]
    bins = length_bins(tokens)
    for index in np.unique(bins):
        members = bins == index
        yield LENGTH, f"{tokens[members].min():.0f} to {tokens[members].max():.0f}", members
    words = np.array([question_word(questions[str(own)]) for own in text.example_ids])
    for word in np.unique(words):
        yield WORD, str(word), words == word


def question_word(question: str) -> str:
    """The first question word, in lower case; `other` without one."""
    found = _QUESTION_WORD.search(question)
    return found[1].lower() if found else "other"


def length_bins(num_tokens: Floats) -> NDArray[np.int_]:
    """Which of NUM_LENGTHS ranges, of like numbers of sources, each source falls in."""
    limits = np.quantile(num_tokens, np.arange(1, NUM_LENGTHS) / NUM_LENGTHS)
    return np.searchsorted(limits, num_tokens)
