"""From token states to latents.

Shapes: B sources, S tokens, H width of a token's states, M latents of the longest message.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentwire.config import Pooling


def num_groups(num_tokens: Tensor, widths: Tensor) -> Tensor:
    """Latents `[B]` that sources of `num_tokens` `[B]` become at a pooling width of `widths` `[B]`.

    Rounding instead of rounding up keeps the ratio of long and short sources the same on average.
    """
    return (num_tokens / widths).round().long().clamp(min=1)


def group_weights(
    mask: Tensor, ends: Tensor, groups: Tensor, pooling: Pooling
) -> tuple[Tensor, Tensor]:
    """How each source's tokens are pooled: over contiguous groups that keep to sentences.

    A group is one or more whole sentences, or an even part of one. Of all such groups, those are
    taken whose sizes have the smallest sum of squares.

    Args:
        mask: `[B, S]` true where a token is real; real tokens come first.
        ends: `[B, S]` true at the last token of each sentence.
        groups: `[B]` number of groups of each source, at most its tokens.
        pooling: last state of a group, or else its mean.

    Returns:
        Weights `[B, M, S]` of each group's tokens, and the mask `[B, M]` of the groups.
    """
    position = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    ends = ends | (position == mask.sum(1, keepdim=True) - 1)
    sentence = F.pad(ends, (1, 0))[:, :-1].cumsum(1) * mask
    lengths = _members(sentence, mask, max(1, int(ends.sum(1).max()))).sum(2)
    begins = lengths.cumsum(1) - lengths
    begin, length, first, parts = (
        of.gather(1, sentence) for of in (begins, lengths, *divide_sentences(lengths, groups))
    )
    group = first + (position - begin) * parts // length.clamp(min=1)
    member = _members(group, mask, int(groups.max()))
    if pooling == Pooling.last:
        # The last member of each group is the one that no later member follows.
        member &= member.flip(-1).cumsum(-1).flip(-1) == 1
    weights = member.float()
    group_mask = torch.arange(member.shape[1], device=mask.device) < groups[:, None]
    return weights / weights.sum(-1, keepdim=True).clamp(min=1), group_mask


def _members(group: Tensor, mask: Tensor, count: int) -> Tensor:
    """`[B, count, S]`, true where a token `[B, S]` that is real is of a group."""
    index = torch.arange(count, device=mask.device)
    return (group[:, None, :] == index[:, None]) & mask[:, None, :]


def divide_sentences(lengths: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of whole sentences and even parts of one, with the least sum of squared sizes.

    By dynamic programming over sentences. Into how many parts one is divided is tried from two
    below its share of the groups, as short neighbours may take one each, to one above; several are
    joined up to four times the mean size.

    Args:
        lengths: `[B, N]` tokens of each sentence; zeros where a source has fewer.
        groups: `[B]` number of groups of each source, at most its tokens.

    Returns:
        For each sentence `[B, N]` the group that it begins in, and its parts.
    """
    stops = F.pad(lengths.cumsum(1), (1, 0)).double()
    mean_size = stops[:, -1:] / groups[:, None]
    shares = lengths / mean_size.clamp(min=1)
    sizes = stops[:, None, 1:] - stops[:, :-1, None]
    itself = torch.eye(lengths.shape[1], dtype=torch.bool, device=lengths.device)
    joinable = ((sizes >= 0) & (sizes <= 4 * mean_size[:, :, None])) | itself
    earliest = joinable.any(0).long().argmax(0).tolist()
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
        squares = torch.cat(
            [sizes[:, own, last].square(), sizes[:, last, last, None] ** 2 / parts], 1
        )
        sums = torch.cat([joined, divided], dim=1) + squares[:, :, None]
        best = begin + sums.argmin(1)
        least.append(sums.amin(1))
        # The sentence that the last group begins with, and the number of groups from there on.
        number = parts.gather(1, (best - last - 1).clamp(min=0)).where(best > last, 1)
        steps.append((best.clamp(max=last), number))
    return _trace_back(steps, (lengths > 0).sum(1), groups)


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


class PooledAttention(nn.Module):
    """A layer whose queries are latents, and whose keys and values are the states of all tokens.

    The idea is ARC-Encoder's (Kyutai 2025), there for the last layer of the encoder. Here it
    starts as the identity, so that a wire with it starts as one that pools by mean.

    Args:
        latent_dim: width L of a latent, a multiple of twice `num_heads`.
        state_dim: width H of a token's states.
        num_heads: attention heads.
    """

    def __init__(self, latent_dim: int, state_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(latent_dim, latent_dim, bias=False)
        self.key = nn.Linear(state_dim, latent_dim, bias=False)
        self.value = nn.Linear(state_dim, latent_dim, bias=False)
        self.out = nn.Linear(latent_dim, latent_dim, bias=False)
        self.up = nn.Linear(latent_dim, 4 * latent_dim)
        self.down = nn.Linear(4 * latent_dim, latent_dim)
        for last in (self.out, self.down):
            nn.init.zeros_(last.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, latents: Tensor, hidden: Tensor, mask: Tensor, centres: Tensor) -> Tensor:
        """Updates latents.

        Args:
            latents: `[B, M, L]`.
            hidden: `[B, S, H]` token states.
            mask: `[B, S]` true where a token is real.
            centres: `[B, M]` the middle of each group, in token positions.
        """
        positions = torch.arange(hidden.shape[1], device=hidden.device).expand(mask.shape)
        attended = F.scaled_dot_product_attention(
            _rotate(self._heads(self.query(F.rms_norm(latents, latents.shape[-1:]))), centres),
            _rotate(self._heads(self.key(hidden)), positions),
            self._heads(self.value(hidden)),
            attn_mask=mask[:, None, None],
        )
        latents = latents + self.out(attended.transpose(1, 2).flatten(2))
        return latents + self.down(F.gelu(self.up(F.rms_norm(latents, latents.shape[-1:]))))

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _rotate(states: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) at `[B, S]` positions that need not be whole."""
    half = states.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=states.device) / half)
    angles = positions[:, None, :, None] * rates
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
