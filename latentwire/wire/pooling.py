"""From token states to latents.

Shapes: B sources, S tokens, H width of a token's states, M latents of the longest message.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentwire.config import Pooling
from latentwire.wire.sentences import Sentences, divide_sentences


def num_groups(num_tokens: Tensor, widths: Tensor) -> Tensor:
    """Latents `[B]` that sources of `num_tokens` `[B]` become at a pooling width of `widths` `[B]`.

    Rounding instead of rounding up keeps the ratio of long and short sources the same on average.
    """
    return (num_tokens / widths).round().long().clamp(min=1)


def group_weights(
    mask: Tensor, sentences: Sentences, groups: Tensor, pooling: Pooling
) -> tuple[Tensor, Tensor]:
    """How each source's tokens are pooled: over groups that keep to sentences.

    Args:
        mask: `[B, S]` true where a token is real; real tokens come first.
        sentences: what the tokens belong to.
        groups: `[B]` number of groups of each source, at most its tokens.
        pooling: last state of a group, or else its mean.

    Returns:
        Weights `[B, M, S]` of each group's tokens, in the order of their first ones, and the mask
        `[B, M]` of the groups.
    """
    position = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    begins = sentences.lengths.cumsum(1) - sentences.lengths
    begin, length, first, parts = (
        of.gather(1, sentences.index)
        for of in (begins, sentences.lengths, *divide_sentences(sentences, groups))
    )
    group = first + (position - begin) * parts // length.clamp(min=1)
    index = torch.arange(int(groups.max()), device=mask.device)
    member = (group[:, None, :] == index[:, None]) & mask[:, None, :]
    begins = member.long().argmax(2).masked_fill(~member.any(2), mask.shape[1])
    order = begins.argsort(dim=1, stable=True)
    member = member.gather(1, order[:, :, None].expand_as(member))
    if pooling == Pooling.last:
        # The last member of each group is the one that no later member follows.
        member &= member.flip(-1).cumsum(-1).flip(-1) == 1
    weights = member.float()
    group_mask = index < groups[:, None]
    return weights / weights.sum(-1, keepdim=True).clamp(min=1), group_mask


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
