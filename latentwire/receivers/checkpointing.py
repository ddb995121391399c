"""Activation checkpointing: a layer keeps its input alone for the backward pass, which computes the
rest again (arXiv 1604.06174).

transformers does so for layers in training mode alone. Receivers stay in evaluation mode, in which
nothing is dropped out, and so does an encoder that was loaded.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers.modeling_layers import GradientCheckpointingLayer

Contexts = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]


def checkpoint_layers(model: nn.Module, contexts: Contexts = noop_context_fn) -> None:
    """Checkpoints the layers of a transformer from now on; without gradients nothing changes.

    Args:
        model: a model of transformers.
        contexts: called at each pass through a layer, for what that and its repetition run within.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, context_fn=contexts
            )
