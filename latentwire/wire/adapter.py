"""The adapter: latents to soft tokens of one receiver."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """A small MLP into a receiver's embedding space, with a learned gain.

    Soft tokens start with a root mean square of `gain`, and are free to leave it: published soft
    tokens grow to norms far above the vocabulary's.

    Args:
        latent_dim: width L of a latent.
        hidden_dim: width of the hidden layer.
        embedding_dim: width D of the receiver's embeddings.
        gain: start of the root mean square of a soft token's entries.
        learned_gain: whether training may change it.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        embedding_dim: int,
        gain: float,
        learned_gain: bool = True,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(latent_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, embedding_dim)
        self.log_gain = nn.Parameter(torch.tensor(gain).log(), requires_grad=learned_gain)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[..., L]` to soft tokens `[..., D]`."""
        mapped = self.down(F.gelu(self.up(latents)))
        return F.rms_norm(mapped.float(), mapped.shape[-1:]) * self.log_gain.exp()
