"""The source `pocket`: passages of the procedural corpus as examples."""

from collections.abc import Iterable
from itertools import chain, islice

from latentwire.config import PocketData
from latentwire.data.corpus import Article, Corpus
from latentwire.data.pocket import HELD_OUT_NAMES, Passage, full_length_passages, mixed_passages
from latentwire.data.tables import Example

TASK = "pocket"
UNSEEN_NAMES_TASK = "pocket_unseen_names"


def read_pocket(settings: PocketData) -> Corpus:
    """Draws the splits; every split has a random stream of its own.

    The second half of the test passages is about people whose names no other split contains.
    """
    num_unseen = settings.test_passages // 2
    num_full_length = round(settings.full_length_share * settings.train_passages)
    train = chain(
        islice(mixed_passages(f"{settings.seed}/train"), settings.train_passages - num_full_length),
        islice(full_length_passages(f"{settings.seed}/train_full_length"), num_full_length),
    )
    dev = islice(full_length_passages(f"{settings.seed}/dev"), settings.dev_passages)
    seen = islice(
        full_length_passages(f"{settings.seed}/test"), settings.test_passages - num_unseen
    )
    unseen = islice(
        full_length_passages(f"{settings.seed}/test_unseen_names", HELD_OUT_NAMES), num_unseen
    )
    return Corpus(
        name="pocket: procedural questions about invented people",
        licence="Apache-2.0",
        origin={"seed": settings.seed},
        train=_articles(train, "train"),
        dev=_articles(dev, "dev"),
        test=[
            *_articles(seen, "test"),
            *_articles(unseen, "test", settings.test_passages - num_unseen, UNSEEN_NAMES_TASK),
        ],
    )


def _articles(
    passages: Iterable[Passage], split: str, first_number: int = 0, task: str = TASK
) -> list[Article]:
    return [
        _article(passage, f"{split}-{number:05d}", task)
        for number, passage in enumerate(passages, start=first_number)
    ]


def _article(passage: Passage, passage_id: str, task: str) -> Article:
    context = passage.context
    return [
        Example(
            f"{passage_id}-{number:02d}", passage_id, context, fact.question, [fact.value], task
        )
        for number, fact in enumerate(passage.facts)
    ]
