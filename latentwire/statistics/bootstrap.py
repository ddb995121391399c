"""Intervals by the clustered bootstrap."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from latentwire.statistics.clusters import (
    ClusteredRatios,
    Clusters,
    Floats,
    Labels,
    as_scores,
    seed_scores,
)
from latentwire.statistics.resampling import (
    IntervalMethod,
    RandomState,
    Resampled,
    expanded_normal,
    resample,
    resample_with_seeds,
    unit_of,
)

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
    drawn = resample_with_seeds(
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
    drawn = resample(ratios, n_resamples, random_state)
    return _estimates(drawn, method, confidence, len(numerators))


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


def check_settings(confidence: float, n_resamples: int = 1) -> None:
    """Refuses what no interval has.

    Raises:
        ValueError: if confidence is not between 0 and 1, or there are no resamples.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")


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
