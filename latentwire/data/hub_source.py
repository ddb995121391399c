"""The source `hub`: SQuAD v1.1, SQuAD v2.0 and HotpotQA from the Hugging Face hub or its cache.

The official validation split is the test split; dev articles are held out of the training split.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from latentwire.config import HubData
from latentwire.data.corpus import (
    Article,
    Corpus,
    Question,
    hold_out,
    make_articles,
    refuse_repeated_ids,
)
from latentwire.errors import UserError


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


@dataclass(frozen=True)
class _Repository:
    repo_id: str
    subset: str | None
    licence: str
    question: Callable[[Mapping[str, Any]], Question]


_REPOSITORIES = {
    "squad": _Repository("rajpurkar/squad", None, "CC BY-SA 4.0", _squad_question),
    "squad_v2": _Repository("rajpurkar/squad_v2", None, "CC BY-SA 4.0", _squad_question),
    "hotpotqa": _Repository("hotpotqa/hotpot_qa", "distractor", "CC BY-SA 4.0", _hotpotqa_question),
}


def read_hub(settings: HubData) -> Corpus:
    """Loads a dataset at its pinned revision.

    Raises:
        UserError: if it is neither in the local cache nor reachable.
    """
    repository = _REPOSITORIES[settings.dataset]
    splits = load_at_revision(repository.repo_id, repository.subset, settings.revision, "data")
    train, dev = hold_out(
        _articles(splits["train"], repository, settings.dataset), settings.dev_share, settings.seed
    )
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
        test=_articles(splits["validation"], repository, settings.dataset),
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


def _articles(rows: datasets.Dataset, repository: _Repository, task: str) -> list[Article]:
    questions = [repository.question(row) for row in rows]
    refuse_repeated_ids((question.example_id for question in questions), repository.repo_id)
    return make_articles(questions, task)
