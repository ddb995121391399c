"""Copies of tensors in host memory, so that training goes on while its state is written."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """A copy of a nested state that is made again and again in the same memory.

    Fresh memory comes slowly, page by page; memory that is there already is filled in a fraction of
    that time.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def prepare(self, state: Any) -> None:
        """Takes the memory that a copy of a state needs."""
        _map(state, self._buffer)

    def of(self, state: Any) -> Any:
        """The state with its tensors copied; it holds until the next copy."""
        copied = _map(state, self._fill)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _fill(self, path: str, tensor: Tensor) -> Tensor:
        return self._buffer(path, tensor).copy_(tensor.detach(), non_blocking=True)

    def _buffer(self, path: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            # A GPU copies several times as fast into memory that stays in its place.
            buffer = torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[path] = buffer
        return buffer


def _map(value: Any, change: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """Changes each tensor of nested dictionaries and lists, known by its path."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, dict):
        return {key: _map(own, change, f"{path}/{key}") for key, own in value.items()}
    if isinstance(value, list):
        return [_map(own, change, f"{path}/{index}") for index, own in enumerate(value)]
    return value
