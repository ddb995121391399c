"""Comparison of any methods with a baseline: what it finds, says, saves and refuses."""

import json

import numpy as np
import pytest

from latentwire.errors import UserError
from latentwire.statistics import (
    aggregate_multiseed_results,
    compare_multiple_methods_to_baseline,
    comprehensive_comparison_report,
    format_mean_ci,
    generate_comparison_table,
    multiple_comparison_correction,
    p_value_to_stars,
    paired_permutation_test,
)

CLUSTERS = np.repeat([f"p{number}" for number in range(60)], 5)


@pytest.fixture
def baseline():
    return (np.random.default_rng(0).random(300) < 0.8).astype(float)


@pytest.fixture
def methods(baseline):
    rng = np.random.default_rng(1)
    return {
        "worse": baseline * (rng.random(300) < 0.6),
        "like it": (rng.random(300) < 0.8).astype(float),
        "same": baseline,
        "graded": np.clip(baseline - 0.1 * rng.random(300), 0, 1),
    }


def test_the_report_holds_the_clustered_test_and_every_correction(baseline, methods):
    report = comprehensive_comparison_report("text", baseline, methods, clusters=CLUSTERS)
    assert list(report.methods) == list(methods)
    p_values = [own.test.p_value for own in report.methods.values()]
    for name, own in report.methods.items():
        expected = paired_permutation_test(
            methods[name], baseline, random_state=0, clusters=CLUSTERS
        )
        assert own.test == expected
        assert own.test.n_clusters == 60
    for method in ("holm", "fdr_bh", "fdr_by", "bonferroni"):
        expected = multiple_comparison_correction(p_values, method=method).p_values
        assert [own.p_values_corrected[method] for own in report.methods.values()] == expected
    assert [own.p_value_corrected for own in report.methods.values()] == [
        own.p_values_corrected["fdr_bh"] for own in report.methods.values()
    ]
    assert [own.significant for own in report.methods.values()] == [True, False, False, True]
    worse, same = report.methods["worse"], report.methods["same"]
    assert worse.effect_sizes["cohens_dz"].ci[1] < 0
    assert worse.minimum_detectable_effect > 0
    assert same.test.not_estimable
    assert set(worse.assuming_independence) == {"wilcoxon", "mcnemar"}
    assert set(report.methods["graded"].assuming_independence) == {"wilcoxon"}


def test_the_report_reads_as_text_and_saves_as_json(baseline, methods, tmp_path):
    report = comprehensive_comparison_report("text", baseline, methods, clusters=CLUSTERS)
    text = str(report)
    assert text.startswith("Compared with text, 0.")
    assert "300 examples in 60 clusters" in text
    assert "corrected over 4 comparisons by fdr_bh" in text
    assert "same: not estimable, no variation between clusters" in text
    assert report.methods["worse"].test.signature in text
    assert "<0.001 ***" in next(line for line in text.splitlines() if "| worse" in line)
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["methods"]["worse"]["test"]["p_value"] == report.methods["worse"].test.p_value
    assert saved["methods"]["worse"]["assuming_independence"]["mcnemar"]["assumption"]
    with pytest.raises(UserError, match="cannot write"):
        report.save(tmp_path / "report.json" / "below")


def test_the_table_has_a_row_for_each_method(baseline, methods):
    comparisons = compare_multiple_methods_to_baseline(baseline, methods, n_resamples=200)
    lines = generate_comparison_table(comparisons).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(methods)
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match="no comparisons"):
        generate_comparison_table({})


def test_seeds_are_compared_too(baseline):
    rng = np.random.default_rng(2)
    seeds = np.stack([baseline * (rng.random(300) < 0.7) for _ in range(5)])
    (own,) = compare_multiple_methods_to_baseline(
        baseline, {"latent": seeds}, clusters=CLUSTERS
    ).values()
    assert "seeds:5|unit:clusters and seeds" in own.test.signature
    assert own.mean.value == pytest.approx(seeds.mean())
    assert own.significant


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ({}, {}, "nothing to compare"),
        ({"short": [1, 0]}, {}, "method 'short': paired scores differ in number: 2 and 3"),
        ({"bad": [1, np.nan, 0]}, {}, "method 'bad': scores must be finite; 1 are not"),
        ({"a": [1, 0, 0]}, {"correction": "none"}, "holm, fdr_bh, fdr_by, bonferroni, got 'none'"),
        ({"a": [1, 0, 0]}, {"clusters": ["p"]}, "1 cluster labels for 3 scores"),
        ({"a": [1, 0, 0]}, {"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
    ],
)
def test_bad_input_is_refused_by_method(methods, settings, message):
    with pytest.raises(ValueError, match=message):
        comprehensive_comparison_report("text", [1, 1, 0], methods, **settings)


def test_metrics_are_summed_up_over_seeds():
    few = aggregate_multiseed_results({1: {"f1": 0.5}, 2: {"f1": 0.7}})["f1"]
    assert (few.mean, few.ci) == (pytest.approx(0.6), None)
    assert few.deviation == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert few.values == {1: 0.5, 2: 0.7}
    assert "fewer than 5 seeds" in few.not_estimable
    values = [0.5, 0.6, 0.7, 0.6, 0.8]
    many = aggregate_multiseed_results({seed: {"f1": own} for seed, own in enumerate(values)})["f1"]
    half = 2.776445 * np.std(values, ddof=1) / np.sqrt(5)
    assert many.ci == pytest.approx((many.mean - half, many.mean + half))
    with pytest.raises(ValueError, match="seed 2 has the metrics"):
        aggregate_multiseed_results({1: {"f1": 0.5}, 2: {"em": 0.7}})
    with pytest.raises(ValueError, match="no seeds"):
        aggregate_multiseed_results({})


def test_numbers_are_written_as_people_do():
    stars = [p_value_to_stars(p) for p in (0.001, 0.002, 0.01, 0.05, 0.051, None)]
    assert stars == ["***", "**", "**", "*", "", ""]
    assert format_mean_ci(0.6123, (0.59, 0.634)) == "0.612 [0.590, 0.634]"
    assert format_mean_ci(0.6123, None, 1) == "0.6 [not estimable]"
    assert format_mean_ci(None, None) == "not estimable"
    with pytest.raises(ValueError, match=r"got 1\.5"):
        p_value_to_stars(1.5)
