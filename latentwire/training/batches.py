"""The order of training passages: a pure function of seed and step."""

from collections.abc import Sequence
from functools import cache

import numpy as np

_STEPS_PER_BUCKET = 64


class BatchOrder:
    """Batches of about equal token counts, bucketed by length so that little is padding.

    Every epoch shuffles the passages, sorts them by length within buckets of many steps, cuts
    batches at a token budget, and shuffles the batches.

    Args:
        lengths: cost of each passage in tokens.
        passages_per_step: passages of a batch on average.
        seed: seed of the order.
    """

    def __init__(self, lengths: Sequence[int], passages_per_step: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._bucket = passages_per_step * _STEPS_PER_BUCKET
        self._budget = passages_per_step * self._lengths.mean()
        self._seed = seed
        self._epoch = cache(self._make_epoch)

    def batch(self, step: int) -> tuple[int, list[int]]:
        """The epoch that a step is in, and the indices of its passages."""
        epoch = 0
        while step >= len(self._epoch(epoch)):
            step -= len(self._epoch(epoch))
            epoch += 1
        return epoch, self._epoch(epoch)[step]

    def num_steps(self, epochs: float) -> int:
        """Steps that a number of epochs takes."""
        whole = sum(len(self._epoch(epoch)) for epoch in range(int(epochs)))
        part = epochs - int(epochs)
        return max(1, whole + (round(part * len(self._epoch(int(epochs)))) if part else 0))

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self._seed, epoch))
        shuffled = rng.permutation(len(self._lengths))
        batches = []
        for start in range(0, len(shuffled), self._bucket):
            bucket = shuffled[start : start + self._bucket]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            batches += self._cut(bucket)
        return [batches[index] for index in rng.permutation(len(batches))]

    def _cut(self, indices: np.ndarray) -> list[list[int]]:
        batch_number = (self._lengths[indices].cumsum() - 1) // self._budget
        return [
            part.tolist() for part in np.split(indices, np.flatnonzero(np.diff(batch_number)) + 1)
        ]
