"""Classification views: examples whose only answer is one of few labels."""

import re
from itertools import chain

from latentwire.config import HubProbe, PocketProbe
from latentwire.data.hub_source import read_hub
from latentwire.data.pocket import RELATIONS
from latentwire.data.tables import Example, read_examples
from latentwire.errors import UserError
from latentwire.layout import Layout, Split

Splits = dict[Split, list[Example]]


def read_classification(settings: PocketProbe | HubProbe, layout: Layout) -> Splits:
    """The splits of a view. Labels that train lacks can only be got wrong.

    Raises:
        UserError: if the data are missing, a split is empty, or train has a single label.
    """
    splits = _pocket(settings, layout) if isinstance(settings, PocketProbe) else _from_hub(settings)
    for split, examples in splits.items():
        if not examples:
            raise UserError(f"probe: no examples in {split}; probe another dataset or attribute")
    if len({example.answers[0] for example in splits["train"]}) < 2:
        raise UserError("probe.max_train_examples: too few for two labels in train; give more")
    return splits


def _pocket(settings: PocketProbe, layout: Layout) -> Splits:
    (relation,) = (own for own in RELATIONS if own.name == settings.attribute)
    wordings = "|".join(
        re.escape(question).replace(re.escape("{name}"), r"\w+") for question in relation.questions
    )
    splits: Splits = {
        split: [own for own in read_examples(layout.split(split)) if _asks(wordings, own)]
        for split in ("train", "dev", "test")
    }
    return splits | {"train": splits["train"][: settings.max_train_examples]}


def _asks(wordings: str, example: Example) -> bool:
    return re.fullmatch(wordings, example.question) is not None


def _from_hub(settings: HubProbe) -> Splits:
    corpus = read_hub(settings)
    return {
        "train": list(chain.from_iterable(corpus.train))[: settings.max_train_examples],
        "dev": list(chain.from_iterable(corpus.dev)),
        "test": list(chain.from_iterable(corpus.test)),
    }
