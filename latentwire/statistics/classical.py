"""Tests of scipy and statsmodels that take every question as independent.

Questions about one passage are not, and then these tests reject a true hypothesis far too often.
They stand beside the clustered tests of `paired`, and never in their place.
"""

import numpy as np
import scipy.stats
import statsmodels
from numpy.typing import ArrayLike
from statsmodels.stats.contingency_tables import mcnemar

from latentwire.statistics.bootstrap import check_settings
from latentwire.statistics.clusters import ROUNDING, Floats, as_scores, paired_scores
from latentwire.statistics.effects import paired_binary
from latentwire.statistics.paired import PairedTest, signature_of

ASSUMPTION = "assumes independent questions"


def paired_ttest(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """Student's t-test of the paired differences (`scipy.stats.ttest_rel`).

    Args:
        first: `[examples]`.
        second: `[examples]`, in the same order.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number.
    """
    a, b = paired_scores(first, second)
    reason = _no_variation(a - b)
    p_value = None if reason else float(scipy.stats.ttest_rel(a, b).pvalue)
    return _paired("paired_ttest", a - b, p_value, reason, confidence)


def wilcoxon_test(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """Wilcoxon's signed-rank test (`scipy.stats.wilcoxon`), without the pairs that are equal.

    The interval is that of the t-test. Arguments and errors are those of `paired_ttest`.
    """
    a, b = paired_scores(first, second)
    reason = _no_variation(a - b)
    p_value = None if reason else float(scipy.stats.wilcoxon(a, b).pvalue)
    return _paired("wilcoxon_signed_rank", a - b, p_value, reason, confidence)


def mcnemar_test(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """McNemar's exact test of right and wrong (`statsmodels`).

    The interval is that of the t-test.

    Args:
        first: `[examples]`, 0 or 1.
        second: `[examples]`, in the same order.

    Raises:
        ValueError: if scores are empty, not 0 or 1, or differ in number.
    """
    a, b = paired_binary(first, second)
    table = [[int(((a == x) & (b == y)).sum()) for y in (1, 0)] for x in (1, 0)]
    if table[0][1] + table[1][0] == 0:
        return _paired("mcnemar_exact", a - b, None, "both are right on the same ones", confidence)
    return _paired(
        "mcnemar_exact", a - b, float(mcnemar(table, exact=True).pvalue), None, confidence
    )


def independent_ttest(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """Welch's t-test of scores of different examples (`scipy.stats.ttest_ind`).

    Args:
        first: `[examples]`.
        second: `[examples]`, of other examples; `n` of the outcome is of both.

    Raises:
        ValueError: if scores are empty or not finite.
    """
    check_settings(confidence)
    a, b = as_scores(first, "first scores"), as_scores(second, "second scores")
    reason = "fewer than two examples" if min(len(a), len(b)) < 2 else None
    if reason is None and _is_constant(a) and _is_constant(b):
        reason = "no variation between examples"
    result = None if reason else scipy.stats.ttest_ind(a, b, equal_var=False)
    return _outcome(
        "independent_ttest_welch",
        float(a.mean() - b.mean()),
        len(a) + len(b),
        result.pvalue if result else None,
        result.confidence_interval(confidence) if result else None,
        reason,
        confidence,
    )


def _paired(
    name: str, differences: Floats, p_value: float | None, reason: str | None, confidence: float
) -> PairedTest:
    check_settings(confidence)
    result = None
    if _no_variation(differences) is None:
        result = scipy.stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    return _outcome(
        name, float(differences.mean()), len(differences), p_value, result, reason, confidence
    )


def _outcome(
    name: str,
    difference: float,
    n: int,
    p_value: float | None,
    interval: tuple[float, float] | None,
    reason: str | None,
    confidence: float,
) -> PairedTest:
    return PairedTest(
        difference=difference,
        ci=None if interval is None else (float(interval[0]), float(interval[1])),
        p_value=None if p_value is None else float(p_value),
        n=n,
        n_clusters=n,
        signature=signature_of(
            name,
            n=n,
            alternative="two-sided",
            interval="t",
            confidence=confidence,
            assumption=ASSUMPTION,
            statsmodels=statsmodels.__version__,
        ),
        not_estimable=reason,
        assumption=ASSUMPTION,
    )


def _no_variation(differences: Floats) -> str | None:
    if len(differences) < 2:
        return "fewer than two examples"
    return "no variation between examples" if _is_constant(differences) else None


def _is_constant(values: Floats) -> bool:
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())
