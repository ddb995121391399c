"""Training passages as token ids, for the encoder and for every receiver."""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from latentwire.data.tables import Example, group_by_passage, source_text
from latentwire.receivers.packing import lay_out
from latentwire.receivers.receiver import Receiver
from latentwire.wire.wire import Wire

QuestionIds = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class TokenisedPassage:
    """One source with its questions, as ids; dictionaries go by receiver.

    Attributes:
        passage_id: the passage that the source is of.
        index: its place among the sources of its split.
        sender: the model whose states of the source the encoder reads; none reads text.
        source: its text.
        encoder_ids: the tokens of the source of which the encoder reads embeddings or states.
        source_ids: the receiver's tokens of the source.
        text_ids: the receiver's tokens of the passage, for the teacher.
        questions: `(question ids, answer ids)` pairs that follow latents.
        text_questions: the same pairs as they follow the text.
    """

    passage_id: str
    index: int
    sender: str | None
    source: str
    encoder_ids: list[int]
    source_ids: dict[str, list[int]]
    text_ids: dict[str, list[int]]
    questions: dict[str, QuestionIds]
    text_questions: dict[str, QuestionIds]

    @property
    def num_tokens(self) -> int:
        """Cost of the passage: its encoder tokens and the mean of its receivers' positions."""
        positions = sum(
            len(question) + len(answer)
            for pairs in self.questions.values()
            for question, answer in pairs
        )
        return len(self.encoder_ids) + positions // len(self.questions)


def continuation(
    passage: TokenisedPassage, share: float, encoder_index: Mapping[str, Sequence[int]]
) -> TokenisedPassage:
    """The task to go on with a passage of which only the first share is the source.

    What is to be written follows its own first token, which stands where a question does.

    Args:
        passage: the whole.
        share: how much of it the encoder reads.
        encoder_index: the encoder token that holds the middle of each of a receiver's.
    """
    cut = max(1, round(share * len(passage.encoder_ids)))
    rest = {
        name: passage.source_ids[name][bisect_left(index, cut) :]
        for name, index in encoder_index.items()
    }
    return replace(
        passage,
        encoder_ids=passage.encoder_ids[:cut],
        questions={name: [(ids[:1], ids[1:])] for name, ids in rest.items()},
    )


def repetition(
    passage: TokenisedPassage, requests: Mapping[str, list[int]], ends: Mapping[str, int]
) -> TokenisedPassage:
    """The task to repeat a passage word for word, given each receiver's request and end token."""
    return replace(
        passage,
        questions={
            name: [(requests[name], [*ids, ends[name]])] for name, ids in passage.source_ids.items()
        },
    )


def choose(questions: QuestionIds, most: int, key: str) -> QuestionIds:
    """At most so many questions, a random choice that the key fixes."""
    return questions if len(questions) <= most else random.Random(key).sample(questions, most)


def group_sources(examples: Sequence[Example], source_mode: str) -> list[list[Example]]:
    """Examples that share a source: those of a passage, or each by itself."""
    if source_mode == "context":
        return group_by_passage(examples)
    return [[example] for example in examples]


def tokenise_passages(
    examples: Sequence[Example],
    wire: Wire,
    text_readers: Sequence[Receiver],
    latent_readers: Sequence[Receiver],
    no_answer_text: str,
    sender: str | None,
) -> list[TokenisedPassage]:
    """Tokenises the sources and questions of a split, for a sender if the wire has one."""
    mode = wire.config.source_mode
    groups = group_sources(examples, mode)
    sources = [source_text(group[0], mode) for group in groups]
    encoder_ids = wire.source_ids(sources, sender)
    source_ids = {r.name: r.prompt.source_ids(sources) for r in latent_readers}
    questions = _questions(groups, latent_readers, no_answer_text)
    if mode == "context":
        # Latents stand where the text would, between the same words.
        text_ids, text_questions = source_ids, questions
    else:
        contexts = [group[0].context for group in groups]
        text_ids = {r.name: r.prompt.source_ids(contexts) for r in text_readers}
        text_questions = _questions(groups, text_readers, no_answer_text)
    return [
        TokenisedPassage(
            groups[index][0].passage_id,
            index,
            sender,
            sources[index],
            encoder_ids[index],
            {name: ids[index] for name, ids in source_ids.items()},
            {name: ids[index] for name, ids in text_ids.items()},
            {name: pairs[index] for name, pairs in questions.items()},
            {name: pairs[index] for name, pairs in text_questions.items()},
        )
        for index in range(len(groups))
    ]


def _questions(
    groups: Sequence[Sequence[Example]], receivers: Sequence[Receiver], no_answer_text: str
) -> dict[str, list[QuestionIds]]:
    flat = [example for group in groups for example in group]
    golds = [example.answers[0] if example.answers else no_answer_text for example in flat]
    return {
        receiver.name: lay_out(
            zip(
                receiver.prompt.question_ids([example.question for example in flat]),
                receiver.prompt.answer_ids(golds),
                strict=True,
            ),
            groups,
        )
        for receiver in receivers
    }


def middle_indices(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> list[list[int]]:
    """For each token of another tokenizer, source by source, the one that holds its middle."""
    spans, others = (
        each(
            list(sources),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]
        for each in (tokenizer, other)
    )
    return list(map(middle_index, spans, others))


def middle_index(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[int]:
    """For each token of another tokenizer the one that holds its middle."""
    ends = [end for _, end in spans]
    middles = ((start + end) / 2 for start, end in others)
    return [min(bisect_right(ends, middle), len(ends) - 1) for middle in middles]
