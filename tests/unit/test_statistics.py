"""The statistics core: known answers, other libraries, and simulated truth."""

import itertools
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from latentwire.statistics.bootstrap import (
    bootstrap_ci,
    bootstrap_ci_multiple_metrics,
    bootstrap_cis,
)
from latentwire.statistics.correction import all_corrections, multiple_comparison_correction
from latentwire.statistics.paired import (
    claim_test,
    non_inferiority_test,
    paired_bootstrap_test,
    paired_permutation_test,
)
from latentwire.statistics.power import minimum_detectable_effect

NUM_SIMULATIONS = 400
CLUSTERS = np.repeat(np.arange(50), 4)


def clustered_noise(rng: np.random.Generator, icc: float, clusters=CLUSTERS) -> np.ndarray:
    """Unit-variance noise whose correlation within a cluster is `icc`."""
    shared = rng.normal(size=clusters.max() + 1)[clusters]
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=len(clusters))


def expanded(confidence, num_units):
    """Where a plain percentile interval reads what ours reads at `confidence`."""
    tail = stats.t.ppf((1 - confidence) / 2, num_units - 1) * np.sqrt(num_units / (num_units - 1))
    return 1 - 2 * stats.norm.cdf(tail)


def scores(num_examples=60, num_clusters=12, shift=0.2, seed=0):
    rng = np.random.default_rng(seed)
    clusters = rng.permutation(np.arange(num_examples) % num_clusters)
    second = rng.random(num_examples)
    first = second + shift + 0.3 * rng.normal(size=num_examples)
    return first, second, clusters


def rejection_rate(test, icc, clusters, effect=0.0):
    p_values = []
    for seed in range(NUM_SIMULATIONS):
        rng = np.random.default_rng(seed)
        first = effect + clustered_noise(rng, icc)
        result = test(
            first, np.zeros_like(first), n_resamples=399, random_state=seed, clusters=clusters
        )
        p_values.append(result.p_value)
    return np.mean(np.array(p_values) <= 0.05)


@pytest.mark.parametrize("test", [paired_permutation_test, paired_bootstrap_test])
@pytest.mark.parametrize("icc", [0.0, 0.7])
def test_type_one_error_is_nominal(test, icc):
    assert 0.025 <= rejection_rate(test, icc, CLUSTERS) <= 0.08


@pytest.mark.parametrize("test", [paired_permutation_test, paired_bootstrap_test])
def test_ignoring_clusters_rejects_too_often(test):
    assert rejection_rate(test, 0.7, clusters=None) > 0.2


def test_interval_covers_the_truth_and_the_naive_one_does_not():
    covered = {"clustered": 0, "naive": 0}
    for seed in range(NUM_SIMULATIONS):
        values = 1 + clustered_noise(np.random.default_rng(seed), icc=0.5)
        for name, clusters in (("clustered", CLUSTERS), ("naive", None)):
            low, high = bootstrap_ci(
                values, clusters=clusters, n_resamples=999, random_state=seed
            ).ci
            covered[name] += low <= 1 <= high
    assert 0.915 <= covered["clustered"] / NUM_SIMULATIONS <= 0.98
    assert covered["naive"] / NUM_SIMULATIONS < 0.85


def test_minimum_detectable_effect_is_detected_as_often_as_promised():
    rng = np.random.default_rng(0)
    zeros = np.zeros(len(CLUSTERS))
    effects = [
        minimum_detectable_effect(clustered_noise(rng, icc=0.3), zeros, CLUSTERS, power=0.8)
        for _ in range(50)
    ]
    power = rejection_rate(paired_permutation_test, 0.3, CLUSTERS, effect=np.mean(effects))
    assert 0.74 <= power <= 0.86


def test_permutation_equals_brute_force_over_clusters():
    first, second, clusters = scores(num_examples=30, num_clusters=9, shift=0.08)
    differences = first - second
    means = [
        np.mean(differences * np.array(signs)[clusters])
        for signs in itertools.product([-1, 1], repeat=9)
    ]
    expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    result = paired_permutation_test(first, second, n_resamples=1000, clusters=clusters)
    assert 0.01 < expected < 0.5
    assert result.p_value == pytest.approx(expected)


def test_permutation_without_clusters_equals_scipy():
    first, second, _ = scores(num_examples=11, shift=0.1)
    expected = stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples"
    ).pvalue
    assert paired_permutation_test(first, second).p_value == pytest.approx(expected)


@pytest.mark.parametrize(("method", "theirs"), [("percentile", "percentile"), ("bca", "BCa")])
def test_interval_without_clusters_agrees_with_scipy(method, theirs):
    values = np.random.default_rng(1).exponential(size=80)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=40000,
        confidence_level=expanded(0.95, 80),
        method=theirs,
        rng=np.random.default_rng(2),
    ).confidence_interval
    low, high = bootstrap_ci(values, n_resamples=40000, random_state=3, method=method).ci
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=0.01)


def test_interval_of_a_ratio_agrees_with_scipy_on_cluster_sums():
    first, second, clusters = scores(num_examples=120, num_clusters=40)
    sums = [np.bincount(clusters, weights=values) for values in (first, second)]
    expected = stats.bootstrap(
        tuple(sums),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        confidence_level=expanded(0.95, 40),
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    estimate = bootstrap_ci(
        first, relative_to=second, clusters=clusters, n_resamples=20000, random_state=3
    )
    assert estimate.value == pytest.approx(first.sum() / second.sum())
    assert estimate.ci == pytest.approx([expected.low, expected.high], abs=0.01)
    assert (estimate.n, estimate.n_clusters) == (120, 40)


def test_interval_equals_explicit_resampling_of_clusters_of_unequal_size():
    values = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.5])
    clusters = np.array(["p", "q", "q", "q", "r", "r"])
    members = [values[clusters == name] for name in "pqr"]
    means = [
        np.concatenate([members[index] for index in drawn]).mean()
        for drawn in itertools.product(range(3), repeat=3)
    ]
    low, high = bootstrap_ci(values, clusters=clusters, confidence=0.6, random_state=0).ci
    tail = (1 - expanded(0.6, 3)) / 2
    assert 0.05 < tail < 0.15
    expected = np.quantile(np.repeat(means, 1000), [tail, 1 - tail])
    assert [low, high] == pytest.approx(expected)


def test_skewed_means_are_covered_by_bca_and_less_by_the_plain_percentile():
    covered = {"bca": 0, "percentile": 0}
    for seed in range(NUM_SIMULATIONS):
        right = clustered_noise(np.random.default_rng(seed), icc=0.3) < stats.norm.ppf(0.95)
        for method in covered:
            low, high = bootstrap_ci(
                right, clusters=CLUSTERS, n_resamples=499, random_state=seed, method=method
            ).ci
            covered[method] += low <= 0.95 <= high
    assert 0.93 <= covered["bca"] / NUM_SIMULATIONS <= 0.98
    assert covered["percentile"] < covered["bca"]


def test_five_seeds_are_resampled_and_four_are_given():
    noise = clustered_noise(np.random.default_rng(0), icc=0.3)
    of_seeds = noise + np.linspace(-1, 1, 5)[:, None]
    settings = {"clusters": CLUSTERS, "random_state": 0, "n_resamples": 2000}
    given, both = (
        bootstrap_ci(of_seeds[1:4], **settings),
        bootstrap_ci(of_seeds, **settings),
    )
    assert (given.unit, both.unit) == ("clusters, given the seeds", "clusters and seeds")
    assert given.ci == pytest.approx(bootstrap_ci(noise, **settings).ci)
    assert both.value == pytest.approx(given.value)
    assert both.ci[1] - both.ci[0] > 2 * (given.ci[1] - given.ci[0])
    assert "unit:clusters and seeds" in claim_test(of_seeds, noise, **settings).signature
    assert "test:paired_bootstrap" in claim_test(of_seeds, noise, **settings).signature
    assert "test:paired_permutation" in claim_test(of_seeds[1:], noise, **settings).signature


def test_seeds_that_agree_add_nothing_to_the_interval():
    noise = clustered_noise(np.random.default_rng(0), icc=0.3)
    settings = {"clusters": CLUSTERS, "random_state": 0, "n_resamples": 2000}
    assert bootstrap_ci(np.tile(noise, (6, 1)), **settings).ci == pytest.approx(
        bootstrap_ci(noise, **settings).ci
    )


def test_an_interval_over_seeds_covers_and_one_given_the_seeds_does_not():
    covered = {"over": 0, "given": 0}
    for seed in range(NUM_SIMULATIONS):
        rng = np.random.default_rng(seed)
        values = clustered_noise(rng, 0.3) + 0.3 * rng.normal(size=(5, 1))
        for name, own in (("over", values), ("given", values.mean(axis=0))):
            low, high = bootstrap_ci(own, clusters=CLUSTERS, n_resamples=499, random_state=seed).ci
            covered[name] += low <= 0 <= high
    assert covered["over"] / NUM_SIMULATIONS >= 0.92
    assert covered["given"] / NUM_SIMULATIONS < 0.85


def test_metrics_share_their_resamples_and_must_be_of_the_same_examples():
    first, second, clusters = scores()
    together = bootstrap_ci_multiple_metrics(
        {"em": first, "f1": second}, clusters=clusters, random_state=5
    )
    assert list(together) == ["em", "f1"]
    assert together["f1"].ci == pytest.approx(
        bootstrap_ci(second, clusters=clusters, random_state=5).ci, rel=1e-12
    )
    with pytest.raises(ValueError, match="differ in number"):
        bootstrap_ci_multiple_metrics({"em": [1, 0], "f1": [1]})
    with pytest.raises(ValueError, match="no metrics"):
        bootstrap_ci_multiple_metrics({})


def test_columns_share_their_resamples():
    first, second, clusters = scores()
    together = bootstrap_cis(np.column_stack([first, second]), clusters=clusters, random_state=5)
    assert together[1].ci == pytest.approx(
        bootstrap_ci(second, clusters=clusters, random_state=5).ci, rel=1e-12
    )


@pytest.mark.parametrize("test", [paired_permutation_test, paired_bootstrap_test])
def test_p_value_of_an_overwhelming_effect_is_one_over_n_plus_one(test):
    first, second, clusters = scores(num_examples=200, num_clusters=50, shift=5)
    result = test(first, second, n_resamples=999, random_state=0, clusters=clusters)
    assert result.p_value == 1 / 1000
    assert result.ci[0] < result.difference < result.ci[1]
    assert result.difference == pytest.approx((first - second).mean())


@pytest.mark.parametrize("test", [paired_permutation_test, paired_bootstrap_test])
def test_no_difference_gives_no_small_p_value(test):
    first, second, clusters = scores(shift=0.0)
    differences = first - second - (first - second).mean()
    result = test(differences, np.zeros(60), random_state=0, clusters=clusters)
    assert result.p_value > 0.9


@pytest.mark.parametrize("test", [paired_permutation_test, paired_bootstrap_test])
def test_same_settings_same_result_and_all_of_them_in_the_signature(test):
    first, second, clusters = scores(num_examples=90, num_clusters=30, shift=0.05)
    result = test(first, second, 500, random_state=3, clusters=clusters)
    assert result == test(first, second, 500, random_state=3, clusters=clusters)
    assert result != test(first, second, 500, random_state=4, clusters=clusters)
    settings = "n:90|clusters:30|seeds:1|unit:clusters|alternative:two-sided"
    interval = "interval:percentile_expanded|confidence:0.95|resamples:500|seed:3"
    assert f"{settings}|{interval}|numpy:{np.__version__}" in result.signature


def test_non_inferiority_is_the_paired_contrast():
    rng = np.random.default_rng(0)
    text = (rng.random(400) < 0.8).astype(float)
    clusters = np.repeat(np.arange(100), 4)
    same = np.where(rng.random(400) < 0.01, 1 - text, text)
    worse = np.where(rng.random(400) < 0.3, 0, text)
    result = non_inferiority_test(same, text, 0.03, random_state=1, clusters=clusters)
    assert result.verdict == "non-inferior"
    assert result.contrast == pytest.approx(same.mean() - 0.97 * text.mean())
    assert result.lower_bound > 0
    assert result.p_value <= 0.05
    assert (
        non_inferiority_test(worse, text, random_state=1, clusters=clusters).verdict == "inferior"
    )


def test_non_inferiority_is_undecided_when_the_data_are_few():
    rng = np.random.default_rng(3)
    text = (rng.random(40) < 0.8).astype(float)
    method = rng.permutation(text)
    result = non_inferiority_test(method, text, random_state=1, clusters=np.arange(40) // 4)
    assert result.verdict == "inconclusive"
    assert result.lower_bound < 0 < result.contrast
    assert result.p_value > 0.05


def test_non_inferiority_at_the_margin_is_claimed_as_often_as_alpha():
    verdicts = []
    for seed in range(NUM_SIMULATIONS):
        rng = np.random.default_rng(seed)
        text = 1 + 0.2 * clustered_noise(rng, 0.5)
        method = 0.97 * 1 + 0.2 * clustered_noise(rng, 0.5)
        result = non_inferiority_test(method, text, 0.03, 399, random_state=seed, clusters=CLUSTERS)
        verdicts.append(result.verdict)
    assert 0.025 <= np.mean(np.array(verdicts) == "non-inferior") <= 0.08


def test_near_the_ceiling_non_inferiority_is_not_claimed_too_often():
    """Where the contrast is skewed, a t-test claims it in more than a tenth of cases."""
    claims = {"ours": 0, "t": 0}
    for seed in range(NUM_SIMULATIONS):
        rng = np.random.default_rng(seed)
        text = clustered_noise(rng, 0.3) < stats.norm.ppf(0.97)
        method = text & (clustered_noise(rng, 0.3) < stats.norm.ppf(0.97))
        result = non_inferiority_test(method, text, 0.03, 399, random_state=seed, clusters=CLUSTERS)
        claims["ours"] += result.verdict == "non-inferior"
        means = (method - 0.97 * text).reshape(-1, 4).mean(axis=1)
        claims["t"] += stats.ttest_1samp(means, 0, alternative="greater").pvalue <= 0.05
    assert claims["ours"] / NUM_SIMULATIONS <= 0.065
    assert claims["t"] / NUM_SIMULATIONS > 0.1


def test_correction_is_that_of_statsmodels_over_the_whole_family():
    p_values = [0.01, None, 0.04, 0.03]
    for method in ("holm", "fdr_bh", "fdr_by", "bonferroni"):
        correction = multiple_comparison_correction(p_values, method=method)
        expected = multipletests([0.01, 1.0, 0.04, 0.03], method=method)[1]
        assert correction.p_values == [expected[0], None, expected[2], expected[3]]
        assert correction.rejected[1] is False
    assert multiple_comparison_correction(p_values, method="bonferroni").p_values[0] == 0.04
    each = all_corrections(p_values)
    assert list(each[0]) == ["holm", "fdr_bh", "fdr_by", "bonferroni"]
    assert each[2]["fdr_by"] == multipletests([0.01, 1.0, 0.04, 0.03], method="fdr_by")[1][2]
    assert set(each[1].values()) == {None}


@pytest.mark.parametrize(
    ("first", "second", "clusters", "reason"),
    [
        ([1, 0, 1, 0], [0, 0, 0, 1], ["p"] * 4, "one cluster"),
        ([1, 1, 1, 1], [0, 0, 0, 0], None, "no variation"),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], None, "no variation"),
        ([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], None, "no variation"),
        ([1, 0, 0, 1], [0, 0, 0, 0], ["p", "p", "q", "q"], "no variation"),
        ([1], [0], None, "one cluster"),
    ],
)
def test_what_cannot_be_estimated_says_so(first, second, clusters, reason):
    for test in (paired_permutation_test, paired_bootstrap_test):
        result = test(first, second, random_state=0, clusters=clusters)
        assert (result.ci, result.p_value) == (None, None)
        assert reason in result.not_estimable
    assert minimum_detectable_effect(first, second, clusters) is None


def test_non_inferiority_to_a_reference_that_scores_nothing_is_not_estimable():
    result = non_inferiority_test([1, 0, 1, 1], [0, 0, 0, 0], random_state=0)
    assert (result.verdict, result.p_value, result.lower_bound) == ("not estimable", None, None)
    assert "scores 0" in result.not_estimable


def test_a_ratio_to_nothing_has_no_value_and_to_almost_nothing_no_interval():
    nothing = bootstrap_ci([1, 0, 1], relative_to=[0, 0, 0], random_state=0)
    assert (nothing.value, nothing.ci) == (None, None)
    almost = bootstrap_ci([1, 0, 1], relative_to=[0, 0, 1], random_state=0)
    assert (almost.value, almost.ci) == (2.0, None)
    assert "division by zero" in nothing.reason
    assert "division by zero" in almost.reason


@pytest.mark.parametrize(
    "test", [paired_permutation_test, paired_bootstrap_test, non_inferiority_test]
)
@pytest.mark.parametrize(
    ("first", "second", "clusters", "message"),
    [
        ([1, 0], [1], None, "2 and 1"),
        ([1, np.nan], [1, 0], None, "finite"),
        ([1, 0], [1, np.inf], None, "finite"),
        ([], [], None, "one score per example"),
        ([1, 0], [0, 0], ["p"], "1 cluster labels for 2 scores"),
        ([1, 0], [0, 0], ["p", None], "some are missing"),
        ([1, 0], [0, 0], [1.0, np.nan], "some are missing"),
        ([[1, 0], [0, 1]], [[0, 0]] * 3, None, "seeds: 2 and 3"),
        ([[1, 0], [0, np.nan]], [0, 0], None, "seed 1 must be finite"),
    ],
)
def test_bad_scores_are_refused(test, first, second, clusters, message):
    with pytest.raises(ValueError, match=message):
        test(first, second, clusters=clusters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1}, "confidence must lie between 0 and 1, got 1"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, got 0"),
        ({"method": "basic"}, "percentile or bca, got 'basic'"),
        ({"relative_to": [1, 0]}, "shapes differ"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    for values in ([1, 0, 1], [[1, 0, 1]] * 5):
        with pytest.raises(ValueError, match=message):
            bootstrap_ci(values, **settings)


def test_bad_margins_are_refused():
    with pytest.raises(ValueError, match="margin must lie between 0 and 1, got 3"):
        non_inferiority_test([1, 0], [1, 1], margin=3)
    with pytest.raises(ValueError, match=r"alpha must lie between 0 and 0.5, got 0.9"):
        non_inferiority_test([1, 0], [1, 1], alpha=0.9)


def test_resamples_on_one_side_give_no_verdict():
    first, second, _ = scores()
    result = non_inferiority_test(first, second, n_resamples=1, random_state=0)
    assert (result.verdict, result.p_value) == ("not estimable", None)
    assert "one side" in result.not_estimable


def test_bad_families_are_refused():
    with pytest.raises(ValueError, match="empty"):
        multiple_comparison_correction([])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        multiple_comparison_correction([0.5, float("nan")])


def test_the_largest_bootstrap_stays_small_and_fast():
    rng = np.random.default_rng(0)
    values = rng.random((10570, 20))
    clusters = rng.integers(2000, size=10570)
    tracemalloc.start()
    start = time.process_time()
    estimates = bootstrap_cis(values, clusters=clusters, n_resamples=10000, random_state=0)
    seconds = time.process_time() - start
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(estimates) == 20
    assert seconds < 10
    assert peak_bytes < 200e6


def test_the_package_stands_alone():
    code = (
        "import sys\n"
        "from latentwire.statistics import comprehensive_comparison_report\n"
        "needless = ('torch', 'pydantic', 'latentwire.config', 'latentwire.evaluation')\n"
        "print([name for name in needless if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
