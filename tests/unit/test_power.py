"""Planning of sample sizes: known answers, simulated power, and the verb."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from latentwire import cli
from latentwire.statistics import (
    estimate_required_samples,
    estimate_required_seeds_from_data,
    minimum_detectable_effect,
    paired_permutation_test,
)
from latentwire.statistics.clusters import Clusters
from latentwire.statistics.power import intraclass_correlation, required_clusters


def clustered(rng, num_clusters, size, icc):
    shared = np.repeat(rng.normal(size=num_clusters), size)
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=num_clusters * size)


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_required_samples_are_those_of_the_tables(effect, expected):
    assert estimate_required_samples(effect) == expected
    assert estimate_required_samples(-effect) == expected


def test_clusters_multiply_the_samples_by_the_design_effect():
    independent = TTestPower().solve_power(effect_size=0.2, alpha=0.05, power=0.8)
    needed = estimate_required_samples(0.2, cluster_size=4, icc=0.3)
    assert needed % 4 == 0
    assert needed == pytest.approx(independent * (1 + 3 * 0.3), rel=0.03)


def test_planned_power_is_reached():
    needed = estimate_required_samples(0.25, cluster_size=4, icc=0.5)
    clusters = np.arange(needed) // 4
    rejected = []
    for seed in range(400):
        values = 0.25 + clustered(np.random.default_rng(seed), needed // 4, 4, 0.5)
        test = paired_permutation_test(
            values, np.zeros(needed), 299, random_state=seed, clusters=clusters
        )
        rejected.append(test.p_value <= 0.05)
    assert 0.74 <= np.mean(rejected) <= 0.86


def test_what_is_detectable_needs_as_many_clusters_as_there_are():
    values = clustered(np.random.default_rng(0), 60, 3, 0.4)
    clusters = np.repeat(np.arange(60), 3)
    effect = minimum_detectable_effect(values, np.zeros(180), clusters)
    means = values.reshape(60, 3).mean(axis=1)
    assert required_clusters(effect * 1.0001, means.std(ddof=1), 0.05, 0.8) == 60


def test_correlation_within_clusters_is_found():
    for icc in (0.0, 0.3, 0.8):
        rng = np.random.default_rng(1)
        clusters = rng.integers(800, size=4000)
        shared = rng.normal(size=800)[clusters]
        values = np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=4000)
        assert intraclass_correlation(values, Clusters.of(clusters, 4000)) == pytest.approx(
            icc, abs=0.04
        )
    assert intraclass_correlation(np.arange(4.0), Clusters.of(None, 4)) is None


def test_required_seeds_follow_from_how_much_seeds_vary():
    means = [0.50, 0.52, 0.48, 0.51]
    needed = estimate_required_seeds_from_data(means, 0.02)
    power = TTestPower().power(0.02 / np.std(means, ddof=1), needed, 0.05)
    assert power >= 0.8
    assert estimate_required_seeds_from_data([0.5, 0.5], 0.02) is None
    with pytest.raises(ValueError, match="two or more"):
        estimate_required_seeds_from_data([0.5], 0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effect_size": 0}, "effect must be finite and not 0"),
        ({"effect_size": float("nan")}, "effect must be finite"),
        ({"effect_size": 0.2, "alpha": 0}, "alpha must lie between"),
        ({"effect_size": 0.2, "power": 1}, "power must lie between"),
        ({"effect_size": 0.2, "power": 0.01}, "power must be above alpha"),
        ({"effect_size": 0.2, "cluster_size": 0.5}, "cluster_size must be 1 or more"),
        ({"effect_size": 0.2, "icc": 1.5}, r"icc must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate_required_samples(**arguments)


def test_the_verb_plans_from_assumptions(capsys):
    words = "power --effect 0.05 --sd 0.4 --icc 0.3 --questions 4 --passages 120"
    assert cli.main(words.split()) == 0
    output = capsys.readouterr().out
    needed = estimate_required_samples(0.05 / 0.4, cluster_size=4, icc=0.3)
    assert f"to detect 0.05: {needed // 4:,} passages, {needed:,} questions" in output
    assert "with 120 passages: detects 0.07" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sd 0.4", "needs --effect"),
        ("--sd -1 --effect 0.1", "deviation must be"),
        ("--sd 0.4 --effect 0", "effect must be finite and not 0"),
        ("--sd 0.4 --passages 1", "two clusters or more"),
        ("--icc 0.3 --effect 0.1", "go with --sd"),
        ("--effect 0.1", "does not exist"),
    ],
)
def test_the_verb_refuses_what_it_cannot_plan(words, message, caplog, tmp_path):
    arguments = ["power", "--results", str(tmp_path), *words.split()]
    assert cli.main(arguments) == cli.USER_ERROR
    assert message in caplog.text
