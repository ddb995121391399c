"""How long the batches of a training will be, as far as that can be told before it is tokenised.

Shapes: n passages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentwire.config import Experiment, ReceiverSource
from latentwire.files import read_json
from latentwire.layout import Layout

# What the chat template of an instruction-tuned model sets before the user's words and behind them.
_CHAT_HEAD_TOKENS, _CHAT_TAIL_TOKENS = 32, 8
# As measured on 191,703 rows: what is kept of each, and of each token id in lists of Python.
_ROW_BYTES, _ID_BYTES = 3000, 60
# Taken where there are no data to look at.
_QUESTION_TOKENS, _ANSWER_TOKENS = 32, 8


@dataclass(frozen=True)
class Reading:
    """Tokens that a receiver reads of each passage, `[n]`.

    Attributes:
        head: what stands before the source, the same everywhere.
        text: the passage, which the teacher reads.
        asked: what follows latents: questions and answers, as many as a step takes.
        text_asked: what follows the text.
        targets: the answer tokens that are predicted.
    """

    head: int
    text: np.ndarray
    asked: np.ndarray
    text_asked: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Lengths:
    """Tokens of training passages.

    Attributes:
        origin: what they are estimated from, in words.
        is_whole: whether these are all passages, or else as many as a batch has.
        source: `[n]` the encoder's tokens.
        cost: `[n]` what a passage counts for when batches are cut.
        readings: by receiver.
        host_bytes: what rows and token ids take in memory; 0 if these are not all passages.
    """

    origin: str
    is_whole: bool
    source: np.ndarray
    cost: np.ndarray
    readings: Mapping[str, Reading]
    host_bytes: int


def expected_lengths(experiment: Experiment, layout: Layout, wire: str) -> Lengths:
    """Lengths of the prepared passages, or the longest that are allowed where none are prepared.

    Characters are counted, and taken for as many tokens as the data card says of each tokenizer.
    """
    own, card, table = experiment.of_wire(wire), layout.data_card, layout.split("train")
    if card.exists() and table.exists():
        return _prepared(own, read_json(card), table, _card_name(experiment, own))
    return _longest(own)


def _longest(experiment: Experiment) -> Lengths:
    settings, in_latents = experiment.training, experiment.wire.source_mode == "prompt"
    length, num_passages = experiment.length.max_source_tokens, settings.passages_per_step
    questions = 1 if in_latents else settings.max_questions_per_passage

    def each(value: int) -> np.ndarray:
        return np.full(num_passages, value)

    text_asked = each(questions * (_QUESTION_TOKENS + _ANSWER_TOKENS))
    reading = Reading(
        head=_CHAT_HEAD_TOKENS,
        text=each(length),
        asked=each(_ANSWER_TOKENS) if in_latents else text_asked,
        text_asked=text_asked,
        targets=each(questions * _ANSWER_TOKENS),
    )
    return Lengths(
        f"no data are prepared, so every passage counts as {length:,} tokens "
        f"(length.max_source_tokens) with {questions} questions",
        False,
        each(length),
        each(length),
        {receiver.name: reading for receiver in experiment.readers},
        0,
    )


def _prepared(
    experiment: Experiment, card: Mapping[str, Any], table: Path, encoder: str
) -> Lengths:
    columns = ["passage_id", "context", "question", "answers"]
    rows = pq.read_table(table, columns=columns, read_dictionary=["passage_id", "context"])
    # A context is repeated with each of its questions, and read but once.
    contexts = rows["context"].unify_dictionaries().combine_chunks()
    context = pc.utf8_length(contexts.dictionary).to_numpy()[contexts.indices.to_numpy()]
    question = pc.utf8_length(rows["question"]).to_numpy()
    ids = rows["passage_id"].unify_dictionaries().combine_chunks().indices.to_numpy()
    answer = _first_answers(rows["answers"], len(experiment.prompt.no_answer_text))
    # Rows of one passage stand together.
    passages = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    in_latents = experiment.wire.source_mode == "prompt"
    groups = np.arange(len(ids)) if in_latents else passages
    read = context[passages] if card["source_mode"] == "context" else context + question
    median = np.percentile(read, 50, method="higher")
    known = card["splits"]["train"]["source_tokens"]
    rates = {name: tokens["median"] / median for name, tokens in known.items()}
    num_asked = np.diff(np.r_[groups, len(ids)])
    used = np.minimum(1, experiment.training.max_questions_per_passage / num_asked)
    head, tail = experiment.prompt.template.format(source="\0", question="").split("\0")

    readings, positions, num_ids = {}, [], 0
    source = context[groups] + (question if in_latents else 0)
    for receiver in experiment.readers:
        rate = rates[receiver.name]
        is_chat = receiver.source in (ReceiverSource.path, ReceiverSource.hub)
        chat_head, chat_tail = (_CHAT_HEAD_TOKENS, _CHAT_TAIL_TOKENS) if is_chat else (0, 0)
        around = rate * len(experiment.prompt.anchor_text) + chat_tail
        answers = np.add.reduceat(rate * answer, groups)
        behind_text = np.add.reduceat(rate * (question + len(tail)) + around, groups) + answers
        behind_latents = around + answers if in_latents else behind_text
        text = _tokens(rate * context[groups])
        readings[receiver.name] = Reading(
            int(rate * len(head)) + chat_head,
            text,
            asked=_tokens(behind_latents if in_latents else used * behind_text),
            text_asked=_tokens(used * behind_text),
            targets=_tokens(used * (answers + num_asked)),
        )
        positions.append(behind_latents)
        # Each token of a source has its encoder token beside it.
        kept = [2 * rate * source, behind_text, *([text, behind_latents] if in_latents else [])]
        num_ids += sum(int(part.sum()) for part in kept)
    source = _tokens(rates[encoder] * source)
    num_ids += int(source.sum())
    return Lengths(
        f"{len(groups):,} sources as {table.parent} has them",
        True,
        source,
        source + _tokens(np.mean(positions, axis=0)),
        readings,
        _ROW_BYTES * len(ids) + _ID_BYTES * num_ids,
    )


def _first_answers(answers: pa.ChunkedArray, no_answer: int) -> np.ndarray:
    """Characters of the first answer of each list."""
    first = pc.list_slice(answers, 0, 1)
    lengths = np.full(len(answers), no_answer)
    lengths[pc.list_value_length(first).to_numpy() == 1] = pc.utf8_length(pc.list_flatten(first))
    return lengths


def _tokens(number: np.ndarray) -> np.ndarray:
    return np.maximum(1, np.rint(number).astype(int))


def _card_name(experiment: Experiment, own: Experiment) -> str:
    """What the data card calls the tokenizer of a wire's encoder."""
    names = [receiver.name for receiver in experiment.receivers]
    backbone = own.wire.encoder.backbone
    if backbone in names:
        return backbone
    number = [other for other in experiment.backbones if other not in names].index(backbone)
    return f"encoder {number + 1}" if number else "encoder"
