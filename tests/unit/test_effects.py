"""Effect sizes and the tests that take questions as independent: known answers and simulations."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from latentwire.statistics import (
    cliffs_delta,
    cohens_d_paired,
    cohens_d_pooled,
    independent_ttest,
    mcnemar_test,
    odds_ratio,
    paired_ttest,
    wilcoxon_test,
)

CLUSTERS = np.repeat(np.arange(50), 4)
NUM_SIMULATIONS = 400


def noise(rng, icc=0.3):
    shared = np.repeat(rng.normal(size=50), 4)
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=200)


def right(rng, share, icc=0.3):
    return (noise(rng, icc) < stats.norm.ppf(share)).astype(float)


def table(both, only_first, only_second, neither):
    counts = [both, only_first, only_second, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def test_cohens_dz_is_the_paired_t_statistic_over_root_n():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, size=60), rng.normal(size=60)
    expected = stats.ttest_rel(first, second).statistic / np.sqrt(60)
    assert cohens_d_paired(first, second).value == pytest.approx(expected)


def test_pooled_d_is_the_t_statistic_of_two_groups():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, size=60), rng.normal(size=40)
    effect = cohens_d_pooled(first, second)
    statistic = stats.ttest_ind(first, second).statistic
    assert effect.value == pytest.approx(statistic * np.sqrt(1 / 60 + 1 / 40))
    assert effect.ci[0] < effect.value < effect.ci[1]


def test_cliffs_delta_is_the_mean_sign_over_all_pairs():
    rng = np.random.default_rng(0)
    first, second = rng.integers(4, size=30), rng.integers(5, size=30)
    expected = np.mean([np.sign(a - b) for a, b in itertools.product(first, second)])
    assert cliffs_delta(first, second).value == pytest.approx(expected)


def test_odds_ratio_has_the_known_interval_of_independent_pairs():
    first, second = table(50, 30, 12, 8)
    effect = odds_ratio(first, second)
    error = np.sqrt(1 / 30 + 1 / 12)
    assert effect.value == 30 / 12
    assert np.log(effect.ci) == pytest.approx(
        [np.log(2.5) - 1.96 * error, np.log(2.5) + 1.96 * error], abs=0.03
    )


def test_intervals_of_effect_sizes_cover_under_clustering():
    covered = dict.fromkeys(("dz", "delta", "odds"), 0)
    truths = {
        "dz": 0.5 / np.sqrt(2),
        "delta": 2 * stats.norm.cdf(0.5 / np.sqrt(2)) - 1,
        "odds": (0.8 * 0.4) / (0.2 * 0.6),
    }
    for seed in range(NUM_SIMULATIONS):
        rng = np.random.default_rng(seed)
        graded, binary = (0.5 + noise(rng), noise(rng)), (right(rng, 0.8), right(rng, 0.6))
        effects = {
            "dz": cohens_d_paired(*graded, CLUSTERS),
            "delta": cliffs_delta(*graded, CLUSTERS),
            "odds": odds_ratio(*binary, CLUSTERS),
        }
        for name, effect in effects.items():
            covered[name] += effect.ci[0] <= truths[name] <= effect.ci[1]
    assert all(0.92 <= count / NUM_SIMULATIONS <= 0.98 for count in covered.values()), covered


@pytest.mark.parametrize(
    ("effect", "first", "second", "clusters", "reason"),
    [
        (cohens_d_paired, [1, 1, 1], [0, 0, 0], None, "no variation"),
        (cohens_d_paired, [1], [0], None, "no variation"),
        (cohens_d_paired, [1, 0, 1], [0, 0, 0], ["p"] * 3, "one cluster"),
        (cliffs_delta, [2, 3], [0, 1], None, "every score of one is above"),
        (cliffs_delta, [1, 1], [1, 1], None, "no variation between clusters"),
        (odds_ratio, [1, 0, 1], [1, 0, 0], None, "no example that only the second"),
        (odds_ratio, [1, 0, 0], [1, 0, 1], None, "no example that only the first"),
        (odds_ratio, [1, 0], [0, 1], ["p", "p"], "one cluster"),
        (lambda a, b, _: cohens_d_pooled(a, b), [1, 1], [0, 0], None, "no variation"),
    ],
)
def test_effects_that_cannot_be_estimated_say_so(effect, first, second, clusters, reason):
    estimate = effect(first, second, clusters)
    assert estimate.ci is None
    assert reason in estimate.reason


@pytest.mark.parametrize("counts", [(50, 30, 12, 8), (0, 5, 0, 0), (10, 1, 9, 0), (3, 4, 4, 1)])
def test_mcnemar_on_known_tables(counts):
    both, only_first, only_second, neither = counts
    result = mcnemar_test(*table(*counts))
    expected = mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue
    assert result.p_value == pytest.approx(expected)
    assert result.p_value == pytest.approx(
        stats.binomtest(only_first, only_first + only_second).pvalue
    )
    assert result.difference == pytest.approx((only_first - only_second) / sum(counts))


def test_classical_tests_are_those_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, size=60), rng.normal(size=60)
    theirs = stats.ttest_rel(first, second)
    ours = paired_ttest(first, second)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.ci == pytest.approx(tuple(theirs.confidence_interval()))
    assert wilcoxon_test(first, second).p_value == pytest.approx(
        stats.wilcoxon(first, second).pvalue
    )
    theirs = stats.ttest_ind(first, second[:40], equal_var=False)
    ours = independent_ttest(first, second[:40])
    assert (ours.p_value, ours.n) == (pytest.approx(theirs.pvalue), 100)
    assert ours.ci == pytest.approx(tuple(theirs.confidence_interval()))


@pytest.mark.parametrize("test", [paired_ttest, independent_ttest, wilcoxon_test, mcnemar_test])
def test_classical_tests_say_what_they_assume(test):
    result = test([1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0], confidence=0.9)
    assert result.assumption == "assumes independent questions"
    assert "confidence:0.9|assumption:assumes independent questions" in result.signature


def test_classical_tests_hold_for_independent_questions_and_fail_for_clustered_ones():
    rates = {}
    for icc in (0.0, 0.7):
        rejected = np.zeros(2)
        for seed in range(NUM_SIMULATIONS):
            rng = np.random.default_rng(seed)
            first, second = right(rng, 0.7, icc), right(rng, 0.7, icc)
            rejected += [
                wilcoxon_test(noise(rng, icc), np.zeros(200)).p_value <= 0.05,
                mcnemar_test(first, second).p_value <= 0.05,
            ]
        rates[icc] = rejected / NUM_SIMULATIONS
    assert (rates[0.0] <= 0.075).all(), rates
    assert (rates[0.7] > 0.15).all(), rates


@pytest.mark.parametrize(
    ("test", "first", "second", "reason"),
    [
        (paired_ttest, [1, 1], [0, 0], "no variation"),
        (paired_ttest, [1], [0], "fewer than two"),
        (independent_ttest, [1, 1], [0, 0], "no variation"),
        (independent_ttest, [1], [0, 1], "fewer than two"),
        (wilcoxon_test, [0.5, 0.5], [0.5, 0.5], "no variation"),
        (mcnemar_test, [1, 0, 1], [1, 0, 1], "both are right on the same"),
    ],
)
def test_classical_tests_of_nothing_are_not_estimable(test, first, second, reason):
    result = test(first, second)
    assert (result.p_value, result.ci) == (None, None)
    assert reason in result.not_estimable


def test_right_and_wrong_must_be_0_or_1():
    for function in (mcnemar_test, odds_ratio):
        with pytest.raises(ValueError, match=r"must be 0 or 1, got 0.5"):
            function([1, 0.5], [1, 0])
