"""Results of several training seeds."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

from latentwire.statistics.bootstrap import check_settings
from latentwire.statistics.clusters import as_scores
from latentwire.statistics.resampling import MIN_SEEDS


@dataclass(frozen=True)
class SeedSummary:
    """A metric over training seeds.

    Attributes:
        deviation: standard deviation over seeds; none for a single one.
        ci: t interval of the mean over all seeds that there could be; none for fewer than five.
        values: the metric by seed.
    """

    mean: float
    deviation: float | None
    ci: tuple[float, float] | None
    values: dict[Hashable, float]
    not_estimable: str | None = None


def aggregate_multiseed_results(
    results: Mapping[Hashable, Mapping[str, float]], confidence: float = 0.95
) -> dict[str, SeedSummary]:
    """Mean, spread and interval of every metric over training seeds.

    Args:
        results: the metrics of each seed.

    Raises:
        ValueError: if there are no seeds, their metrics differ, or a value is not finite.
    """
    check_settings(confidence)
    if not results:
        raise ValueError("there are no seeds")
    metrics = list(next(iter(results.values())))
    for seed, own in results.items():
        if set(own) != set(metrics):
            raise ValueError(
                f"seed {seed} has the metrics {sorted(own)}, others have {sorted(metrics)}"
            )
    return {
        metric: _summary({seed: float(own[metric]) for seed, own in results.items()}, confidence)
        for metric in metrics
    }


def _summary(values: dict[Hashable, float], confidence: float) -> SeedSummary:
    scores = as_scores(list(values.values()))
    count, mean = len(scores), float(scores.mean())
    deviation = float(scores.std(ddof=1)) if count > 1 else None
    if deviation is None or count < MIN_SEEDS:
        reason = f"fewer than {MIN_SEEDS} seeds"
        return SeedSummary(mean, deviation, None, values, reason)
    if np.ptp(scores) == 0:
        return SeedSummary(mean, deviation, None, values, "no variation between seeds")
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, count - 1) * deviation / np.sqrt(count))
    return SeedSummary(mean, deviation, (mean - half, mean + half), values)
