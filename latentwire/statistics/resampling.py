"""Resamples of clusters: they are drawn with replacement, their examples stay together.

A resample is a count per cluster, and its statistics are products of the counts with the sums per
cluster, so that many statistics share the same resamples at little cost. Counts are made in chunks,
which bounds the memory.

Training seeds are random units as well, but a handful of them says little about all that there
could be: from MIN_SEEDS up they are drawn too, below that everything is given the seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats

from latentwire.statistics.clusters import ROUNDING, ClusteredRatios, Clusters, Floats

RandomState = int | np.random.Generator | None
IntervalMethod = Literal["percentile", "bca"]
CHUNK = 256
"""Resamples made together: 256 x 2,000 clusters take 4 MB."""
MIN_SEEDS = 5
"""Fewest training seeds that are resampled."""


@dataclass(frozen=True)
class Resampled:
    """Statistics and what they are in each resample.

    Attributes:
        ratios: the observed ones, with `columns` statistics.
        values: `[resamples, columns]`.
    """

    ratios: ClusteredRatios
    values: Floats

    @property
    def bias(self) -> Floats:
        """`[columns]`, on the scale of the normal distribution (Efron 1987)."""
        observed = self.ratios.values
        below = (self.values < observed).mean(axis=0) + (self.values <= observed).mean(axis=0)
        return scipy.stats.norm.ppf(below / 2)

    @property
    def acceleration(self) -> Floats:
        """`[columns]`, by leaving out one cluster at a time."""
        above, below = self.ratios.numerators, self.ratios.denominators
        left_out = _divide(above.sum(axis=0) - above, below.sum(axis=0) - below)
        influence = left_out.mean(axis=0) - left_out
        return _divide((influence**3).sum(axis=0), 6 * np.square(influence).sum(axis=0) ** 1.5)

    def bounds(self, normal: float, method: IntervalMethod) -> Floats:
        """`[columns]`, at a quantile of the standard normal distribution.

        Raises:
            ValueError: if the method is unknown.
        """
        match method:
            case "percentile":
                levels = np.full(self.values.shape[1], normal)
            case "bca":
                shifted = self.bias + normal
                levels = self.bias + _divide(shifted, 1 - self.acceleration * shifted)
            case _:
                raise ValueError(f"method must be percentile or bca, got {method!r}")
        usable = np.where(np.isfinite(self.values), self.values, 0.0)
        return np.array(
            [
                np.quantile(column, level) if np.isfinite(level) else np.nan
                for column, level in zip(usable.T, scipy.stats.norm.cdf(levels), strict=True)
            ]
        )

    def p_values_above_zero(self) -> Floats:
        """`[columns]`, one-sided, of the hypotheses that the statistics are 0 or less.

        Each is the level at which the one-sided BCa bound, expanded for few clusters, turns from
        above to below 0. NaN where there is none.
        """
        slack = ROUNDING * np.abs(self.values).max(axis=0)
        share = ((self.values <= slack).sum(axis=0) + 1) / (len(self.values) + 1)
        shifted = scipy.stats.norm.ppf(np.minimum(share, 1 - 1 / (len(self.values) + 1)))
        shifted = shifted - self.bias
        normal = shifted / (1 + self.acceleration * shifted) - self.bias
        count = len(self.ratios.numerators)
        return scipy.stats.t.cdf(normal * np.sqrt((count - 1) / count), count - 1)

    @property
    def mirrored(self) -> "Resampled":
        """The same of the negated statistics."""
        negated = ClusteredRatios(-self.ratios.numerators, self.ratios.denominators)
        return Resampled(negated, -self.values)


def resample(ratios: ClusteredRatios, n_resamples: int, random_state: RandomState) -> Resampled:
    """Draws clusters."""
    sums = np.hstack([ratios.numerators, ratios.denominators])
    above, below = np.hsplit(_resampled_sums(sums, n_resamples, random_state), 2)
    return Resampled(ratios, _divide(above, below))


def resample_with_seeds(
    numerators: Floats,
    denominators: Floats,
    clusters: Clusters,
    n_resamples: int,
    random_state: RandomState,
    confidence: float,
) -> Resampled:
    """Draws clusters, and from MIN_SEEDS up seeds, for one ratio.

    Args:
        numerators, denominators: `[seeds, examples]`.
        confidence: what the part of the seeds is scaled for.
    """
    generator = np.random.default_rng(random_state)
    by_seed = [clusters.sums(values.T) for values in (numerators, denominators)]
    above, below = np.hsplit(_resampled_sums(np.hstack(by_seed), n_resamples, generator), 2)
    values = _divide(above.sum(axis=1), below.sum(axis=1))
    values = values + _seed_deviations(above, below, generator, confidence)
    observed = ClusteredRatios(*(sums.mean(axis=1, keepdims=True) for sums in by_seed))
    return Resampled(observed, values[:, None])


def centred_errors(
    scores: Floats,
    clusters: Clusters,
    n_resamples: int,
    random_state: RandomState,
    confidence: float,
) -> Floats:
    """How far each resample's mean lies from the observed one, `[resamples]`.

    Studentised (Hall and Wilson 1991): in units of the resample's own standard error, times the
    observed standard error. Without that, scores near a ceiling let a one-sided test at 5 % err in
    more than 10 % of cases. A resample without variation errs infinitely, which is conservative.

    Args:
        scores: `[seeds, examples]`; from MIN_SEEDS up, seeds are drawn as well.
        confidence: what the part of the seeds is scaled for.
    """
    generator = np.random.default_rng(random_state)
    means = ClusteredRatios.of(scores.mean(axis=0)[:, None], None, clusters)
    sizes = means.denominators[:, 0]
    residuals = means.numerators[:, 0] - means.values[0] * sizes
    moments = [residuals, sizes, residuals**2, residuals * sizes, sizes**2]
    by_seed = clusters.sums(scores.T)
    resampled = _resampled_sums(np.column_stack([*moments, by_seed]), n_resamples, generator)
    r, n, rr, rn, nn = resampled[:, : len(moments)].T
    errors = r / n
    squares = rr - 2 * errors * rn + errors**2 * nn
    squares[squares <= ROUNDING * rr] = 0.0
    errors[np.abs(errors) <= ROUNDING * np.abs(residuals).max() / n] = 0.0
    spread = np.sqrt(squares * clusters.count / (clusters.count - 1)) / n
    studentised = _divide(errors, np.where(errors == 0, 1.0, spread))
    seeds = _seed_deviations(
        resampled[:, len(moments) :], np.tile(n[:, None], len(scores)), generator, confidence
    )
    return studentised * means.standard_errors[0] + seeds


def expanded_normal(confidence: float, count: int) -> float:
    """The low normal quantile of a two-sided interval from so few resampled units."""
    return float(scipy.stats.norm.ppf((1 - confidence) / 2) * _inflation(confidence, count))


def unit_of(num_seeds: int) -> str:
    """What an interval or test is over."""
    if num_seeds == 1:
        return "clusters"
    return "clusters and seeds" if num_seeds >= MIN_SEEDS else "clusters, given the seeds"


def _seed_deviations(
    numerators: Floats, denominators: Floats, generator: np.random.Generator, confidence: float
) -> Floats:
    """What drawing seeds adds to each resample of clusters, `[resamples]`; 0 for few seeds.

    Args:
        numerators, denominators: sums of each resample by seed, `[resamples, seeds]`.
    """
    num_resamples, num_seeds = numerators.shape
    if num_seeds < MIN_SEEDS:
        return np.zeros(num_resamples)
    weights = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    drawn = _divide((weights * numerators).sum(axis=1), (weights * denominators).sum(axis=1))
    given = _divide(numerators.sum(axis=1), denominators.sum(axis=1))
    return (drawn - given) * _inflation(confidence, num_seeds)


def _inflation(confidence: float, count: int) -> float:
    """By how much a bootstrap of so few units spreads too little at this confidence."""
    if count < 2:
        return 1.0
    tail = (1 - confidence) / 2
    ratio = scipy.stats.t.ppf(tail, count - 1) / scipy.stats.norm.ppf(tail)
    return float(np.sqrt(count / (count - 1)) * ratio)


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerators / denominators


def _resampled_sums(sums: Floats, n_resamples: int, random_state: RandomState) -> Floats:
    """Sums over each resample of the clusters: `[clusters, columns]` to `[resamples, columns]`."""
    return np.vstack([counts @ sums for counts in _counts(len(sums), n_resamples, random_state)])


def _counts(num_clusters: int, n_resamples: int, random_state: RandomState) -> Iterator[Floats]:
    """How often each cluster is drawn, in chunks of `[resamples, clusters]`."""
    generator = np.random.default_rng(random_state)
    for start in range(0, n_resamples, CHUNK):
        num_rows = min(CHUNK, n_resamples - start)
        drawn = generator.integers(num_clusters, size=(num_rows, num_clusters))
        drawn += np.arange(num_rows)[:, None] * num_clusters
        counts = np.bincount(drawn.ravel(), minlength=num_rows * num_clusters)
        yield counts.reshape(num_rows, num_clusters).astype(float)
