"""The length policy: a source that a model cannot read whole is dropped and counted, never cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from transformers import PreTrainedTokenizerBase

from latentwire.config import Experiment
from latentwire.data.selection import SPLITS, Selection
from latentwire.data.tables import Example, source_text
from latentwire.errors import UserError
from latentwire.files import read_json
from latentwire.layout import Layout, Split
from latentwire.receivers.loading import load_tokenizer, open_tokenizer
from latentwire.receivers.prompt import Prompt

CHAT_TEMPLATE_TOKENS = 64
"""More than the tokens with which any chat template closes the user's turn and opens the answer."""


@dataclass(frozen=True)
class Reader:
    """A model that reads sources: a receiver or the encoder.

    Attributes:
        prompt: how a receiver is asked; none for the encoder.
        window: most tokens that a receiver takes; none for the encoder.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt | None = None
    window: int | None = None
    _known: dict[str, int] = field(default_factory=dict, repr=False)

    def num_tokens(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text, no special tokens; a text is tokenised only once."""
        texts = list(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            ids = self.tokenizer(
                new,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            self._known.update(zip(new, map(len, ids), strict=True))
        return [self._known[text] for text in texts]


def open_readers(experiment: Experiment, layout: Layout) -> list[Reader]:
    """The receivers, and the encoders that do not start from one of them.

    Raises:
        UserError: if a receiver is not prepared or a tokenizer cannot be loaded.
    """
    readers = [
        _open_receiver(experiment, layout, receiver.name) for receiver in experiment.receivers
    ]
    names = [reader.name for reader in readers]
    others = [backbone for backbone in experiment.backbones if backbone not in names]
    for number, backbone in enumerate(others):
        location, _, revision = backbone.partition("@")
        name = f"encoder {number + 1}" if number else "encoder"
        readers.append(Reader(name, open_tokenizer(location, revision or None)))
    return readers


def apply_length_policy(
    selection: Selection, experiment: Experiment, readers: Sequence[Reader]
) -> None:
    """Drops what does not fit, or stops.

    Raises:
        UserError: with `over_length: error`, if anything does not fit.
    """
    limit = experiment.length.max_source_tokens
    # A prompt holds its context.
    mode = "prompt" if "prompt" in experiment.source_modes else "context"
    for split, reader in product(SPLITS, readers):
        examples = selection.examples[split]
        lengths = reader.num_tokens(source_text(example, mode) for example in examples)
        too_long = [
            example for example, length in zip(examples, lengths, strict=True) if length > limit
        ]
        longest = max(lengths, default=0)
        reason = f"source longer than {limit} tokens of {reader.name} (longest {longest})"
        _drop(selection, split, experiment, reason, too_long)
        beyond = [
            example
            for example, length in zip(examples, lengths, strict=True)
            if length <= limit and _exceeds_window(reader, experiment, example, length)
        ]
        reason = f"prompt and answer longer than the {reader.window} positions of {reader.name}"
        _drop(selection, split, experiment, reason, beyond)


def _open_receiver(experiment: Experiment, layout: Layout, name: str) -> Reader:
    directory = layout.receiver(name)
    tokenizer = load_tokenizer(directory)
    window = read_json(directory / "receiver.json")["max_positions"]
    template = (
        experiment.prompt.template if experiment.wire.source_mode == "context" else "{source}"
    )
    return Reader(
        name, tokenizer, Prompt(tokenizer, template, experiment.prompt.anchor_text), window
    )


def _exceeds_window(
    reader: Reader, experiment: Experiment, example: Example, source_length: int
) -> bool:
    """Whether source, question and longest answer need more positions than the receiver has."""
    if reader.prompt is None or reader.window is None:
        return False
    answers = example.answers or [experiment.prompt.no_answer_text]
    free = reader.window - source_length - len(reader.prompt.head_ids)
    # A token stands for a byte or more, so that few examples need a closer look.
    most = len(experiment.prompt.template + experiment.prompt.anchor_text + example.question)
    if 4 * (most + max(map(len, answers))) + CHAT_TEMPLATE_TOKENS < free:
        return False
    (question_ids,) = reader.prompt.question_ids([example.question])
    return len(question_ids) + max(map(len, reader.prompt.answer_ids(answers))) > free


def _drop(
    selection: Selection,
    split: Split,
    experiment: Experiment,
    reason: str,
    unwanted: Sequence[Example],
) -> None:
    if unwanted and experiment.length.over_length == "error":
        raise UserError(
            f"length.over_length is 'error', and {len(unwanted)} question(s) of the {split} split "
            f"do not fit, such as {unwanted[0].example_id}: {reason}. Raise "
            "length.max_source_tokens, use a receiver with a longer window, or set "
            "length.over_length: drop"
        )
    selection.drop(split, reason, unwanted)
