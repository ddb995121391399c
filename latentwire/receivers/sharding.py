"""Layers whose weights are spread over the processes that train together.

A layer's weights are gathered while it is at work, forward and backward, and each process keeps its
share otherwise: FSDP (arXiv 2304.11277) as torch's `fully_shard` has it. All processes must go
through the layers alike.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_layers(layers: nn.ModuleList, device: str) -> None:
    """Spreads the weights of each layer over all processes, and puts them on their devices.

    Args:
        layers: of a transformer, on the CPU.
        device: `cpu` or `cuda`.
    """
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
