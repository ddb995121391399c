"""The parts that a step is read in, by one process after another or by several at once.

Their gradients are added by halves, and halves of halves, so that the sum has the same bits whether
a process reads all parts or several share them: floating-point addition commutes, but the order of
more than two terms matters.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from latentwire.training.processes import num_processes, rank

Losses = dict[str, Tensor]
Counts = dict[str, int]


@dataclass(frozen=True)
class Part:
    """One of the parts of a step: which, of how many."""

    index: int
    count: int

    def own(self, costs: Sequence[int]) -> list[int]:
        """Indices of what is read in this part; none where the step has less than one for each."""
        return shares(costs, self.count)[self.index]


WHOLE = Part(0, 1)


def parts_of_each(micro_batches: int, processes: int) -> int:
    """How many parts each process reads, so that there are at least so many in all."""
    return -(-micro_batches // processes)


def own_parts(micro_batches: int) -> list[Part]:
    """Those of this process, in order."""
    each = parts_of_each(micro_batches, num_processes())
    first = rank() * each
    return [Part(index, each * num_processes()) for index in range(first, first + each)]


def shares(costs: Sequence[int], count: int) -> list[list[int]]:
    """Indices in order, parted into runs of about equal cost; the first is never empty."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for index, (end, cost) in enumerate(zip(itertools.accumulate(costs), costs, strict=True)):
        # Whose part each begins in.
        parts[count * (end - cost) // sum(costs)].append(index)
    return parts


def add_gradients(
    losses_of: Callable[[Part], tuple[Losses, Counts]],
    parts: Sequence[Part],
    trainable: Sequence[nn.Parameter],
) -> list[tuple[Losses, Counts]]:
    """Leaves the gradients of some parts, added up, in their parameters.

    One part's activations live at a time.

    Returns:
        What each part's losses and counts are, without their graphs.
    """
    if len(parts) == 1:
        losses, counts = losses_of(parts[0])
        if losses:
            losses["loss"].backward()
        return [({name: loss.detach() for name, loss in losses.items()}, counts)]
    middle = len(parts) // 2
    first = add_gradients(losses_of, parts[:middle], trainable)
    gradients = [parameter.grad for parameter in trainable]
    for parameter in trainable:
        parameter.grad = None
    second = add_gradients(losses_of, parts[middle:], trainable)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient
        elif gradient is not None:
            parameter.grad += gradient
    return first + second
