"""Muon for weight matrices, AdamW for everything else, and one schedule for both."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Larger matrices gain nothing by being taken together, and each needs memory.
MOST_TOGETHER = 2**22


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), which takes small matrices of one shape together.

    A step of many takes half as long so, and was seen to have the same bits. What is kept and saved
    is what torch's own keeps. Momentum is Nesterov's, and rates are those of `match_rms_adamw`,
    whatever `nesterov` and `adjust_lr_fn` say.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing passes one
        """Steps by the gradients that are there."""
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            averages: list[Tensor] = []
            self._init_group(group, parameters, gradients, averages)
            alike = defaultdict(list)
            for own in zip(parameters, gradients, averages, strict=True):
                alike[own[0].shape].append(own)
            for shape, together in alike.items():
                count = max(1, MOST_TOGETHER // shape.numel())
                for start in range(0, len(together), count):
                    _step(group, together[start : start + count])


def _step(group: dict[str, Any], matrices: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Moves parameters of one shape by their gradients and running averages of these."""
    momentum, rate = group["momentum"], group["lr"]
    parameters, gradients, averages = zip(*matrices, strict=True)
    torch._foreach_lerp_(averages, gradients, 1 - momentum)
    updates = torch.stack(torch._foreach_lerp(gradients, averages, momentum))
    updates = _orthogonalised(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
    if group["weight_decay"]:
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
    # The RMS of AdamW's updates (Liu et al. 2025, eq. 4).
    own_rate = rate * 0.2 * max(updates.shape[1:]) ** 0.5
    torch._foreach_add_(parameters, updates.unbind(), alpha=-own_rate)


def _orthogonalised(
    matrices: Tensor,
    coefficients: tuple[float, float, float],
    num_iterations: int,
    least_norm: float,
) -> Tensor:
    """The orthogonal matrices nearest to some, about: Newton-Schulz in bfloat16.

    Args:
        matrices: `[count, rows, columns]`.
        coefficients: of the polynomial, by power: 1, 3, 5.
        num_iterations: of it.
        least_norm: what a smaller Frobenius norm counts as.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=least_norm)
    linear, cubic, quintic = coefficients
    for _ in range(num_iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, polynomial, x, beta=linear)
    return x.mT if is_tall else x


def make_optimisers(
    parameters: Iterable[tuple[str, nn.Parameter]],
    matrix_learning_rate: float,
    other_learning_rate: float,
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices; AdamW for embeddings, vectors and scalars.

    Args:
        parameters: named parameters; embeddings are known by "embed" in their name.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_matrix = parameter.ndim == 2 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(
            others, lr=other_learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
        ),
    ]


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, a constant first half, linear decay to zero over the second half."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * min(1.0, 2 * (1 - step / num_steps))
