"""The sentences of a source, and which of them share a latent.

Shapes: B sources, S tokens, N sentences of the source with most, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Likeness is known to so many steps, so that rounding errors decide nothing.
_STEPS = 1024


@dataclass(frozen=True)
class Sentences:
    """What the tokens of sources belong to.

    Attributes:
        index: `[B, S]` the sentence of each token.
        lengths: `[B, N]` tokens of each sentence; zeros where a source has fewer.
        likeness: `[B, N, N]`, of each two, from 0 to 1; of one to itself 1.
    """

    index: Tensor
    lengths: Tensor
    likeness: Tensor


def find_sentences(
    ids: Tensor, mask: Tensor, ends: Tensor, rarity: Tensor | None = None
) -> Sentences:
    """The sentences of sources, and how alike they are.

    Likeness is the cosine of counts of tokens, each as rare as it is (TF-IDF, Spärck Jones 1972):
    sentences about the same rare name are alike, sentences of the same common words are not.

    Args:
        ids: `[B, S]` token ids.
        mask: `[B, S]` true where a token is real; real tokens come first.
        ends: `[B, S]` true at the last token of each sentence.
        rarity: `[V]` how rare each token is; none takes all sentences for alike.
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    ends = (ends & mask) | (position == mask.sum(1, keepdim=True) - 1)
    index = F.pad(ends, (1, 0))[:, :-1].cumsum(1) * mask
    most = max(1, int(ends.sum(1).max()))
    lengths = index.new_zeros(len(ids), most).scatter_add(1, index, mask.long())
    likeness = torch.ones(len(ids), most, most, dtype=torch.float64, device=ids.device)
    if rarity is not None:
        known, column = ids.unique(return_inverse=True)
        counts = likeness.new_zeros(len(ids), most * len(known))
        counts.scatter_add_(1, index * len(known) + column, mask.double())
        vectors = F.normalize(counts.view(len(ids), most, -1) * rarity[known].double(), dim=2)
        likeness = ((vectors @ vectors.transpose(1, 2)) * _STEPS).round() / _STEPS
        likeness.diagonal(dim1=1, dim2=2).fill_(1)
    return Sentences(index, lengths, likeness)


def divide_sentences(sentences: Sentences, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of whole sentences, like ones if possible, and of even parts of one.

    Sentences are put in an order in which like ones are neighbours. Of the groups of neighbours
    those are taken that have the least sum of squared sizes, where a square counts double if the
    sentences of a group have nothing in common.

    Args:
        sentences: those of B sources.
        groups: `[B]` number of groups of each source, at most its tokens.

    Returns:
        For each sentence `[B, N]` the group that it begins in, and its parts.
    """
    order = _neighbours(sentences)
    place = order.argsort(1)
    size = order.shape[1]
    likeness = sentences.likeness.gather(1, order[:, :, None].expand(-1, -1, size))
    likeness = likeness.gather(2, order[:, None].expand(-1, size, -1))
    divided = _least_squares(sentences.lengths.gather(1, order), likeness, groups)
    first, parts = (of.gather(1, place) for of in divided)
    return first, parts


def _neighbours(sentences: Sentences) -> Tensor:
    """`[B, N]` the first sentence, and behind each one the one most like it of those left."""
    rows = torch.arange(len(sentences.lengths), device=sentences.lengths.device)
    # Places that hold no sentence come last, those that are taken not at all.
    penalty = (sentences.lengths == 0).double()
    order = [torch.zeros_like(rows)]
    for _ in range(sentences.lengths.shape[1] - 1):
        penalty[rows, order[-1]] = torch.inf
        order.append((sentences.likeness[rows, order[-1]] - 2 * penalty).argmax(1))
    return torch.stack(order, dim=1)


def _least_squares(lengths: Tensor, likeness: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The division of sentences into groups of neighbours, by dynamic programming over sentences.

    Into how many parts one is divided is tried from two below its share of the groups, as short
    neighbours may take one each, to one above; several are joined up to four times the mean size.
    """
    stops = F.pad(lengths.cumsum(1), (1, 0)).double()
    mean_size = stops[:, -1:] / groups[:, None]
    shares = lengths / mean_size.clamp(min=1)
    sizes = stops[:, None, 1:] - stops[:, :-1, None]
    itself = torch.eye(lengths.shape[1], dtype=torch.bool, device=lengths.device)
    joinable = ((sizes >= 0) & (sizes <= 4 * mean_size[:, :, None])) | itself
    earliest = joinable.any(0).long().argmax(0).tolist()
    costs = sizes.square() * (2 - _mean_of_runs(likeness))
    counts = torch.arange(int(groups.max()) + 1, device=lengths.device)
    nearby = torch.tensor([-2, -1, 0, 1], device=lengths.device)
    # Of the sentences so far, the least sum for every number of groups.
    least = [torch.where(counts == 0, 0.0, torch.inf).double().expand(len(lengths), -1)]
    steps: list[tuple[Tensor, Tensor]] = []
    for last, begin in enumerate(earliest):
        own = slice(begin, last + 1)
        joined = F.pad(torch.stack(least[own], dim=1), (1, 0), value=torch.inf)[:, :, :-1]
        joined = joined.where(joinable[:, own, last, None], torch.inf)
        parts = (shares[:, last, None].round().long() + nearby).clamp(min=1)
        others = counts - parts[:, :, None]
        divided = least[-1][:, None].expand(-1, len(nearby), -1).gather(2, others.clamp(min=0))
        allowed = (others >= 0) & ((parts > 1) & (parts <= lengths[:, last, None]))[:, :, None]
        divided = divided.where(allowed, torch.inf)
        added = torch.cat([costs[:, own, last], sizes[:, last, last, None] ** 2 / parts], 1)
        sums = torch.cat([joined, divided], dim=1) + added[:, :, None]
        best = begin + sums.argmin(1)
        least.append(sums.amin(1))
        # The sentence that the last group begins with, and the number of groups from there on.
        number = parts.gather(1, (best - last - 1).clamp(min=0)).where(best > last, 1)
        steps.append((best.clamp(max=last), number))
    return _trace_back(steps, (lengths > 0).sum(1), groups)


def _mean_of_runs(likeness: Tensor) -> Tensor:
    """`[B, N, N]` the mean likeness within the sentences from one to another, or to itself."""
    sums = F.pad(likeness.cumsum(1).cumsum(2), (1, 0, 1, 0))
    corners = sums.diagonal(dim1=1, dim2=2)
    index = torch.arange(likeness.shape[1], device=likeness.device)
    count = (index + 1 - index[:, None]).clamp(min=1)
    within = corners[:, None, 1:] + corners[:, :-1, None] - 2 * sums[:, :-1, 1:]
    return within / count**2


def _trace_back(
    steps: Sequence[tuple[Tensor, Tensor]], num_sentences: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    """What led to the least sum over all sentences, followed from the last of them to the first."""
    index = torch.arange(len(steps), device=groups.device)
    stop, left = num_sentences[:, None], groups[:, None]
    first, parts = torch.zeros(2, len(groups), len(steps), dtype=torch.long, device=groups.device)
    for last in reversed(range(len(steps))):
        here = stop == last + 1
        begin, number = (of.gather(1, left) for of in steps[last])
        own = here & (index >= begin) & (index <= last)
        left = (left - number).where(here, left)
        stop = begin.where(here, stop)
        first, parts = left.where(own, first), number.where(own, parts)
    return first, parts
