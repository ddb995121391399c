"""Muon for weight matrices, AdamW for everything else, and one schedule for both."""

from collections.abc import Iterable

import torch
from torch import nn


def make_optimisers(
    parameters: Iterable[tuple[str, nn.Parameter]],
    matrix_learning_rate: float,
    other_learning_rate: float,
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for hidden matrices; AdamW for embeddings, vectors and scalars.

    Args:
        parameters: named parameters; embeddings are known by "embed" in their name.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=matrix_learning_rate,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=other_learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
        ),
    ]


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, a constant first half, linear decay to zero over the second half."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * min(1.0, 2 * (1 - step / num_steps))
