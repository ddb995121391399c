"""Examples in clusters: questions about one passage are not independent, passages are.

Every statistic here is a ratio of sums over examples (a mean is a sum over a count), so that the
sums per cluster are all that a resampling of clusters needs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Labels = Sequence[Hashable] | NDArray[np.generic]

ROUNDING = 1e-12
"""Relative size below which a spread is rounding error."""


@dataclass(frozen=True)
class Clusters:
    """The cluster of each example.

    Attributes:
        codes: `[examples]`, from 0 to `count` - 1.
        count: number of clusters.
    """

    codes: NDArray[np.intp]
    count: int

    @classmethod
    def of(cls, labels: Labels | None, num_examples: int) -> "Clusters":
        """Clusters from a label per example; without labels each example is its own.

        Raises:
            ValueError: if the number of labels is not the number of examples, or one is missing.
        """
        if labels is None:
            return cls(np.arange(num_examples), num_examples)
        if len(labels) != num_examples:
            raise ValueError(f"{len(labels)} cluster labels for {num_examples} scores")
        if any(label is None or label != label for label in labels):
            raise ValueError("every score needs a cluster label; some are missing (None or NaN)")
        names, codes = np.unique(np.asarray(labels), return_inverse=True)
        return cls(codes, len(names))

    def sums(self, columns: Floats) -> Floats:
        """`[examples, columns]` to `[clusters, columns]`."""
        return np.column_stack(
            [np.bincount(self.codes, weights=column, minlength=self.count) for column in columns.T]
        )


@dataclass(frozen=True)
class ClusteredRatios:
    """Ratios of sums, by cluster; a mean is the ratio to a count.

    Attributes:
        numerators, denominators: `[clusters, columns]`.
    """

    numerators: Floats
    denominators: Floats

    @classmethod
    def of(
        cls, numerators: Floats, denominators: Floats | None, clusters: Clusters
    ) -> "ClusteredRatios":
        """From `[examples, columns]`; without denominators the ratios are means."""
        if denominators is None:
            sizes = np.bincount(clusters.codes, minlength=clusters.count).astype(float)
            sums = clusters.sums(numerators)
            return cls(sums, np.broadcast_to(sizes[:, None], sums.shape))
        return cls(clusters.sums(numerators), clusters.sums(denominators))

    @property
    def values(self) -> Floats:
        """`[columns]`; not finite where a denominator is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.numerators.sum(axis=0) / self.denominators.sum(axis=0)

    @property
    def standard_errors(self) -> Floats:
        """`[columns]`, by linearisation over clusters; zero where nothing varies between them."""
        count = len(self.numerators)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = self.values * self.denominators
            scale = np.abs(self.numerators).max(axis=0) + np.abs(expected).max(axis=0)
            residuals = self.numerators - expected
            residuals = np.where(np.abs(residuals) <= ROUNDING * scale, 0.0, residuals)
            spread = np.sqrt(np.square(residuals).sum(axis=0) * count / max(count - 1, 1))
            return spread / np.abs(self.denominators.sum(axis=0))


def as_scores(values: ArrayLike, name: str = "scores") -> Floats:
    """A finite float array `[examples]`.

    Raises:
        ValueError: if it is empty, not one-dimensional, or holds NaN or infinity.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(
            f"{name} must be a list of one score per example, got shape {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} must be finite; {np.sum(~np.isfinite(scores))} are not")
    return scores


def seed_scores(values: ArrayLike, name: str = "scores") -> Floats:
    """A finite float array `[seeds, examples]`, from that or from `[examples]`.

    Raises:
        ValueError: if it is empty, has more dimensions, or holds NaN or infinity.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        return as_scores(rows, name)[None]
    return np.stack([as_scores(row, f"{name} of seed {seed}") for seed, row in enumerate(rows)])


def paired_scores(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Two score arrays over the same examples, in the same order.

    Raises:
        ValueError: if their lengths differ, or as `as_scores`.
    """
    scores = as_scores(first, "first scores"), as_scores(second, "second scores")
    _check_same_number(len(scores[0]), len(scores[1]))
    return scores


def paired_seed_scores(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Two arrays `[seeds, examples]`; one without seeds stands beside every seed of the other.

    Raises:
        ValueError: if their numbers of examples or seeds differ, or as `seed_scores`.
    """
    a, b = seed_scores(first, "first scores"), seed_scores(second, "second scores")
    _check_same_number(a.shape[1], b.shape[1])
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(f"paired scores differ in their seeds: {len(a)} and {len(b)}")
    shape = (max(len(a), len(b)), a.shape[1])
    return np.broadcast_to(a, shape), np.broadcast_to(b, shape)


def _check_same_number(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"paired scores differ in number: {first} and {second}")
