"""From a sender's hidden states to what the encoder reads in the place of token embeddings.

Shapes: B sources, S tokens, K layers, H hidden width of the sender, D embedding width of the
encoder, T tokens of a sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LIMIT = 8.0
_QUARTILES_OF_NORMAL = 1.349


class SenderInput(nn.Module):
    """Robustly standardised states of all layers, side by side, projected.

    A few channels of a language model can be thousands of times larger than the others ("Massive
    Activations in Large Language Models", arXiv 2402.17762), often at a few tokens only. A norm
    over channels lets them drown the rest, and a standard deviation over tokens lets these tokens
    drown the others. So each channel is standardised by its median and quartiles, and cut off far
    outside of them.

    Args:
        num_layers: layers K of the states.
        hidden_size: width H of the sender.
        embedding_dim: width D of the encoder's embeddings.
        vocab_size: tokens V that the sender knows.

    Attributes:
        rarity: `[V]` how rare each of them is.
    """

    rarity: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self, num_layers: int, hidden_size: int, embedding_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.register_buffer("rarity", torch.zeros(vocab_size))
        self.register_buffer("centre", torch.zeros(num_layers, hidden_size))
        self.register_buffer("scale", torch.ones(num_layers, hidden_size))
        self.project = nn.Linear(num_layers * hidden_size, embedding_dim)

    @torch.no_grad()
    def fit(self, states: Tensor, embeddings: Tensor) -> None:
        """Starts from a sample of tokens.

        Args:
            states: `[T, K, H]` the sender's, whose medians and quartiles are taken.
            embeddings: `[T, D]` of the same places of the text, as the encoder knows them: the
                projection starts as the linear map that recovers them best.
        """
        count = len(states)
        lower, centre, upper = (
            states.kthvalue(1 + round(share * (count - 1)), dim=0).values
            for share in (0.25, 0.5, 0.75)
        )
        scale = (upper - lower) / _QUARTILES_OF_NORMAL
        # A channel that never changes says nothing; it must not divide by zero.
        least = 1e-3 * scale.median(dim=1, keepdim=True).values
        self.centre.copy_(centre)
        self.scale.copy_(scale.maximum(least).clamp(min=torch.finfo(scale.dtype).tiny))
        inputs = F.pad(self.standardise(states).float().flatten(1), (0, 1), value=1.0)
        # A little is added to the diagonal: channels may be copies of one another.
        covariance = inputs.T @ inputs / count + 1e-3 * torch.eye(inputs.shape[1]).to(inputs)
        solution = torch.linalg.solve(covariance, inputs.T @ embeddings.float() / count)
        self.project.weight.copy_(solution[:-1].T)
        self.project.bias.copy_(solution[-1])

    def standardise(self, states: Tensor) -> Tensor:
        """Features `[B, S, K, H]` of states of that shape, in half precision, which they fit."""
        return ((states - self.centre) / self.scale).clamp(-_LIMIT, _LIMIT).half()

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings `[B, S, D]` of features `[B, S, K, H]`."""
        return self.project(features.flatten(-2).to(self.project.weight.dtype))
