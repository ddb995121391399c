"""What a test of a given size can detect."""

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.power import TTestPower

from latentwire.statistics.clusters import ClusteredRatios, Clusters, Labels, paired_scores


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
    error = ClusteredRatios.of((a - b)[:, None], None, groups).standard_errors[0]
    if groups.count < 2 or error == 0:
        return None
    size = TTestPower().solve_power(nobs=groups.count, alpha=alpha, power=power)
    return float(np.squeeze(size) * error * np.sqrt(groups.count))
