"""The processes that train together: each reads a share of every step, and all of them step alike.

One of them leads: it alone holds the lease, saves, measures and writes. A process that trains alone
leads, and has all of every step; nothing here then computes anything.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentwire.errors import ProcessLostError

P = ParamSpec("P")
# 256 MB in float32.
_BUCKET_NUMBERS = 2**26

_apart = ContextVar("apart", default=False)


def num_processes() -> int:
    together = dist.is_available() and dist.is_initialized() and not _apart.get()
    return dist.get_world_size() if together else 1


def rank() -> int:
    return 0 if num_processes() == 1 else dist.get_rank()


def is_leader() -> bool:
    return rank() == 0


def leader_only(method: Callable[P, None]) -> Callable[P, None]:
    """A method that does nothing in the other processes."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_leader():
            method(*args, **kwargs)

    return call


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Lets a process compute something of its own, as if it were alone."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def agree(number: int = 0) -> int:
    """Waits for all processes; the largest number that one of them gives."""
    if num_processes() == 1:
        return number
    largest = torch.tensor(number)
    with _noticing_ends():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def sum_losses(own: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Sums of what each part of a step adds to its losses; the leader has all of their names.

    Args:
        own: of this process's parts, as many in every process; nothing of one that is empty.
    """
    names = next((list(losses) for losses in own if losses), [])
    values = torch.zeros(len(own), agree(len(names)), dtype=torch.double)
    for row, losses in zip(values, own, strict=True):
        if losses:
            row.copy_(torch.stack([*losses.values()]))
    return dict(zip(names, _gathered(values).flatten(0, 1).sum(0).tolist(), strict=False))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Adds the gradients of all processes by halves; what has none in any of them keeps none."""
    if num_processes() == 1:
        return
    present = torch.tensor([parameter.grad is not None for parameter in parameters]).int()
    with _noticing_ends():
        dist.all_reduce(present, dist.ReduceOp.MAX)
    gradients = []
    for parameter in itertools.compress(parameters, present.tolist()):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        total = _by_halves(_gathered(torch.cat([*map(torch.flatten, bucket)])))
        sizes = [gradient.numel() for gradient in bucket]
        for gradient, part in zip(bucket, total.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of gradients that are sent together: few messages, and little memory."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(own.numel() for own in bucket) + gradient.numel() > _BUCKET_NUMBERS:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _gathered(own: Tensor) -> Tensor:
    """The same tensor of all processes, `[N, *own.shape]`."""
    if num_processes() == 1:
        return own[None]
    everything = own.new_empty(num_processes(), *own.shape)
    with _noticing_ends():
        dist.all_gather([*everything], own)
    return everything


def _by_halves(terms: Tensor) -> Tensor:
    """The sum over the first dimension; bits do not depend on who added up each half before."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return _by_halves(terms[:middle]) + _by_halves(terms[middle:])


def copy_from_leader(parameters: Iterable[nn.Parameter]) -> None:
    """Gives all processes the values of the leader, to the bit."""
    if num_processes() == 1:
        return
    with _noticing_ends():
        for parameter in parameters:
            dist.broadcast(parameter.detach(), 0)


@contextlib.contextmanager
def _noticing_ends() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "another process of this stage has ended, and with it the stage; started again, "
            "it goes on from its last save"
        ) from error
