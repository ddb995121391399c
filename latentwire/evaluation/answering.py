"""Questions answered by a receiver, and how likely it finds the gold.

Shapes: B sources of a batch, N questions of the batch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F

from latentwire.data.tables import Example
from latentwire.receivers.packing import lay_out
from latentwire.receivers.receiver import Generated, Reading, Receiver, Source


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: the greedy answer.
        nll: mean -log p per token of the first reference, end of sequence included, in nats.
        first_token_correct: whether the most likely first token starts any reference.
        num_question_tokens: positions between source and answer, and the prompt's head.
        seconds: wall time of the batch's generation, divided by its questions.
    """

    text: str
    nll: float
    first_token_correct: bool
    num_question_tokens: int
    seconds: float


@torch.no_grad()
def answer(
    receiver: Receiver,
    source: Source,
    groups: Sequence[Sequence[Example]],
    max_new_tokens: int,
    no_answer_text: str,
) -> list[Answer]:
    """Answers the questions of each source of a batch, in order.

    The gold answers reach only `nll` and `first_token_correct`; generation never sees them.
    """
    examples = [example for group in groups for example in group]
    questions = receiver.prompt.question_ids([example.question for example in examples])
    started = time.perf_counter()
    reading = receiver.read(source, lay_out(questions, groups))
    generated = reading.generate(max_new_tokens)
    texts = receiver.decode([own.without_end for own in generated])
    seconds = (time.perf_counter() - started) / len(examples)
    references = [example.answers or [no_answer_text] for example in examples]
    reference_ids = lay_out(
        receiver.prompt.answer_ids([reference for own in references for reference in own]),
        references,
    )
    first_tokens = reading.logits.argmax(-1).tolist()
    num_head = len(receiver.prompt.head_ids)
    return [
        Answer(
            text,
            nll,
            first in {answer_ids[0] for answer_ids in own},
            num_head + len(question),
            seconds,
        )
        for text, nll, first, own, question in zip(
            texts,
            _mean_nll(reading, generated, [ids[0] for ids in reference_ids]),
            first_tokens,
            reference_ids,
            questions,
            strict=True,
        )
    ]


def _mean_nll(
    reading: Reading, generated: Sequence[Generated], golds: Sequence[list[int]]
) -> list[float]:
    # What was generated has been read already.
    unread = [[] if own.ids == gold else gold for own, gold in zip(generated, golds, strict=True)]
    logits, packed = reading.answer_logits(unread)
    token_loss = F.cross_entropy(logits, packed.target_ids, reduction="none")
    total = torch.zeros(len(golds), device=logits.device)
    total.index_add_(0, packed.target_answers, token_loss)
    return [
        read / len(gold) if gold_unread else fmean(own.nll)
        for read, own, gold, gold_unread in zip(
            total.tolist(), generated, golds, unread, strict=True
        )
    ]
