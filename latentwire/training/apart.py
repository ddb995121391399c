"""Losses whose backward pass is made at once, so that what they were made of is not kept."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from latentwire.training.parts import Losses


def losses_apart(
    losses_of: Callable[[Tensor], Losses], given: Tensor, weights: Sequence[Tensor]
) -> Losses:
    """Losses of a tensor, of which a later backward pass finds the gradients made.

    What several receivers make of the same latents never lives together so.

    Args:
        losses_of: the losses; the gradient of `loss` is wanted.
        given: what they are of.
        weights: what else the gradient is wanted by.
    """
    cut = given.detach().requires_grad_(given.requires_grad)
    losses = losses_of(cut)
    wanted = [weight for weight in weights if weight.requires_grad]
    inputs, places = ([cut, *wanted], [given, *wanted]) if cut.requires_grad else (wanted, wanted)
    gradients = torch.autograd.grad(losses["loss"], inputs, allow_unused=True)
    loss = _Made.apply(losses["loss"].detach(), gradients, *places)
    return {name: own.detach() for name, own in losses.items()} | {"loss": loss}


class _Made(torch.autograd.Function):
    """A value whose gradients by some tensors are known."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *places: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # They are wanted once, and changed in their place.
        gradients, ctx.gradients = ctx.gradients, ()
        return None, None, *(None if own is None else own.mul_(upstream) for own in gradients)
