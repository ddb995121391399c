"""The clustered bootstrap: clusters are drawn with replacement, their examples stay together.

A resample is a count per cluster, and its statistics are products of the counts with the sums per
cluster, so that many statistics share the same resamples at little cost. Counts are made in chunks,
which bounds the memory.

Training seeds are random units as well, but a handful of them says little about all that there
could be: from MIN_SEEDS up they are drawn too, below that everything is given the seeds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from latentwire.statistics.clusters import (
    ROUNDING,
    ClusteredRatios,
    Clusters,
    Floats,
    Labels,
    as_scores,
    seed_scores,
)

RandomState = int | np.random.Generator | None
IntervalMethod = Literal["percentile", "bca"]
CHUNK = 256
"""Resamples made together: 256 x 2,000 clusters take 4 MB."""
MIN_SEEDS = 5
"""Fewest training seeds that are resampled."""
ONE_SIDED = "all resamples lie on one side of the observed value"


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: the statistic; none where it is undefined.
        ci: interval (low, high); none where it cannot be estimated.
        reason: why there is no value or no interval.
        unit: what the interval is over.
    """

    value: float | None
    ci: tuple[float, float] | None
    n: int
    n_clusters: int
    reason: str | None = None
    unit: str = "clusters"


def bootstrap_ci(
    scores: ArrayLike,
    *,
    relative_to: ArrayLike | None = None,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    method: IntervalMethod = "percentile",
) -> Estimate:
    """The mean of scores, or its ratio to the mean of other scores of the same examples.

    With five training seeds or more these are drawn with replacement as well as the clusters (they
    are crossed: every seed answers every question). What that adds to the error of a resample is
    scaled to what Student's t allows for so few seeds.

    Args:
        scores: `[examples]`, or `[seeds, examples]`.
        relative_to: like scores, or `[examples]` for all seeds; given, the statistic is
            sum(scores) / sum(relative_to).
        clusters: a label per example; none makes each example its own cluster.
        method: as in `bootstrap_cis`.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number, or a setting is out of
            range.
    """
    numerators = seed_scores(scores)
    denominators = np.ones_like(numerators)
    if relative_to is not None:
        denominators = seed_scores(relative_to, "relative_to")
        if denominators.shape not in (numerators.shape, (1, numerators.shape[1])):
            raise ValueError(f"shapes differ: {numerators.shape} and {denominators.shape}")
        denominators = np.broadcast_to(denominators, numerators.shape)
    check_settings(confidence, n_resamples)
    groups = Clusters.of(clusters, numerators.shape[1])
    drawn = _resampled_over_seeds(
        numerators, denominators, groups, n_resamples, random_state, confidence
    )
    estimate = _estimates(drawn, method, confidence, numerators.shape[1])[0]
    return replace(estimate, unit=unit_of(len(numerators)))


def bootstrap_ci_multiple_metrics(
    scores: Mapping[str, ArrayLike],
    *,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    method: IntervalMethod = "percentile",
) -> dict[str, Estimate]:
    """The mean of each metric, all on the same resamples.

    Args:
        scores: `[examples]` by metric.

    Raises:
        ValueError: as `bootstrap_ci`, or if there are no metrics or they differ in number.
    """
    if not scores:
        raise ValueError("there are no metrics")
    columns = {name: as_scores(values, name) for name, values in scores.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"metrics differ in number: {lengths}")
    estimates = bootstrap_cis(
        np.column_stack(list(columns.values())),
        clusters=clusters,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
        method=method,
    )
    return dict(zip(columns, estimates, strict=True))


def bootstrap_cis(
    numerators: Floats,
    denominators: Floats | None = None,
    *,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    method: IntervalMethod = "percentile",
) -> list[Estimate]:
    """As `bootstrap_ci` for every column of `[examples, columns]`, on the same resamples.

    Both kinds of interval read quantiles of the resampled statistic, at levels that are expanded
    for few clusters (Hesterberg 2015): a resample has too little spread, by
    sqrt((clusters - 1) / clusters), and the normal distribution too thin tails.

    Args:
        method: `percentile`, or `bca`, which also corrects for bias and skewness (Efron 1987), the
            acceleration by leaving out one cluster at a time.

    Raises:
        ValueError: if the two arrays or the clusters differ in number, or a setting is out of
            range.
    """
    if denominators is not None and denominators.shape != numerators.shape:
        raise ValueError(f"shapes differ: {numerators.shape} and {denominators.shape}")
    check_settings(confidence, n_resamples)
    groups = Clusters.of(clusters, len(numerators))
    ratios = ClusteredRatios.of(numerators, denominators, groups)
    drawn = Resampled(ratios, resampled_values(ratios, n_resamples, random_state))
    return _estimates(drawn, method, confidence, len(numerators))


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


def resampled_means(
    scores: Floats,
    clusters: Clusters,
    n_resamples: int,
    random_state: RandomState,
    confidence: float,
) -> Resampled:
    """The mean of `[seeds, examples]`; from MIN_SEEDS up, seeds are drawn as well."""
    return _resampled_over_seeds(
        scores, np.ones_like(scores), clusters, n_resamples, random_state, confidence
    )


def resampled_values(
    ratios: ClusteredRatios, n_resamples: int, random_state: RandomState
) -> Floats:
    """The ratios in each resample of the clusters, `[resamples, columns]`."""
    sums = np.hstack([ratios.numerators, ratios.denominators])
    return _divide(*np.hsplit(_resampled_sums(sums, n_resamples, random_state), 2))


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


def why_not_estimable(ratios: ClusteredRatios) -> list[str | None]:
    """For each column why it has no interval and no test, or none if it has."""
    if len(ratios.numerators) == 1:
        return ["one cluster"] * ratios.numerators.shape[1]
    return [
        "undefined: division by zero"
        if not np.isfinite(value)
        else "no variation between clusters"
        if error == 0
        else None
        for value, error in zip(ratios.values, ratios.standard_errors, strict=True)
    ]


def unit_of(num_seeds: int) -> str:
    """What an interval or test is over."""
    if num_seeds == 1:
        return "clusters"
    return "clusters and seeds" if num_seeds >= MIN_SEEDS else "clusters, given the seeds"


def check_settings(confidence: float, n_resamples: int = 1) -> None:
    """Refuses what no interval has.

    Raises:
        ValueError: if confidence is not between 0 and 1, or there are no resamples.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")


def _resampled_over_seeds(
    numerators: Floats,
    denominators: Floats,
    clusters: Clusters,
    n_resamples: int,
    random_state: RandomState,
    confidence: float,
) -> Resampled:
    """One ratio from `[seeds, examples]`."""
    generator = np.random.default_rng(random_state)
    by_seed = [clusters.sums(values.T) for values in (numerators, denominators)]
    above, below = np.hsplit(_resampled_sums(np.hstack(by_seed), n_resamples, generator), 2)
    values = _divide(above.sum(axis=1), below.sum(axis=1))
    values = values + _seed_deviations(above, below, generator, confidence)
    observed = ClusteredRatios(*(sums.mean(axis=1, keepdims=True) for sums in by_seed))
    return Resampled(observed, values[:, None])


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


def _estimates(
    drawn: Resampled, method: IntervalMethod, confidence: float, num_examples: int
) -> list[Estimate]:
    count = len(drawn.ratios.numerators)
    normal = expanded_normal(confidence, count)
    lows, highs = drawn.bounds(normal, method), drawn.bounds(-normal, method)
    return [
        _estimate(value, reason, (low, high), num_examples, count)
        for value, reason, low, high in zip(
            drawn.ratios.values, _reasons(drawn), lows, highs, strict=True
        )
    ]


def _reasons(drawn: Resampled) -> list[str | None]:
    finite = [bool(np.isfinite(column).all()) for column in drawn.values.T]
    return [
        reason or (None if is_finite else "undefined in some resamples: division by zero")
        for reason, is_finite in zip(why_not_estimable(drawn.ratios), finite, strict=True)
    ]


def _estimate(
    value: float,
    reason: str | None,
    ci: tuple[float, float],
    n: int,
    n_clusters: int,
) -> Estimate:
    if reason is None and not np.isfinite(ci).all():
        reason = ONE_SIDED
    return Estimate(
        value=float(value) if np.isfinite(value) else None,
        ci=None if reason else (float(ci[0]), float(ci[1])),
        n=n,
        n_clusters=n_clusters,
        reason=reason,
    )


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
