"""From token states to latents.

Shapes: B sources, S tokens, H hidden width, M latents of the longest message.
"""

import torch
from torch import Tensor

from latentwire.config import Pooling


def num_groups(num_tokens: Tensor, widths: Tensor) -> Tensor:
    """Latents `[B]` that sources of `num_tokens` `[B]` become at a pooling width of `widths` `[B]`.

    Rounding instead of rounding up keeps the ratio of long and short sources the same on average.
    """
    return (num_tokens / widths).round().long().clamp(min=1)


def pool(hidden: Tensor, mask: Tensor, groups: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Pools each source's tokens over contiguous groups of nearly equal size.

    Args:
        hidden: `[B, S, H]` token states.
        mask: `[B, S]` true where a token is real; real tokens come first.
        groups: `[B]` number of groups of each source, at most its tokens.
        pooling: mean of a group, or its last state.

    Returns:
        Pooled states `[B, M, H]` and their mask `[B, M]`.
    """
    num_tokens = mask.sum(1, keepdim=True)
    position = torch.arange(hidden.shape[1], device=hidden.device)
    group = (position * groups[:, None]) // num_tokens.clamp(min=1)
    index = torch.arange(int(groups.max()), device=hidden.device)
    member = (group[:, None, :] == index[:, None]) & mask[:, None, :]
    if pooling == Pooling.last:
        # The last member of each group is the one that no later member follows.
        member &= member.flip(-1).cumsum(-1).flip(-1) == 1
    weights = member.to(hidden.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return weights @ hidden, index < groups[:, None]
