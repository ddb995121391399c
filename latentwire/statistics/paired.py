"""Tests of two methods on the same examples, clustered; differences are first minus second."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from latentwire.statistics.bootstrap import (
    CHUNK,
    RandomState,
    bootstrap_ci,
    resampled_values,
    why_not_estimable,
)
from latentwire.statistics.clusters import (
    ROUNDING,
    ClusteredRatios,
    Clusters,
    Floats,
    Labels,
    as_scores,
    paired_scores,
)


@dataclass(frozen=True)
class PairedTest:
    """The outcome of a paired test.

    Attributes:
        difference: mean of first minus second.
        ci: clustered percentile bootstrap interval of the difference; none if not estimable.
        p_value: two-sided, never 0; none if not estimable.
        signature: every setting of the test.
        not_estimable: why there is no interval and no p-value.
    """

    difference: float
    ci: tuple[float, float] | None
    p_value: float | None
    n: int
    n_clusters: int
    signature: str
    not_estimable: str | None = None


@dataclass(frozen=True)
class NonInferiority:
    """Whether a method keeps at least (1 - margin) of the reference's mean.

    Attributes:
        contrast: mean of scores - (1 - margin) * reference.
        lower_bound: one-sided lower confidence bound of the contrast at level 1 - alpha.
        p_value: one-sided, of the hypothesis that the contrast is 0 or less.
        p_value_below: one-sided, of the hypothesis that the contrast is 0 or more.
        verdict: `non-inferior`, `inferior` (the contrast is below 0 at the same level),
            `inconclusive`, or `not estimable`.
    """

    margin: float
    alpha: float
    contrast: float
    lower_bound: float | None
    p_value: float | None
    p_value_below: float | None
    verdict: str
    n: int
    n_clusters: int
    signature: str
    not_estimable: str | None = None


class _PValue(Protocol):
    def __call__(
        self, means: ClusteredRatios, n_resamples: int, random_state: RandomState
    ) -> float: ...


def paired_permutation_test(
    first: ArrayLike,
    second: ArrayLike,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    clusters: Labels | None = None,
    confidence: float = 0.95,
) -> PairedTest:
    """Swaps the two methods in whole clusters, which flips the sign of a cluster's differences.

    All 2^clusters swaps are taken if they are no more than `n_resamples`; otherwise random ones,
    with p = (c + 1) / (n_resamples + 1).

    Args:
        first, second: `[examples]`, in the same order.
        clusters: a label per example; none makes each example its own cluster.
        confidence: of the bootstrap interval that goes with the test.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number.
    """
    return _paired_test(
        "paired_permutation",
        _permutation_p_value,
        paired_scores(first, second),
        n_resamples,
        random_state,
        clusters,
        confidence,
    )


def paired_bootstrap_test(
    first: ArrayLike,
    second: ArrayLike,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    clusters: Labels | None = None,
    confidence: float = 0.95,
) -> PairedTest:
    """Compares the difference with its bootstrap distribution centred on no difference.

    p = (c + 1) / (n_resamples + 1), where c counts the resamples whose mean lies at least as far
    from the observed difference as that lies from 0. Arguments and errors are those of
    `paired_permutation_test`.
    """
    return _paired_test(
        "paired_bootstrap_centred",
        _bootstrap_p_value,
        paired_scores(first, second),
        n_resamples,
        random_state,
        clusters,
        confidence,
    )


def non_inferiority_test(
    scores: ArrayLike,
    reference: ArrayLike,
    margin: float = 0.03,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    clusters: Labels | None = None,
    alpha: float = 0.05,
) -> NonInferiority:
    """Tests the one paired contrast scores - (1 - margin) * reference, one-sided.

    The reference's mean is estimated too, so that a fixed margin would be too sure of itself; as a
    contrast per example it carries its own error. The test is the centred clustered bootstrap; the
    bound is where the test turns.

    Args:
        scores, reference: `[examples]`, in the same order; higher is better.
        margin: share of the reference's mean that may be lost.
        clusters: a label per example; none makes each example its own cluster.
        alpha: level of the one-sided test.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number, or margin is not between
            0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must lie between 0 and 1, got {margin}")
    own, other = paired_scores(scores, reference)
    groups = Clusters.of(clusters, len(own))
    means = _means(own - (1 - margin) * other, groups)
    contrast = float(means.values[0])
    reason = "the reference scores 0" if other.mean() == 0 else why_not_estimable(means)[0]
    lower_bound = p_value = p_value_below = None
    verdict = "not estimable"
    if reason is None:
        errors = _centred(means, n_resamples, random_state)
        lower_bound = contrast - float(np.quantile(errors, 1 - alpha))
        p_value = _share(errors >= contrast - _slack(contrast))
        p_value_below = _share(errors <= contrast + _slack(contrast))
        verdict = _verdict(p_value, p_value_below, alpha)
    return NonInferiority(
        margin=margin,
        alpha=alpha,
        contrast=contrast,
        lower_bound=lower_bound,
        p_value=p_value,
        p_value_below=p_value_below,
        verdict=verdict,
        n=len(own),
        n_clusters=groups.count,
        signature=_signature(
            "non_inferiority_bootstrap_centred",
            n=len(own),
            clusters=groups.count,
            margin=margin,
            alternative="greater",
            alpha=alpha,
            resamples=n_resamples,
            seed=random_state,
        ),
        not_estimable=reason,
    )


def _verdict(p_value: float, p_value_below: float, alpha: float) -> str:
    if p_value <= alpha:
        return "non-inferior"
    return "inferior" if p_value_below <= alpha else "inconclusive"


def _paired_test(
    name: str,
    p_value: _PValue,
    scores: tuple[Floats, Floats],
    n_resamples: int,
    random_state: RandomState,
    clusters: Labels | None,
    confidence: float,
) -> PairedTest:
    differences = as_scores(scores[0] - scores[1])
    means = _means(differences, Clusters.of(clusters, len(differences)))
    estimate = bootstrap_ci(
        differences,
        clusters=clusters,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    return PairedTest(
        difference=float(differences.mean()),
        ci=estimate.ci,
        p_value=None if estimate.reason else p_value(means, n_resamples, random_state),
        n=estimate.n,
        n_clusters=estimate.n_clusters,
        signature=_signature(
            name,
            n=estimate.n,
            clusters=estimate.n_clusters,
            alternative="two-sided",
            interval="percentile",
            confidence=confidence,
            resamples=n_resamples,
            seed=random_state,
        ),
        not_estimable=estimate.reason,
    )


def _permutation_p_value(
    means: ClusteredRatios, n_resamples: int, random_state: RandomState
) -> float:
    result = scipy.stats.permutation_test(
        (means.numerators[:, 0],),
        lambda sums, axis: np.abs(sums.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=n_resamples,
        batch=CHUNK,
        rng=np.random.default_rng(random_state),
    )
    return float(result.pvalue)


def _bootstrap_p_value(
    means: ClusteredRatios, n_resamples: int, random_state: RandomState
) -> float:
    difference = abs(float(means.values[0]))
    errors = np.abs(_centred(means, n_resamples, random_state))
    return _share(errors >= difference - _slack(difference))


def _means(values: Floats, clusters: Clusters) -> ClusteredRatios:
    return ClusteredRatios.of(values[:, None], None, clusters)


def _centred(means: ClusteredRatios, n_resamples: int, random_state: RandomState) -> Floats:
    return resampled_values(means, n_resamples, random_state)[:, 0] - means.values[0]


def _share(extreme: np.ndarray) -> float:
    return (int(extreme.sum()) + 1) / (len(extreme) + 1)


def _slack(value: float) -> float:
    """Keeps ties that rounding would break."""
    return ROUNDING * abs(value)


def _signature(test: str, **settings: object) -> str:
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    return "|".join(
        [f"test:{test}"]
        + [f"{key}:{_readable(value)}" for key, value in (settings | versions).items()]
    )


def _readable(value: object) -> str:
    if value is None:
        return "unset"
    return type(value).__name__ if isinstance(value, np.random.Generator) else str(value)
