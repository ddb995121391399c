"""Test questions answered by one method, scored and counted."""

import gzip
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from latentwire.config import Experiment, Method
from latentwire.data.tables import Example, group_by_passage
from latentwire.evaluation.answering import Answer, answer
from latentwire.evaluation.methods import Sent, send_text
from latentwire.evaluation.predictions import Prediction
from latentwire.evaluation.scoring import exact_match, f1
from latentwire.layout import NO_WIRE
from latentwire.receivers.receiver import Receiver

Groups = Sequence[Sequence[Example]]
Sender = Callable[[Sequence[int]], Sent]

logger = logging.getLogger(__name__)


def predict(
    experiment: Experiment,
    receiver: Receiver,
    groups: Groups,
    sources: Sequence[str],
    source_ids: Sequence[list[int]],
    send: Sender,
    ratio: float | None,
    wire: str = NO_WIRE,
    encode_seconds: Sequence[float] | None = None,
    question_aware: bool = False,
    swapped: Mapping[str, str] | None = None,
    fell_back: Sequence[bool] | None = None,
    sender: str | None = None,
) -> list[Prediction]:
    """Answers the questions of all sources with one method, batched by length.

    Args:
        groups: the questions of each source.
        sources: the whole source texts.
        source_ids: the receiver's tokens of them.
        send: what stands in the place of the sources of some indices.
        ratio: the target ratio, if the method has one.
        wire: the wire that writes the messages, if there is one.
        encode_seconds: time that each source takes before it is sent; none is no time.
        question_aware: whether what is sent was made in knowledge of the question.
        swapped: by example id what stands in a changed passage where the answer stood.
        fell_back: for each source whether a compressor left nothing of it; none is never.
        sender: the model whose states the message is made of, or that wrote the text.
    """
    source_tokens = [len(ids) for ids in source_ids]
    seconds = encode_seconds or [0.0] * len(groups)
    order = sorted(range(len(groups)), key=lambda index: source_tokens[index])
    batch_size = experiment.evaluation.batch_passages
    rows: list[list[Prediction]] = [[] for _ in groups]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        sent, given = _answer_batch(experiment, receiver, groups, send, indices)
        answers = iter(given)
        for place, index in enumerate(indices):
            positions, source = sent.positions[place], sources[index].encode()
            gzip_bytes = len(gzip.compress(source, mtime=0))
            rows[index] = [
                Prediction(
                    **_scores(example, next(answers), positions, experiment, swapped or {}),
                    source_tokens=source_tokens[index],
                    soft_tokens=positions if sent.is_latent else 0,
                    source_bytes=len(source),
                    source_gzip_bytes=gzip_bytes,
                    payload_bytes=sent.payload_bytes[place],
                    encode_seconds=seconds[index] / len(groups[index]),
                    wire=wire,
                    sender=sender or "",
                    target_ratio=ratio,
                    ratio=source_tokens[index] / positions if positions else None,
                    source_mode=experiment.wire.source_mode if sent.is_latent else "context",
                    question_aware=question_aware,
                    fell_back=bool(fell_back and fell_back[index]),
                )
                for example in groups[index]
            ]
    return [row for group_rows in rows for row in group_rows]


def warm_up(experiment: Experiment, receiver: Receiver, examples: Sequence[Example]) -> None:
    """Answers a batch from text, so that what is timed from then on finds everything in place."""
    groups = group_by_passage(examples)[: experiment.evaluation.batch_passages]
    contexts = [group[0].context for group in groups]
    send = partial(send_text, receiver, receiver.prompt.source_ids(contexts), contexts)
    _answer_batch(experiment, receiver, groups, send, range(len(groups)))


def _answer_batch(
    experiment: Experiment,
    receiver: Receiver,
    groups: Groups,
    send: Sender,
    indices: Sequence[int],
) -> tuple[Sent, list[Answer]]:
    with torch.no_grad():
        sent = send(indices)
    return sent, answer(
        receiver,
        sent.source,
        [groups[index] for index in indices],
        experiment.evaluation.max_new_tokens,
        experiment.prompt.no_answer_text,
    )


def _scores(
    example: Example,
    given: Answer,
    positions: int,
    experiment: Experiment,
    swapped: Mapping[str, str],
) -> dict[str, Any]:
    no_answer_text = experiment.prompt.no_answer_text
    new_answer = swapped.get(example.example_id)
    return {
        "example_id": example.example_id,
        "passage_id": example.passage_id,
        "task": example.task,
        "prediction": given.text,
        "em": exact_match(given.text, example.answers, no_answer_text),
        "f1": f1(given.text, example.answers, no_answer_text),
        "nll": given.nll,
        "first_token_correct": float(given.first_token_correct),
        "prompt_tokens": given.num_question_tokens + positions,
        "answer_seconds": given.seconds,
        "swap_followed": None
        if new_answer is None
        else exact_match(given.text, [new_answer], no_answer_text),
    }


def report(method: Method, receiver: str, rows: Sequence[Prediction]) -> None:
    """Logs the mean F1 of a method at each target ratio."""
    for ratio in sorted({row.target_ratio for row in rows}, key=lambda ratio: ratio or 0):
        scores = [row.f1 for row in rows if row.target_ratio == ratio]
        budget = f" at {ratio:g}x" if ratio else ""
        logger.info("%s, %s%s: F1 %.3f", receiver, method, budget, sum(scores) / len(scores))
