"""Losses over answer tokens; those of all processes that train together.

Shapes: T answer tokens of a batch, V vocabulary. Row t of the logits predicts `target_ids[t]`; no
label is shifted here or anywhere else.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.config import Training
from latentwire.receivers.packing import PackedQuestions
from latentwire.training.processes import mean_of_all


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


def answer_loss(
    logits: Tensor,
    teacher: Teacher | None,
    packed: PackedQuestions,
    settings: Training,
) -> dict[str, Tensor]:
    """The training objective and its parts.

    Args:
        logits: `[T, V]` of the receiver reading soft tokens.
        teacher: the same receiver reading the text; none without KL.
        packed: the questions that the logits answer.
        settings: the weights.

    Returns:
        `loss`, `cross_entropy` and, where used, `kl`, `first_token` and `k_token`; scalars in nats
        per answer token.
    """
    token_loss = F.cross_entropy(logits, packed.target_ids, reduction="none")
    parts = {"cross_entropy": _mean(token_loss)}
    loss = settings.cross_entropy_weight * parts["cross_entropy"]
    depth = answer_token_index(packed)
    if settings.first_token_weight:
        parts["first_token"] = _mean(token_loss[depth == 0])
        loss = loss + settings.first_token_weight * parts["first_token"]
    if settings.k_token_depth:
        parts["k_token"] = _mean(token_loss[depth < settings.k_token_depth])
        loss = loss + parts["k_token"]
    if teacher is not None:
        parts["kl"] = mean_of_all(kl_divergence(teacher, logits), len(logits))
        loss = loss + settings.kl_weight * parts["kl"]
    return {"loss": loss, **parts}


def alignment_loss(soft_tokens: Tensor, embeddings: Tensor, index: Tensor) -> Tensor:
    """Squared error of soft tokens against a receiver's embeddings, relative to their mean square.

    A soft token that several embeddings belong to is fitted to their mean; one that none belongs
    to is left alone.

    Args:
        soft_tokens: `[B, S, D]`, one for each encoder token.
        embeddings: `[B, R, D]`, the receiver's of the same sources.
        index: `[B, R]` the encoder token of each embedding, S where it is padding.
    """
    batch, length, width = soft_tokens.shape
    targets = embeddings.new_zeros(batch, length + 1, width).scatter_reduce(
        1, index[:, :, None].expand_as(embeddings), embeddings, "mean", include_self=False
    )[:, :-1]
    found = torch.zeros(batch, length + 1, dtype=torch.bool, device=index.device)
    found = found.scatter(1, index, True)[:, :-1]
    soft_tokens, targets = soft_tokens[found], targets[found]
    error, square = F.mse_loss(soft_tokens, targets), targets.square().mean()
    return mean_of_all(error, targets.numel()) / mean_of_all(square, targets.numel())


def guard_loss(
    logits: Tensor, no_message_logits: Tensor, target_ids: Tensor, margin: float
) -> Tensor:
    """What a message of another passage costs above no message, beyond a margin; a scalar in nats.

    The guard term of Draft-KV.

    Args:
        logits: `[T, V]` of the receiver reading another passage's message.
        no_message_logits: `[T, V]` of it reading none.
        target_ids: `[T]` the answer tokens.
        margin: what is allowed, in nats per answer token.
    """
    cost = F.cross_entropy(logits, target_ids) - F.cross_entropy(no_message_logits, target_ids)
    return F.relu(mean_of_all(cost, len(target_ids)) - margin)


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


def _mean(values: Tensor) -> Tensor:
    return mean_of_all(values.mean(), len(values))
