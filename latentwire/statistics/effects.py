"""Effect sizes, first against second, with intervals.

An interval takes the effect size as smooth in the means that it is made of: each example has an
influence on it, the influences of a cluster are added, and their spread gives the standard error
(the infinitesimal jackknife), to which Student's t with clusters - 1 degrees of freedom belongs.
"""

from collections.abc import Callable

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from latentwire.statistics.bootstrap import Estimate, check_settings
from latentwire.statistics.clusters import (
    ROUNDING,
    Clusters,
    Floats,
    Labels,
    as_scores,
    paired_scores,
)


def cohens_d_paired(
    first: ArrayLike, second: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95
) -> Estimate:
    """Cohen's dz: mean over standard deviation of the differences.

    Args:
        first: `[examples]`.
        second: `[examples]`, in the same order.
        clusters: a label per example; none makes each example its own cluster.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number.
    """
    a, b = paired_scores(first, second)
    groups, differences = Clusters.of(clusters, len(a)), a - b
    spread = float(differences.std(ddof=1)) if len(a) > 1 else 0.0
    if spread <= ROUNDING * max(abs(a).max(), abs(b).max()):
        return _undefined("no variation between differences", groups)
    value = float(differences.mean()) / spread
    standard = (differences - differences.mean()) / spread
    return _estimate(value, standard - value / 2 * (standard**2 - 1), groups, confidence)


def cohens_d_pooled(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Cohen's d of two independent groups: difference of means over the pooled deviation.

    Assumes independent questions; the interval is Hedges and Olkin's for large samples.

    Args:
        first: `[examples]`.
        second: `[examples]`, of other examples.

    Raises:
        ValueError: if scores are empty or not finite.
    """
    check_settings(confidence)
    a, b = as_scores(first, "first scores"), as_scores(second, "second scores")
    count, unit = len(a) + len(b), "independent examples"
    squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
    pooled = float(np.sqrt(squares / max(count - 2, 1)))
    if pooled <= ROUNDING * max(abs(a).max(), abs(b).max()):
        return Estimate(None, None, count, count, "no variation within the groups", unit)
    value = float(a.mean() - b.mean()) / pooled
    error = np.sqrt(count / (len(a) * len(b)) + value**2 / (2 * count))
    half = float(scipy.stats.norm.ppf((1 + confidence) / 2) * error)
    return Estimate(value, (value - half, value + half), count, count, unit=unit)


def cliffs_delta(
    first: ArrayLike, second: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95
) -> Estimate:
    """How much more often a score of the first is above one of the second than below (Cliff 1993).

    Over all pairs of a first and a second score, -1 to 1; the interval, on the scale of Fisher's z,
    knows that the scores are of the same examples. Arguments and errors are those of
    `cohens_d_paired`.
    """
    a, b = paired_scores(first, second)
    groups = Clusters.of(clusters, len(a))
    influence = _dominance(a, b) - _dominance(b, a)
    value = float(influence.mean()) / 2
    if abs(value) == 1:
        return _undefined("every score of one is above all of the other", groups, value)
    influence = (influence - 2 * value) / (1 - value**2)
    return _estimate(value, influence, groups, confidence, np.arctanh, np.tanh)


def odds_ratio(
    first: ArrayLike, second: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95
) -> Estimate:
    """Paired odds ratio: examples that only the first gets right over those that only the second.

    Args:
        first: `[examples]`, 0 or 1.
        second: `[examples]`, in the same order.
        clusters: a label per example; none makes each example its own cluster.

    Raises:
        ValueError: if scores are empty, not 0 or 1, or differ in number.
    """
    a, b = paired_binary(first, second)
    groups = Clusters.of(clusters, len(a))
    only_first, only_second = (a > b).astype(float), (b > a).astype(float)
    if not only_first.any() or not only_second.any():
        which = "first" if only_second.any() else "second"
        return _undefined(f"no example that only the {which} gets right", groups)
    value = float(only_first.sum() / only_second.sum())
    influence = only_first / only_first.mean() - only_second / only_second.mean()
    return _estimate(value, influence, groups, confidence, np.log, np.exp)


def paired_binary(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Two arrays of 0 and 1 over the same examples.

    Raises:
        ValueError: if they are empty, hold anything else, or differ in number.
    """
    scores = paired_scores(first, second)
    for values in scores:
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"scores must be 0 or 1, got {values[~np.isin(values, (0, 1))][0]:g}")
    return scores


def _dominance(scores: Floats, others: Floats) -> Floats:
    """Share of the others that each score is above, less the share that it is below."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, scores, side="left")
    not_above = np.searchsorted(ranked, scores, side="right")
    return (below + not_above - len(others)) / len(others)


def _estimate(
    value: float,
    influence: Floats,
    clusters: Clusters,
    confidence: float,
    to_scale: Callable[[float], float] = float,
    from_scale: Callable[[float], float] = float,
) -> Estimate:
    """The value with its interval.

    Args:
        influence: `[examples]`, on the scale of the interval.
    """
    check_settings(confidence)
    sums = clusters.sums(influence[:, None])[:, 0]
    error = np.sqrt(np.square(sums).sum() * clusters.count / max(clusters.count - 1, 1))
    error /= len(influence)
    if clusters.count == 1:
        return _undefined("one cluster", clusters, value)
    if error <= ROUNDING * np.abs(influence).max():
        return _undefined("no variation between clusters", clusters, value)
    half = scipy.stats.t.ppf((1 + confidence) / 2, clusters.count - 1) * error
    centre = to_scale(value)
    return Estimate(
        value=value,
        ci=(float(from_scale(centre - half)), float(from_scale(centre + half))),
        n=len(influence),
        n_clusters=clusters.count,
    )


def _undefined(reason: str, clusters: Clusters, value: float | None = None) -> Estimate:
    return Estimate(value, None, len(clusters.codes), clusters.count, reason)
