"""The stages `evaluate-text` and `evaluate-wire`: test questions answered by every method.

This is the only place that reads the test split.
"""

import gzip
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from latentwire.config import PAYLOAD_DTYPES, Experiment, Method
from latentwire.data.tables import Example, group_by_passage, read_examples, source_text
from latentwire.errors import UserError
from latentwire.evaluation.answering import Answer, answer
from latentwire.evaluation.methods import (
    Sent,
    derangement,
    encode_payloads,
    head_ids,
    send_latents,
    send_text,
)
from latentwire.evaluation.predictions import Prediction, write_predictions
from latentwire.evaluation.scoring import exact_match, f1
from latentwire.layout import NO_WIRE, Layout
from latentwire.receivers.loading import latent_reader, load_receiver
from latentwire.receivers.receiver import Receiver
from latentwire.training.passages import group_sources
from latentwire.wire.wire import Wire

Groups = Sequence[Sequence[Example]]
Sender = Callable[[Sequence[int]], Sent]

logger = logging.getLogger(__name__)


def evaluate_text(experiment: Experiment, layout: Layout, receiver_name: str) -> None:
    """Evaluates the methods that need no wire, for one receiver.

    Raises:
        UserError: if data or receiver are missing.
    """
    receiver = load_receiver(experiment, layout, receiver_name)
    groups = group_by_passage(read_examples(layout.split("test")))
    contexts = [group[0].context for group in groups]
    ids = receiver.prompt.source_ids(contexts)
    for method in experiment.evaluation.text_methods:
        rows: list[Prediction] = []
        for ratio, kept, texts in _texts(method, receiver, ids, contexts, experiment):
            send = partial(send_text, receiver, kept, texts)
            rows += _predict(experiment, receiver, groups, contexts, ids, send, ratio=ratio)
        write_predictions(layout.predictions(method, receiver_name), rows)
        _report(method, receiver_name, rows)


def _texts(
    method: Method,
    receiver: Receiver,
    ids: list[list[int]],
    contexts: list[str],
    experiment: Experiment,
) -> Iterator[tuple[float | None, list[list[int]], list[str]]]:
    """What a method leaves of each source: target ratio, token ids and text."""
    if method == Method.text:
        yield None, ids, contexts
    elif method == Method.closed_book:
        yield None, [[] for _ in ids], [""] * len(ids)
    else:
        for ratio in experiment.wire.target_ratios:
            kept = head_ids(ids, ratio)
            yield ratio, kept, receiver.tokenizer.batch_decode(kept)


def evaluate_wire(
    experiment: Experiment, layout: Layout, seed: int, only: str | None = None
) -> None:
    """Evaluates the experiment's wire, at all ratios, by all its methods.

    Args:
        only: the receiver to ask; none asks all that the wire is trained for.

    Raises:
        UserError: if data, receivers or wire are missing, or the wire was trained with another
            anchor than the experiment's.
    """
    wire_name = experiment.wire.name
    wire = Wire.from_pretrained(layout.wire(wire_name, seed), experiment.device)
    mode, ratios = wire.config.source_mode, experiment.wire.target_ratios
    groups = group_sources(read_examples(layout.split("test")), mode)
    sources = [source_text(group[0], mode) for group in groups]
    dtypes = {
        method: PAYLOAD_DTYPES.get(method, "fp16") for method in experiment.evaluation.wire_methods
    }
    forms = [(ratio, dtype) for ratio in ratios for dtype in dict.fromkeys(dtypes.values())]
    payloads, seconds = encode_payloads(wire, sources, forms, experiment.evaluation.batch_passages)
    strangers = derangement([group[0].passage_id for group in groups], experiment.evaluation.seed)
    for settings in experiment.readers:
        if only not in (None, settings.name):
            continue
        receiver = latent_reader(experiment, load_receiver(experiment, layout, settings.name))
        _check_anchor(wire, receiver)
        ids = receiver.prompt.source_ids(sources)
        for method, dtype in dtypes.items():
            source_of = strangers if method == Method.control_shuffled else range(len(groups))
            rows: list[Prediction] = []
            for ratio in ratios:
                sent = [payloads[ratio, dtype][index] for index in source_of]
                rows += _predict(
                    experiment,
                    receiver,
                    groups,
                    sources,
                    ids,
                    partial(send_latents, wire, receiver.name, sent),
                    ratio=ratio,
                    wire=wire_name,
                    encode_seconds=seconds[ratio, dtype],
                )
            write_predictions(layout.predictions(method, receiver.name, wire_name, seed), rows)
            _report(method, receiver.name, rows)


def _predict(
    experiment: Experiment,
    receiver: Receiver,
    groups: Groups,
    sources: Sequence[str],
    source_ids: Sequence[list[int]],
    send: Sender,
    ratio: float | None,
    wire: str = NO_WIRE,
    encode_seconds: float = 0.0,
) -> list[Prediction]:
    """Answers the questions of all sources with one method, batched by length."""
    source_tokens = [len(ids) for ids in source_ids]
    order = sorted(range(len(groups)), key=lambda index: source_tokens[index])
    batch_size = experiment.evaluation.batch_passages
    rows: list[list[Prediction]] = [[] for _ in groups]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        with torch.no_grad():
            sent = send(indices)
        answers = iter(
            answer(
                receiver,
                sent.source,
                [groups[index] for index in indices],
                experiment.evaluation.max_new_tokens,
                experiment.prompt.no_answer_text,
            )
        )
        for place, index in enumerate(indices):
            positions = sent.positions[place]
            rows[index] = [
                Prediction(
                    **_scores(example, next(answers), positions, experiment),
                    source_tokens=source_tokens[index],
                    soft_tokens=positions if sent.is_latent else 0,
                    source_bytes=len(sources[index].encode()),
                    source_gzip_bytes=len(gzip.compress(sources[index].encode(), mtime=0)),
                    payload_bytes=sent.payload_bytes[place],
                    encode_seconds=encode_seconds / len(groups[index]),
                    wire=wire,
                    sender="",
                    target_ratio=ratio,
                    ratio=source_tokens[index] / positions if positions else None,
                    source_mode=experiment.wire.source_mode if sent.is_latent else "context",
                    question_aware=experiment.wire.source_mode == "prompt" and sent.is_latent,
                )
                for example in groups[index]
            ]
    return [row for group_rows in rows for row in group_rows]


def _scores(example: Example, given: Answer, positions: int, experiment: Experiment) -> dict:
    no_answer_text = experiment.prompt.no_answer_text
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
    }


def _check_anchor(wire: Wire, receiver: Receiver) -> None:
    trained = wire.receivers[receiver.name].anchor_ids
    if trained != receiver.prompt.anchor_ids:
        raise UserError(
            f"prompt.anchor_text: the wire was trained with an anchor of the tokens {trained}, not "
            f"{receiver.prompt.anchor_ids} ({receiver.prompt.anchor!r}); use the text it was "
            "trained with"
        )


def _report(method: Method, receiver: str, rows: Sequence[Prediction]) -> None:
    for ratio in sorted({row.target_ratio for row in rows}, key=lambda ratio: ratio or 0):
        scores = [row.f1 for row in rows if row.target_ratio == ratio]
        budget = f" at {ratio:g}x" if ratio else ""
        logger.info("%s, %s%s: F1 %.3f", receiver, method, budget, sum(scores) / len(scores))
