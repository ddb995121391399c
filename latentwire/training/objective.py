"""Losses over answer tokens.

Shapes: T answer tokens of a batch, V vocabulary. Row t of the logits predicts `target_ids[t]`; no
label is shifted here or anywhere else.

Of a step that is read in parts, each part's loss is its share of a mean over the whole step. A mean
of the parts' means would make more of a token the fewer there are beside it.
"""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.config import Training
from latentwire.receivers.packing import PackedQuestions


@dataclass(frozen=True)
class LikelyTokens:
    """What a teacher finds most likely.

    Attributes:
        ids: `[T, k]` its k likeliest tokens.
        log_probabilities: `[T, k]` theirs.
        rest: `[T]` that of all others together.
    """

    ids: Tensor
    log_probabilities: Tensor
    rest: Tensor


Teacher = Tensor | LikelyTokens
"""Logits `[T, V]` of a receiver that reads the text, or what is kept of them."""


@dataclass(frozen=True)
class Totals:
    """What the losses of a step are means over; none where the step is not read in parts.

    Attributes:
        answers: how many there are.
        tokens: theirs.
        k_tokens: those among their first K.
    """

    answers: int | None = None
    tokens: int | None = None
    k_tokens: int | None = None

    @classmethod
    def of(cls, answers: Iterable[Sized], k_token_depth: int) -> "Totals":
        lengths = [len(answer) for answer in answers]
        k_tokens = sum(min(length, k_token_depth) for length in lengths)
        return cls(len(lengths), sum(lengths), k_tokens)


UNPARTED = Totals()


def answer_loss(
    logits: Tensor,
    teacher: Teacher | None,
    packed: PackedQuestions,
    settings: Training,
    totals: Totals = UNPARTED,
) -> dict[str, Tensor]:
    """The training objective and its parts.

    Args:
        logits: `[T, V]` of the receiver reading soft tokens.
        teacher: the same receiver reading the text; none without KL.
        packed: the questions that the logits answer.
        settings: the weights.
        totals: of the whole step, if the questions are a part of one.

    Returns:
        `loss`, `cross_entropy` and, where used, `kl`, `first_token` and `k_token`; scalars in nats
        per answer token.
    """
    token_loss = F.cross_entropy(logits, packed.target_ids, reduction="none")
    parts = {"cross_entropy": _mean(token_loss, totals.tokens)}
    loss = settings.cross_entropy_weight * parts["cross_entropy"]
    depth = answer_token_index(packed)
    if settings.first_token_weight:
        parts["first_token"] = _mean(token_loss[depth == 0], totals.answers)
        loss = loss + settings.first_token_weight * parts["first_token"]
    if settings.k_token_depth:
        first = token_loss[depth < settings.k_token_depth]
        parts["k_token"] = _mean(first, totals.k_tokens)
        loss = loss + parts["k_token"]
    if teacher is not None:
        parts["kl"] = kl_divergence(teacher, logits) * _share(len(logits), totals.tokens)
        loss = loss + settings.kl_weight * parts["kl"]
    return {"loss": loss, **parts}


def alignment_targets(embeddings: Tensor, index: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What soft tokens are fitted to in alignment: the mean of the embeddings that belong to each.

    Args:
        embeddings: `[B, R, D]`, a receiver's of the sources.
        index: `[B, R]` the encoder token of each embedding, `length` where it is padding.
        length: S, the encoder tokens of the longest source.

    Returns:
        The means `[B, S, D]`, and which encoder tokens `[B, S]` any embedding belongs to.
    """
    batch, _, width = embeddings.shape
    targets = embeddings.new_zeros(batch, length + 1, width).scatter_reduce(
        1, index[:, :, None].expand_as(embeddings), embeddings, "mean", include_self=False
    )
    found = torch.zeros(batch, length + 1, dtype=torch.bool, device=index.device)
    return targets[:, :-1], found.scatter(1, index, True)[:, :-1]


def alignment_loss(
    soft_tokens: Tensor, targets: Tensor, found: Tensor, rows: Sequence[int]
) -> Tensor:
    """Squared error of soft tokens, relative to the mean square of the step's targets.

    Args:
        soft_tokens: `[B, S, D]`, one for each encoder token of the sources that are read.
        targets: `[B', S', D]` of all sources of the step.
        found: `[B', S']` which of them there are; other soft tokens are left alone.
        rows: which B of the sources are read.
    """
    length = soft_tokens.shape[1]
    own = found[rows, :length]
    error = F.mse_loss(soft_tokens[own], targets[rows, :length][own])
    square = targets[found].square().mean()
    return error / square * _share(int(own.sum()), int(found.sum()))


def guard_loss(
    logits: Tensor,
    no_message_logits: Tensor,
    packed: PackedQuestions,
    margin: float,
    totals: Totals = UNPARTED,
) -> Tensor:
    """What a message of another passage costs above no message, beyond a margin; a scalar in nats.

    The guard term of Draft-KV, for each answer; its mean over answers.

    Args:
        logits: `[T, V]` of the receiver reading another passage's message.
        no_message_logits: `[T, V]` of it reading none.
        packed: the questions that the logits answer.
        margin: what is allowed, in nats per answer token.
        totals: of the whole step, if the questions are a part of one.
    """
    costs = [
        F.cross_entropy(own, packed.target_ids, reduction="none")
        for own in (logits, no_message_logits)
    ]
    # As many places as there are tokens, as the number of answers is not known without values.
    nothing = torch.zeros_like(costs[0])
    sums = nothing.index_add(0, packed.target_answers, costs[0] - costs[1])
    lengths = nothing.index_add(0, packed.target_answers, torch.ones_like(nothing))
    guards = F.relu(sums / lengths.clamp(min=1) - margin) * (lengths > 0)
    return guards.sum() / (totals.answers or (lengths > 0).sum())


def kl_divergence(teacher: Teacher, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) at temperature 1, mean over rows, in nats.

    With a teacher's likely tokens it is that of these and, as one outcome, all others: at most what
    it is over all tokens, by the log-sum inequality (Cover and Thomas 2006, theorem 2.7.1).

    Args:
        teacher: what it finds likely.
        student_logits: `[T, V]`.
    """
    if isinstance(teacher, LikelyTokens):
        return _kl_divergence_of_likely(teacher, student_logits)
    return F.kl_div(
        student_logits.log_softmax(-1),
        teacher.log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )


def teacher_of(logits: Tensor, settings: Training) -> Teacher:
    """What is kept of a teacher's logits `[T, V]`."""
    count = settings.teacher_top_k
    return logits if count is None else likely_tokens(logits, count)


def likely_tokens(logits: Tensor, count: int) -> LikelyTokens:
    """What is kept of logits `[T, V]`: so many tokens, or all if there are fewer."""
    log_probabilities = logits.log_softmax(-1)
    likely, ids = log_probabilities.topk(min(count, logits.shape[-1]))
    rest = log_probabilities.scatter(-1, ids, -torch.inf).logsumexp(-1)
    # Where nothing is left its log-probability is finite, so that its share of a mean is zero.
    return LikelyTokens(ids, likely, rest.clamp(min=torch.finfo(rest.dtype).min))


def _kl_divergence_of_likely(teacher: LikelyTokens, student_logits: Tensor) -> Tensor:
    # No second matrix of the logits' size is kept for the backward pass.
    likely = student_logits.gather(-1, teacher.ids) - student_logits.logsumexp(-1, keepdim=True)
    rest = -torch.expm1(likely.logsumexp(-1))
    rest = rest.clamp(min=torch.finfo(rest.dtype).eps).log()
    likely = teacher.log_probabilities.exp() * (teacher.log_probabilities - likely)
    return (likely.sum(-1) + teacher.rest.exp() * (teacher.rest - rest)).mean()


def answer_token_index(packed: PackedQuestions) -> Tensor:
    """Position `[T]` of each target within its answer."""
    position = torch.arange(len(packed.target_ids), device=packed.target_ids.device)
    return position - torch.where(packed.starts_answer, position, 0).cummax(0).values


def _mean(values: Tensor, total: int | None) -> Tensor:
    return values.mean() * _share(len(values), total)


def _share(count: int, total: int | None) -> float:
    """By what a mean over a part of a step is scaled, to be its share of that over the whole."""
    return 1.0 if total is None else count / total
