"""The source `hub`: questions, and classifications as questions, from the Hugging Face hub.

An official split is the test split; dev articles are held out of the training split.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from latentwire.config import HubData, HubProbe
from latentwire.data.corpus import (
    Article,
    Corpus,
    Question,
    hold_out,
    make_articles,
    refuse_repeated_ids,
)
from latentwire.errors import UserError

Questions = Callable[[str, datasets.Dataset], Iterable[Question]]
"""What the rows of a split ask."""


def _squad_question(row: Mapping[str, Any]) -> Question:
    return Question(
        row["id"], row["title"], row["context"], row["question"], row["answers"]["text"]
    )


def _hotpotqa_question(row: Mapping[str, Any]) -> Question:
    """A question about ten paragraphs, `title: sentences` on a line each.

    The ten are drawn for this question alone and are its article. A single paragraph may occur in
    both official splits, which only dropping most of the training set could undo.
    """
    paragraphs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
    context = "\n".join(f"{title}: {''.join(sentences).strip()}" for title, sentences in paragraphs)
    return Question(row["id"], row["id"], context, row["question"], [row["answer"]])


def _each(question: Callable[[Mapping[str, Any]], Question]) -> Questions:
    return lambda _, rows: map(question, rows)


def _labels(text: str, label: str, question: str) -> Questions:
    """Questions for the name of the label, given its column and that of the text."""

    def questions(split: str, rows: datasets.Dataset) -> Iterable[Question]:
        names = rows.features[label].names
        for number, row in enumerate(rows):
            example_id = f"{split}-{number}"
            yield Question(example_id, example_id, row[text], question, [names[row[label]]])

    return questions


@dataclass(frozen=True)
class _Repository:
    """Where a dataset is, and what questions its rows ask."""

    repo_id: str
    questions: Questions
    licence: str = "CC BY-SA 4.0"
    subset: str | None = None
    test: str = "validation"


_REPOSITORIES = {
    "squad": _Repository("rajpurkar/squad", _each(_squad_question)),
    "squad_v2": _Repository("rajpurkar/squad_v2", _each(_squad_question)),
    "hotpotqa": _Repository("hotpotqa/hotpot_qa", _each(_hotpotqa_question), subset="distractor"),
    # The labels of its official test split are withheld.
    "sst2": _Repository(
        "stanfordnlp/sst2",
        _labels("sentence", "label", "Is the sentiment of this sentence negative or positive?"),
        licence="unknown",
    ),
    "ag_news": _Repository(
        "fancyzhx/ag_news",
        _labels("text", "label", "Is this news about World, Sports, Business or Sci/Tech?"),
        licence="unknown",
        test="test",
    ),
    "trec": _Repository(
        "CogComp/trec",
        _labels(
            "text",
            "coarse_label",
            "Does this ask for an abbreviation (ABBR), an entity (ENTY), a description (DESC), a "
            "human (HUM), a location (LOC) or a number (NUM)?",
        ),
        licence="unknown",
        test="test",
    ),
}


def read_hub(settings: HubData | HubProbe) -> Corpus:
    """Loads a dataset at its pinned revision.

    Raises:
        UserError: if it is neither in the local cache nor reachable.
    """
    section = "data" if isinstance(settings, HubData) else "probe"
    repository = _REPOSITORIES[settings.dataset]
    splits = load_at_revision(repository.repo_id, repository.subset, settings.revision, section)

    def articles(split: str) -> list[Article]:
        questions = [*repository.questions(split, splits[split])]
        refuse_repeated_ids((question.example_id for question in questions), repository.repo_id)
        return make_articles(questions, settings.dataset)

    train, dev = hold_out(articles("train"), settings.dev_share, settings.seed)
    return Corpus(
        name=repository.repo_id,
        licence=repository.licence,
        origin={
            "repository": repository.repo_id,
            "subset": repository.subset,
            "revision": settings.revision,
        },
        train=train,
        dev=dev,
        test=articles(repository.test),
    )


def load_at_revision(
    repo_id: str, subset: str | None, revision: str, section: str
) -> datasets.DatasetDict:
    """Loads all splits of a dataset.

    Args:
        section: the section of the configuration that asks for it.

    Raises:
        UserError: if it is neither in the local cache nor reachable.
    """
    try:
        return datasets.load_dataset(repo_id, subset, revision=revision)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        arguments = ", ".join(repr(argument) for argument in (repo_id, subset) if argument)
        raise UserError(
            f"{section}: cannot load {repo_id} at revision {revision}: {error}\n"
            f"Online, check {section}.revision. Without a network, load it once on a machine that "
            "has one and shares the cache (HF_HOME):\n"
            f'  python -c "import datasets; datasets.load_dataset({arguments}, '
            f"revision='{revision}')\"\n"
            f"or set {section}.source to one that needs no hub"
        ) from error
