"""What a test of a given size can detect, and the size that an effect needs.

All rest on the two-sided t-test over clusters, whose ingredient is the standard deviation of a
cluster's mean difference.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.power import TTestPower

from latentwire.statistics.clusters import (
    ClusteredRatios,
    Clusters,
    Floats,
    Labels,
    as_scores,
    paired_scores,
)


def minimum_detectable_effect(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Labels | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float | None:
    """The smallest true mean difference that a two-sided test would detect with this power.

    Rests on the clustered standard error of the differences at hand and a t-test with clusters as
    its units. None with fewer than two clusters or no variation between them.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number.
    """
    a, b = paired_scores(first, second)
    groups = Clusters.of(clusters, len(a))
    deviation = cluster_deviation(a - b, groups)
    if deviation is None:
        return None
    return detectable_effect(groups.count, deviation, alpha, power)


def estimate_required_samples(
    effect_size: float,
    alpha: float = 0.05,
    power: float = 0.8,
    *,
    cluster_size: float = 1,
    icc: float = 0,
) -> int:
    """How many examples a paired test needs, in whole clusters of this size.

    Args:
        effect_size: Cohen's dz: mean over standard deviation of the differences.
        cluster_size: mean number of examples in a cluster.
        icc: correlation of the differences of two examples of a cluster.

    Raises:
        ValueError: if an argument is out of range.
    """
    deviation = deviation_of_cluster(1.0, cluster_size, icc)
    return math.ceil(cluster_size * required_clusters(effect_size, deviation, alpha, power))


def estimate_required_seeds_from_data(
    seed_means: ArrayLike, effect: float, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """How many training seeds a t-test over seeds needs to detect an effect.

    Args:
        seed_means: `[seeds]`, the score, or the difference of two methods, at each seed so far.
        effect: true mean difference to detect, in the same units.

    Returns:
        None if the seeds at hand do not vary.

    Raises:
        ValueError: if there are fewer than two seeds, or an argument is out of range.
    """
    means = as_scores(seed_means, "seed_means")
    if len(means) < 2:
        raise ValueError("one seed says nothing about how much seeds vary; give two or more")
    deviation = cluster_deviation(means, Clusters.of(None, len(means)))
    return None if deviation is None else required_clusters(effect, deviation, alpha, power)


def required_clusters(effect: float, deviation: float, alpha: float, power: float) -> int:
    """How many clusters a two-sided test needs to detect a true mean difference.

    Args:
        effect: the difference.
        deviation: standard deviation of a cluster's mean difference, in the same units.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(alpha, power)
    _check_sizes(effect=abs(effect), deviation=deviation)
    size = abs(effect) / deviation

    def is_enough(count: int) -> bool:
        return TTestPower().power(size, count, alpha) >= power

    enough = 2
    while not is_enough(enough):
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if is_enough(middle) else (enough, middle)
    return enough


def detectable_effect(num_clusters: int, deviation: float, alpha: float, power: float) -> float:
    """The smallest true mean difference that a two-sided test over so many clusters detects.

    Args:
        deviation: standard deviation of a cluster's mean difference.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(alpha, power)
    _check_sizes(deviation=deviation)
    if num_clusters < 2:
        raise ValueError(f"a test needs two clusters or more, got {num_clusters}")
    size = TTestPower().solve_power(nobs=num_clusters, alpha=alpha, power=power)
    return float(np.squeeze(size) * deviation)


def deviation_of_cluster(deviation: float, cluster_size: float, icc: float) -> float:
    """Standard deviation of the mean of a cluster, whose examples correlate by `icc` (Kish 1965).

    Args:
        deviation: standard deviation of an example.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_sizes(deviation=deviation)
    if cluster_size < 1:
        raise ValueError(f"cluster_size must be 1 or more, got {cluster_size}")
    if not 0 <= icc <= 1:
        raise ValueError(f"icc must lie in [0, 1], got {icc}")
    return float(deviation * np.sqrt((1 + (cluster_size - 1) * icc) / cluster_size))


def cluster_deviation(differences: Floats, clusters: Clusters) -> float | None:
    """The same from differences `[examples]`; none for one cluster or no variation between them."""
    error = ClusteredRatios.of(differences[:, None], None, clusters).standard_errors[0]
    if clusters.count < 2 or error == 0:
        return None
    return float(error * np.sqrt(clusters.count))


def intraclass_correlation(differences: Floats, clusters: Clusters) -> float | None:
    """How much examples `[examples]` of one cluster correlate, from the analysis of variance.

    Fisher's estimator for clusters of unequal size (Donner 1986), not below 0; none if no cluster
    has two examples, there is one cluster, or nothing varies.
    """
    sizes = np.bincount(clusters.codes, minlength=clusters.count)
    num_examples, count = len(differences), clusters.count
    if count < 2 or num_examples == count:
        return None
    means = clusters.sums(differences[:, None])[:, 0] / sizes
    within = np.square(differences - means[clusters.codes]).sum() / (num_examples - count)
    between = (sizes * np.square(means - differences.mean())).sum() / (count - 1)
    size = (num_examples - np.square(sizes).sum() / num_examples) / (count - 1)
    total = between + (size - 1) * within
    return None if total <= 0 else max(0.0, float((between - within) / total))


def _check(alpha: float, power: float) -> None:
    for name, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    if power <= alpha:
        raise ValueError(f"power must be above alpha, got {power} and {alpha}")


def _check_sizes(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and not 0, got {value}")
