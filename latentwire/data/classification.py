"""Classification views: examples whose only answer is one of few labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.config import HubProbe, PocketProbe
from latentwire.data.corpus import hold_out
from latentwire.data.hub_source import load_at_revision
from latentwire.data.pocket import RELATIONS
from latentwire.data.tables import Example, read_examples
from latentwire.errors import UserError
from latentwire.layout import Layout, Split

Splits = dict[Split, list[Example]]


@dataclass(frozen=True)
class _Repository:
    """Where a dataset is, its columns, and the question that its labels answer."""

    repo_id: str
    text: str
    label: str
    question: str
    test: str


_REPOSITORIES = {
    "sst2": _Repository(
        # The labels of the official test split are withheld.
        "stanfordnlp/sst2",
        "sentence",
        "label",
        "Is the sentiment of this sentence negative or positive?",
        "validation",
    ),
    "ag_news": _Repository(
        "fancyzhx/ag_news",
        "text",
        "label",
        "Is this news about World, Sports, Business or Sci/Tech?",
        "test",
    ),
    "trec": _Repository(
        "CogComp/trec",
        "text",
        "coarse_label",
        "Does this ask for an abbreviation (ABBR), an entity (ENTY), a description (DESC), a human "
        "(HUM), a location (LOC) or a number (NUM)?",
        "test",
    ),
}


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
    repository = _REPOSITORIES[settings.dataset]
    rows = load_at_revision(repository.repo_id, None, settings.revision, "probe")
    names = rows["train"].features[repository.label].names

    def examples(split: str) -> list[list[Example]]:
        return [
            [_example(row, f"{split}-{number}", names, repository, settings.dataset)]
            for number, row in enumerate(rows[split])
        ]

    train, dev = hold_out(examples("train"), settings.dev_share, settings.seed)
    test = examples(repository.test)
    return {
        "train": [own for group in train[: settings.max_train_examples] for own in group],
        "dev": [own for group in dev for own in group],
        "test": [own for group in test for own in group],
    }


def _example(
    row: Mapping[str, object],
    example_id: str,
    names: Sequence[str],
    repository: _Repository,
    task: str,
) -> Example:
    label = names[int(str(row[repository.label]))]
    text = str(row[repository.text])
    return Example(example_id, example_id, text, repository.question, [label], task)
