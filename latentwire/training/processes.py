"""The processes that train together: each reads a share of every step, and all of them step alike.

One of them leads: it alone holds the lease, saves, measures and writes. A process that trains alone
leads, and has all of every step; nothing here then computes anything.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentwire.errors import ProcessLostError

P = ParamSpec("P")

_apart = ContextVar("apart", default=False)


def num_processes() -> int:
    together = dist.is_available() and dist.is_initialized() and not _apart.get()
    return dist.get_world_size() if together else 1


def is_leader() -> bool:
    return num_processes() == 1 or dist.get_rank() == 0


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


def own_share(costs: Sequence[int]) -> list[int]:
    """The indices of what this process does of a step; none where there is less than one each."""
    if num_processes() == 1:
        return [*range(len(costs))]
    return shares(costs, num_processes())[dist.get_rank()]


def shares(costs: Sequence[int], count: int) -> list[list[int]]:
    """Indices in order, parted into runs of about equal cost."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for index, (end, cost) in enumerate(zip(itertools.accumulate(costs), costs, strict=True)):
        # Whose part the middle of each falls into.
        parts[count * (2 * end - cost) // (2 * sum(costs))].append(index)
    return parts


def mean_of_all(mean: Tensor, count: int) -> Tensor:
    """The mean of values that are spread over the processes, weighted by how many each has.

    Its gradient is that of the own values; summed over the processes it is that of the mean.

    Args:
        mean: of the own values, a scalar.
        count: how many they are.
    """
    if num_processes() == 1:
        return mean
    # The mean of nothing is no number.
    own = mean * count if count else mean.nan_to_num()
    totals = torch.stack([own.detach().double(), own.new_tensor(count, dtype=torch.double)])
    with _noticing_ends():
        dist.all_reduce(totals)
    total, number = totals
    # All have the same bits, each its own gradient.
    return (total / number).to(own.dtype) + (own - own.detach()) / number.to(own.dtype)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Adds the gradients of all processes; what has none in any of them is left without."""
    if num_processes() == 1:
        return
    present = torch.tensor([parameter.grad is not None for parameter in parameters]).int()
    with _noticing_ends():
        dist.all_reduce(present, dist.ReduceOp.MAX)
        sums = []
        for parameter in itertools.compress(parameters, present.tolist()):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sums.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in sums:
            work.wait()


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
            "another process of this training has ended, and with it the training; started again, "
            "it goes on from its last save"
        ) from error
