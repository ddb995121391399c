"""Tests of two methods on the same examples, clustered; differences are first minus second."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from latentwire.statistics.bootstrap import (
    ONE_SIDED,
    bootstrap_ci,
    check_settings,
    why_not_estimable,
)
from latentwire.statistics.clusters import (
    ROUNDING,
    ClusteredRatios,
    Clusters,
    Floats,
    Labels,
    paired_seed_scores,
)
from latentwire.statistics.resampling import (
    CHUNK,
    MIN_SEEDS,
    RandomState,
    centred_errors,
    expanded_normal,
    resample_with_seeds,
    unit_of,
)


@dataclass(frozen=True)
class PairedTest:
    """The outcome of a test of two methods.

    Attributes:
        difference: mean of first minus second.
        ci: interval of the difference; none if not estimable.
        p_value: two-sided; none if not estimable.
        signature: every setting of the test.
        not_estimable: why there is no interval and no p-value.
        assumption: what the test takes for granted and clustered data do not grant; none for the
            clustered tests.
    """

    difference: float
    ci: tuple[float, float] | None
    p_value: float | None
    n: int
    n_clusters: int
    signature: str
    not_estimable: str | None = None
    assumption: str | None = None


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
        self,
        differences: Floats,
        clusters: Clusters,
        n_resamples: int,
        random_state: RandomState,
        confidence: float,
    ) -> float: ...


def claim_test(
    first: ArrayLike,
    second: ArrayLike,
    n_resamples: int = 10000,
    random_state: RandomState = None,
    clusters: Labels | None = None,
    confidence: float = 0.95,
) -> PairedTest:
    """The test that claims rest on.

    That is `paired_permutation_test`, and `paired_bootstrap_test` where there are seeds enough to
    be resampled. Arguments and errors are theirs.
    """
    num_seeds = len(paired_seed_scores(first, second)[0])
    test = paired_bootstrap_test if num_seeds >= MIN_SEEDS else paired_permutation_test
    return test(first, second, n_resamples, random_state, clusters, confidence)


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
    with p = (c + 1) / (n_resamples + 1). The p-value is given the training seeds, however many.

    Args:
        first: `[examples]`, or `[seeds, examples]`.
        second: likewise, in the same order.
        clusters: a label per example; none makes each example its own cluster.
        confidence: of the bootstrap interval that goes with the test.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number, or a setting is out of
            range.
    """
    return _paired_test(
        "paired_permutation",
        _permutation_p_value,
        paired_seed_scores(first, second),
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
    from the observed difference as that lies from 0, each in units of its own standard error. From
    five training seeds up these are resampled too. Arguments and errors are those of
    `paired_permutation_test`.
    """
    return _paired_test(
        "paired_bootstrap_centred",
        _bootstrap_p_value,
        paired_seed_scores(first, second),
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
    contrast per example it carries its own error. The bound is that of a one-sided clustered BCa
    interval and the p-value is the level at which it turns: close to a ceiling, where the contrast
    is skewed, a t-test or a centred bootstrap claims non-inferiority two to three times too often.

    Args:
        scores: `[examples]`, or `[seeds, examples]`; more is better.
        reference: likewise, in the same order.
        margin: share of the reference's mean that may be lost.
        clusters: a label per example; none makes each example its own cluster.
        alpha: level of the one-sided test.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number, or a setting is out of
            range.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must lie between 0 and 1, got {margin}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
    check_settings(1 - alpha, n_resamples)
    own, other = paired_seed_scores(scores, reference)
    groups = Clusters.of(clusters, own.shape[1])
    contrasts = own - (1 - margin) * other
    means = _means(contrasts, groups)
    contrast = float(means.values[0])
    reason = "the reference scores 0" if other.mean() == 0 else why_not_estimable(means)[0]
    lower_bound = p_value = p_value_below = None
    verdict = "not estimable"
    if reason is None:
        drawn = resample_with_seeds(
            contrasts, np.ones_like(contrasts), groups, n_resamples, random_state, 1 - 2 * alpha
        )
        bound = float(drawn.bounds(expanded_normal(1 - 2 * alpha, groups.count), "bca")[0])
        if np.isfinite(bound):
            lower_bound = bound
            p_value = float(drawn.p_values_above_zero()[0])
            p_value_below = float(drawn.mirrored.p_values_above_zero()[0])
            verdict = _verdict(p_value, p_value_below, alpha)
        else:
            reason = ONE_SIDED
    return NonInferiority(
        margin=margin,
        alpha=alpha,
        contrast=contrast,
        lower_bound=lower_bound,
        p_value=p_value,
        p_value_below=p_value_below,
        verdict=verdict,
        n=own.shape[1],
        n_clusters=groups.count,
        signature=signature_of(
            "non_inferiority_bootstrap_bca",
            n=own.shape[1],
            clusters=groups.count,
            seeds=len(own),
            unit=unit_of(len(own)),
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
    differences = scores[0] - scores[1]
    groups = Clusters.of(clusters, differences.shape[1])
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
        p_value=None
        if estimate.reason
        else p_value(differences, groups, n_resamples, random_state, confidence),
        n=estimate.n,
        n_clusters=estimate.n_clusters,
        signature=signature_of(
            name,
            n=estimate.n,
            clusters=estimate.n_clusters,
            seeds=len(differences),
            unit=unit_of(len(differences)),
            alternative="two-sided",
            interval="percentile_expanded",
            confidence=confidence,
            resamples=n_resamples,
            seed=random_state,
        ),
        not_estimable=estimate.reason,
    )


def _permutation_p_value(
    differences: Floats,
    clusters: Clusters,
    n_resamples: int,
    random_state: RandomState,
    confidence: float,
) -> float:
    result = scipy.stats.permutation_test(
        (_means(differences, clusters).numerators[:, 0],),
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
    differences: Floats,
    clusters: Clusters,
    n_resamples: int,
    random_state: RandomState,
    confidence: float,
) -> float:
    difference = abs(float(differences.mean()))
    errors = centred_errors(differences, clusters, n_resamples, random_state, confidence)
    return _share(np.abs(errors) >= difference - _slack(difference))


def _means(values: Floats, clusters: Clusters) -> ClusteredRatios:
    """Over seeds and examples, from `[seeds, examples]`."""
    return ClusteredRatios.of(values.mean(axis=0)[:, None], None, clusters)


def _share(extreme: np.ndarray) -> float:
    return (int(extreme.sum()) + 1) / (len(extreme) + 1)


def _slack(value: float) -> float:
    """Keeps ties that rounding would break."""
    return ROUNDING * abs(value)


def signature_of(test: str, **settings: object) -> str:
    """Every setting of a test, and the versions of what computes it, in one string."""
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    return "|".join(
        [f"test:{test}"]
        + [f"{key}:{_readable(value)}" for key, value in (settings | versions).items()]
    )


def _readable(value: object) -> str:
    if value is None:
        return "unset"
    return type(value).__name__ if isinstance(value, np.random.Generator) else str(value)
