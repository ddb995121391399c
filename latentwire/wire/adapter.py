"""The adapter: latents to soft tokens of one receiver."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """A small MLP into a receiver's embedding space, with a learned gain.

    Soft tokens start with a root mean square of `gain`, and are free to leave it: published soft
    tokens grow to norms far above the vocabulary's. What they add to the keys and values of layers,
    as the prompts of P-Tuning v2 (arXiv 2110.07602) do, starts at zero.

    Args:
        latent_dim: width L of a latent.
        hidden_dim: width of the hidden layer.
        embedding_dim: width D of the receiver's embeddings.
        gain: start of the root mean square of a soft token's entries.
        learned_gain: whether training may change it.
        deep_layers: layers, from the first on, whose keys and values soft tokens add to.
        key_value_dim: width W of these, side by side.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        embedding_dim: int,
        gain: float,
        learned_gain: bool = True,
        deep_layers: int = 0,
        key_value_dim: int = 0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(latent_dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, embedding_dim)
        self.deep = nn.ModuleList(nn.Linear(hidden_dim, key_value_dim) for _ in range(deep_layers))
        for parameter in self.deep.parameters():
            nn.init.zeros_(parameter)
        self.log_gain = nn.Parameter(torch.tensor(gain).log(), requires_grad=learned_gain)

    def forward(self, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Maps latents `[..., L]` to soft tokens `[..., D]`, and `[..., W]` for each deep layer."""
        hidden = F.gelu(self.up(latents))
        mapped = self.down(hidden)
        soft_tokens = F.rms_norm(mapped.float(), mapped.shape[-1:]) * self.log_gain.exp()
        return soft_tokens, tuple(layer(hidden) for layer in self.deep)
