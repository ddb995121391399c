"""Several methods compared with one baseline: an object that prints as text and saves as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from latentwire.files import write_json
from latentwire.statistics.bootstrap import Estimate, bootstrap_ci
from latentwire.statistics.classical import mcnemar_test, wilcoxon_test
from latentwire.statistics.clusters import Floats, Labels, seed_scores
from latentwire.statistics.correction import (
    CORRECTIONS,
    all_corrections,
    multiple_comparison_correction,
)
from latentwire.statistics.effects import cliffs_delta, cohens_d_paired, odds_ratio
from latentwire.statistics.formatting import format_mean_ci, format_p_value, p_value_to_stars
from latentwire.statistics.paired import PairedTest, claim_test
from latentwire.statistics.power import minimum_detectable_effect
from latentwire.statistics.resampling import RandomState


@dataclass(frozen=True)
class MethodComparison:
    """One method against the baseline.

    Attributes:
        mean: of the method.
        test: what a claim rests on, clustered; differences are method minus baseline.
        p_value_corrected: by the chosen correction, over all methods; none if not estimable.
        significant: whether that is at most 1 - confidence.
        p_values_corrected: by each correction.
        effect_sizes: by name.
        assuming_independence: tests that take all examples as independent, by name; for comparison
            with other work only.
        minimum_detectable_effect: what a true difference must be to be found in 80 % of cases.
    """

    mean: Estimate
    test: PairedTest
    p_value_corrected: float | None
    significant: bool
    p_values_corrected: dict[str, float | None]
    effect_sizes: dict[str, Estimate]
    assuming_independence: dict[str, PairedTest]
    minimum_detectable_effect: float | None


@dataclass(frozen=True)
class ComparisonReport:
    """What `comprehensive_comparison_report` found; `str` of it is for people."""

    baseline_name: str
    baseline_mean: Estimate
    correction: str
    confidence: float
    methods: dict[str, MethodComparison]

    def __str__(self) -> str:
        baseline = self.baseline_mean
        num_clusters = (
            "" if baseline.n_clusters == baseline.n else f" in {baseline.n_clusters:,} clusters"
        )
        lines = [
            f"Compared with {self.baseline_name}, "
            f"{format_mean_ci(baseline.value, baseline.ci)}, on {baseline.n:,} examples"
            f"{num_clusters}",
            "",
            generate_comparison_table(self.methods),
            "",
            f"[{self.confidence:.0%} intervals]; *, **, ***: corrected p up to .05, .01, .001; "
            f"corrected over {len(self.methods)} comparisons by {self.correction}",
        ]
        tests = dict.fromkeys(own.test.signature for own in self.methods.values())
        reasons = [
            f"{name}: not estimable, {own.test.not_estimable}"
            for name, own in self.methods.items()
            if own.test.not_estimable
        ]
        return "\n".join([*lines, *tests, *reasons])

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON.

        Raises:
            UserError: if the file cannot be written.
        """
        write_json(Path(path), self.to_dict())


def comprehensive_comparison_report(
    baseline_name: str,
    baseline_scores: ArrayLike,
    method_scores: Mapping[str, ArrayLike],
    correction: str = "fdr_bh",
    *,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    n_resamples: int = 10000,
    random_state: RandomState = 0,
) -> ComparisonReport:
    """Compares every method with the baseline on the same examples.

    Args:
        baseline_scores: `[examples]`, or `[seeds, examples]`.
        method_scores: the same for each method, in the order of the baseline's examples.
        correction: over all methods: `holm`, `fdr_bh`, `fdr_by` or `bonferroni`.
        clusters: a label per example, such as its passage; none makes each its own cluster, which
            is right only if examples are independent.

    Raises:
        ValueError: as `compare_multiple_methods_to_baseline`.
    """
    methods = compare_multiple_methods_to_baseline(
        baseline_scores,
        method_scores,
        correction,
        clusters=clusters,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    baseline_mean = bootstrap_ci(
        baseline_scores,
        clusters=clusters,
        confidence=confidence,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    return ComparisonReport(baseline_name, baseline_mean, correction, confidence, methods)


def compare_multiple_methods_to_baseline(
    baseline_scores: ArrayLike,
    method_scores: Mapping[str, ArrayLike],
    correction: str = "fdr_bh",
    *,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    n_resamples: int = 10000,
    random_state: RandomState = 0,
) -> dict[str, MethodComparison]:
    """The comparisons of `comprehensive_comparison_report` by method; arguments are the same.

    Raises:
        ValueError: if there are no methods, a method's scores are not finite or differ in number
            from the baseline's, or a setting is out of range.
    """
    if not method_scores:
        raise ValueError("method_scores holds no method: there is nothing to compare")
    if correction not in CORRECTIONS:
        raise ValueError(f"correction must be one of {', '.join(CORRECTIONS)}, got {correction!r}")
    baseline = seed_scores(baseline_scores, "baseline_scores")
    settings: dict[str, Any] = {
        "n_resamples": n_resamples,
        "random_state": random_state,
        "clusters": clusters,
        "confidence": confidence,
    }
    scores, tests = {}, {}
    for name, values in method_scores.items():
        try:
            scores[name] = seed_scores(values)
            tests[name] = claim_test(scores[name], baseline, **settings)
        except ValueError as error:
            raise ValueError(f"method {name!r}: {error}") from error
    p_values = [test.p_value for test in tests.values()]
    chosen = multiple_comparison_correction(p_values, 1 - confidence, correction)
    corrected = all_corrections(p_values)
    return {
        name: MethodComparison(
            mean=bootstrap_ci(own, **settings),
            test=tests[name],
            p_value_corrected=chosen.p_values[place],
            significant=chosen.rejected[place],
            p_values_corrected=corrected[place],
            minimum_detectable_effect=minimum_detectable_effect(
                own.mean(axis=0), baseline.mean(axis=0), clusters, 1 - confidence
            ),
            **_on_examples(own.mean(axis=0), baseline.mean(axis=0), clusters, confidence),
        )
        for place, (name, own) in enumerate(scores.items())
    }


def generate_comparison_table(comparisons: Mapping[str, MethodComparison]) -> str:
    """The comparisons as a table in Markdown, aligned so that it reads as plain text too.

    Raises:
        ValueError: if there are none.
    """
    if not comparisons:
        raise ValueError("there are no comparisons")
    header = ["method", "mean", "difference", "p", "corrected p", "Cohen's dz"]
    rows = [header, *(_row(name, own) for name, own in comparisons.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def _row(name: str, own: MethodComparison) -> list[str]:
    effect = own.effect_sizes["cohens_dz"]
    stars = p_value_to_stars(own.p_value_corrected)
    return [
        name,
        format_mean_ci(own.mean.value, own.mean.ci),
        format_mean_ci(own.test.difference, own.test.ci, sign=True),
        format_p_value(own.test.p_value),
        f"{format_p_value(own.p_value_corrected)} {stars}".rstrip(),
        format_mean_ci(effect.value, effect.ci, decimals=2, sign=True),
    ]


def _on_examples(
    own: Floats, baseline: Floats, clusters: Labels | None, confidence: float
) -> dict[str, Any]:
    """Effect sizes and tests of `[examples]`; those of right and wrong where scores are that."""
    effects = {"cohens_dz": cohens_d_paired, "cliffs_delta": cliffs_delta}
    tests = {"wilcoxon": wilcoxon_test}
    if np.isin([own, baseline], (0, 1)).all():
        effects["odds_ratio"] = odds_ratio
        tests["mcnemar"] = mcnemar_test
    return {
        "effect_sizes": {
            name: effect(own, baseline, clusters, confidence) for name, effect in effects.items()
        },
        "assuming_independence": {
            name: test(own, baseline, confidence) for name, test in tests.items()
        },
    }
