"""The stage `prepare`: any source to the prepared tables and their data card."""

import logging

from latentwire.config import Data, Experiment, HubData, JsonData, PocketData
from latentwire.data.card import make_card, render_card
from latentwire.data.corpus import Corpus
from latentwire.data.lengths import apply_length_policy, open_readers
from latentwire.data.selection import SPLITS, Selection, drop_duplicates, limit_questions
from latentwire.data.tables import write_examples
from latentwire.files import write_json, write_text
from latentwire.layout import Layout

logger = logging.getLogger(__name__)


def prepare(experiment: Experiment, layout: Layout) -> None:
    """Writes `data/{train,dev,test}.parquet`, `data/card.json` and `data/card.md`.

    Runs after the receivers, whose tokenizers and windows the length policy needs. The same
    configuration, files and library versions give the same bytes.

    Raises:
        UserError: if the data cannot be read, a split is empty, or a source is too long and the
            policy says so.
    """
    readers = open_readers(experiment, layout)
    corpus = _read(experiment.data)
    selection = Selection(corpus)
    drop_duplicates(selection)
    _limit(selection, experiment.data)
    apply_length_policy(selection, experiment, readers)
    selection.refuse_empty_splits()
    card = make_card(corpus, selection, experiment, readers)
    for split in SPLITS:
        write_examples(layout.split(split), selection.examples[split])
        logger.info(
            "%s: %d questions about %d passages",
            split,
            card["splits"][split]["questions"],
            card["splits"][split]["passages"],
        )
    write_json(layout.data_card, card)
    write_text(layout.data_card.with_suffix(".md"), render_card(card))


def _read(data: Data) -> Corpus:
    # A source's libraries are loaded only where it is used.
    match data:
        case PocketData():
            from latentwire.data.pocket_source import read_pocket

            return read_pocket(data)
        case JsonData():
            from latentwire.data.file_source import read_files

            return read_files(data)
        case HubData():
            from latentwire.data.hub_source import read_hub

            return read_hub(data)


def _limit(selection: Selection, data: Data) -> None:
    if not isinstance(data, PocketData):
        limit_questions(selection, "train", data.max_train_questions, data.seed)
        limit_questions(selection, "test", data.max_test_questions, data.seed)
