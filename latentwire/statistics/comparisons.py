"""The declared family of comparisons, and whether latents maintain the score of the full text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import statsmodels

from latentwire.config import CONTROLS, Experiment, Method
from latentwire.files import write_json
from latentwire.layout import Layout
from latentwire.statistics.bootstrap import bootstrap_ci
from latentwire.statistics.classical import ASSUMPTION, mcnemar_test, wilcoxon_test
from latentwire.statistics.clusters import Floats, paired_seed_scores
from latentwire.statistics.correction import all_corrections, multiple_comparison_correction
from latentwire.statistics.effects import cliffs_delta, cohens_d_paired, odds_ratio
from latentwire.statistics.inputs import Answers, read_answers
from latentwire.statistics.paired import (
    NonInferiority,
    PairedTest,
    non_inferiority_test,
    paired_bootstrap_test,
    paired_permutation_test,
)
from latentwire.statistics.power import minimum_detectable_effect
from latentwire.statistics.resampling import MIN_SEEDS, unit_of

METRIC = "f1"
POWER = 0.8


@dataclass(frozen=True)
class SeedScores:
    """Scores of a method at a target ratio for each training seed.

    Attributes:
        f1, em: `[examples]` by seed.
    """

    f1: dict[int, Floats]
    em: dict[int, Floats]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.f1.values())))

    @property
    def per_seed(self) -> dict[str, float]:
        return {str(seed): float(scores.mean()) for seed, scores in self.f1.items()}


@dataclass(frozen=True)
class Pair:
    """The scores of two methods on the same examples, `[seeds, examples]` each.

    Attributes:
        seeds: training seeds; none where the methods have different ones and only means are paired.
    """

    seeds: list[str] | None
    f1: tuple[Floats, Floats]
    em: tuple[Floats, Floats]

    @property
    def mean_f1(self) -> tuple[Floats, Floats]:
        """Over seeds, `[examples]` each."""
        return self.f1[0].mean(axis=0), self.f1[1].mean(axis=0)

    @classmethod
    def of(cls, own: SeedScores, other: SeedScores) -> "Pair":
        """Seed by seed, if both have the same ones or one method has a single one."""
        if own.f1.keys() == other.f1.keys() or 1 in (len(own.f1), len(other.f1)):
            seeds = [str(seed) for seed in max(own.f1, other.f1, key=len)]
        else:
            seeds = None
        f1, em = (
            paired_seed_scores(_rows(first, seeds), _rows(second, seeds))
            for first, second in ((own.f1, other.f1), (own.em, other.em))
        )
        return cls(seeds, f1, em)


def write_statistics(experiment: Experiment, layout: Layout) -> None:
    """Writes `statistics.json` and the identical `statistical_report.json`.

    Each declared pair is compared per receiver and target ratio; the correction is over all of
    them. Intervals and tests are over passages, and from five training seeds up over seeds too;
    below that they are conditional on the seeds. An empty family is said to be one.

    Raises:
        UserError: if a prediction file is missing or does not hold what the configuration implies.
    """
    comparisons: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    for receiver in experiment.receivers:
        answers = read_answers(experiment, layout, receiver.name)
        comparisons.extend(_comparisons(experiment, answers))
        verdicts.extend(_verdicts(experiment, answers))
    if comparisons:
        _correct(experiment, comparisons)
    report = {
        "experiment": experiment.experiment,
        "settings": _settings(experiment, comparisons),
        "comparisons": comparisons,
        "non_inferiority": verdicts,
    }
    write_json(layout.statistics, report)
    write_json(layout.statistical_report, report)


def _comparisons(experiment: Experiment, answers: list[Answers]) -> Iterator[dict[str, Any]]:
    for method, reference in experiment.statistics.family:
        for target_ratio in ratios_of_pair(answers, method, reference):
            yield {
                "receiver": answers[0].receiver,
                "target_ratio": target_ratio,
                "method": method.value,
                "reference": reference.value,
                "metric": METRIC,
            } | _comparison(
                experiment,
                scores_of(answers, method, target_ratio),
                scores_of(answers, reference, target_ratio),
                answers[0].passages,
            )


def _comparison(
    experiment: Experiment, own: SeedScores, other: SeedScores, passages: np.ndarray
) -> dict[str, Any]:
    config, pair = experiment.statistics, Pair.of(own, other)
    permutation, bootstrap = (
        test(
            *pair.f1,
            n_resamples=config.resamples,
            random_state=config.seed,
            clusters=passages,
            confidence=config.confidence,
        )
        for test in (paired_permutation_test, paired_bootstrap_test)
    )
    claim = bootstrap if len(pair.f1[0]) >= MIN_SEEDS else permutation
    low, high = claim.ci or (None, None)
    first, second = pair.mean_f1
    effects = _effect_sizes(experiment, pair, passages)
    return {
        "method_mean": own.mean,
        "reference_mean": other.mean,
        "method_mean_per_seed": own.per_seed,
        "reference_mean_per_seed": other.per_seed,
        "difference": claim.difference,
        "ci_low": low,
        "ci_high": high,
        "unit": _unit(len(pair.f1[0])),
        **_bca_interval(experiment, first - second, passages),
        "test": _test_name(len(pair.f1[0])),
        "p_value": claim.p_value,
        "permutation_p_value": permutation.p_value,
        "bootstrap_p_value": bootstrap.p_value,
        "effect_size_name": "cohens_dz",
        "effect_size": effects["cohens_dz"]["value"],
        "effect_sizes": effects,
        "assuming_independent_questions": _assuming_independence(pair),
        "minimum_detectable_effect": minimum_detectable_effect(
            first, second, passages, _alpha(experiment), POWER
        ),
        "n": claim.n,
        "n_clusters": claim.n_clusters,
        "not_estimable": claim.not_estimable,
        "signature": claim.signature,
    }


def _bca_interval(
    experiment: Experiment, differences: Floats, passages: np.ndarray
) -> dict[str, float | None]:
    """Given the training seeds."""
    config = experiment.statistics
    estimate = bootstrap_ci(
        differences,
        clusters=passages,
        confidence=config.confidence,
        n_resamples=config.resamples,
        random_state=config.seed,
        method="bca",
    )
    low, high = estimate.ci or (None, None)
    return {"ci_bca_low": low, "ci_bca_high": high}


def _effect_sizes(
    experiment: Experiment, pair: Pair, passages: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Of F1 averaged over seeds; the odds ratio of EM, over the questions of all seeds."""
    first, second = pair.mean_f1
    confidence = experiment.statistics.confidence
    effects = {
        "cohens_dz": cohens_d_paired(first, second, passages, confidence),
        "cliffs_delta": cliffs_delta(first, second, passages, confidence),
    }
    if pair.seeds is not None:
        own, other = pair.em
        of_seeds = np.tile(passages, len(own))
        effects["odds_ratio"] = odds_ratio(own.ravel(), other.ravel(), of_seeds, confidence)
    return {
        name: {
            "metric": "em" if name == "odds_ratio" else METRIC,
            "value": effect.value,
            "ci_low": effect.ci and effect.ci[0],
            "ci_high": effect.ci and effect.ci[1],
            "not_estimable": effect.reason,
        }
        for name, effect in effects.items()
    }


def _assuming_independence(pair: Pair) -> dict[str, Any]:
    """Wilcoxon of F1 averaged over seeds, McNemar of EM for each seed; they carry no claim."""
    wilcoxon = wilcoxon_test(*pair.mean_f1)
    by_seed = zip(pair.seeds, *pair.em, strict=True) if pair.seeds else ()
    return {
        "assumption": ASSUMPTION,
        "wilcoxon": {"metric": METRIC} | _outcome(wilcoxon),
        "mcnemar_per_seed": {
            seed: {"metric": "em"} | _outcome(mcnemar_test(own, other))
            for seed, own, other in by_seed
        },
    }


def _outcome(test: PairedTest) -> dict[str, Any]:
    return {
        "difference": test.difference,
        "p_value": test.p_value,
        "not_estimable": test.not_estimable,
        "signature": test.signature,
    }


def _correct(experiment: Experiment, comparisons: list[dict[str, Any]]) -> None:
    """Adds the corrected p-values, which need the whole family."""
    p_values = [comparison["p_value"] for comparison in comparisons]
    correction = multiple_comparison_correction(
        p_values, alpha=_alpha(experiment), method=experiment.statistics.correction
    )
    for comparison, p_value, rejected, each in zip(
        comparisons,
        correction.p_values,
        correction.rejected,
        all_corrections(p_values),
        strict=True,
    ):
        comparison["p_value_corrected"] = p_value
        comparison["p_values_corrected"] = each
        comparison["significant"] = rejected


def _verdicts(experiment: Experiment, answers: list[Answers]) -> Iterator[dict[str, Any]]:
    for target_ratio in ratios_of_pair(answers, Method.latent, Method.text):
        own = scores_of(answers, Method.latent, target_ratio)
        text = scores_of(answers, Method.text, target_ratio)
        yield {
            "receiver": answers[0].receiver,
            "target_ratio": target_ratio,
            "method": Method.latent.value,
            "reference": Method.text.value,
            "metric": METRIC,
            "method_mean": own.mean,
            "reference_mean": text.mean,
            "method_mean_per_seed": own.per_seed,
        } | _verdict(experiment, Pair.of(own, text), answers[0].passages)


def _verdict(experiment: Experiment, pair: Pair, passages: np.ndarray) -> dict[str, Any]:
    config = experiment.statistics
    test = non_inferiority_test(
        *pair.f1,
        margin=config.non_inferiority_margin,
        n_resamples=config.resamples,
        random_state=config.seed,
        clusters=passages,
        alpha=_alpha(experiment),
    )
    relative = bootstrap_ci(
        pair.f1[0],
        relative_to=pair.f1[1],
        clusters=passages,
        confidence=config.confidence,
        n_resamples=config.resamples,
        random_state=config.seed,
    )
    low, high = relative.ci or (None, None)
    return {
        "relative_f1": relative.value,
        "relative_f1_ci_low": low,
        "relative_f1_ci_high": high,
        "unit": _unit(len(pair.f1[0])),
        "margin": test.margin,
        "alpha": test.alpha,
        "contrast": test.contrast,
        "contrast_lower_bound": test.lower_bound,
        "p_value": test.p_value,
        "p_value_below": test.p_value_below,
        "verdict": test.verdict,
        "sentence": _sentence(test, relative.value),
        "n": test.n,
        "n_clusters": test.n_clusters,
        "not_estimable": test.not_estimable,
        "signature": test.signature,
    }


def _sentence(test: NonInferiority, relative: float | None) -> str:
    least = f"{100 * (1 - test.margin):g} % of the text F1"
    if test.p_value is None or relative is None:
        return f"Whether latents keep {least} cannot be judged: {test.not_estimable}."
    p_value = test.p_value_below if test.verdict == "inferior" else test.p_value
    measured = f"measured {100 * relative:.1f} %, one-sided p = {p_value:.2g}"
    return {
        "non-inferior": f"Yes: latents keep at least {least} ({measured}).",
        "inferior": f"No: latents keep less than {least} ({measured}).",
        "inconclusive": f"Not shown that latents keep at least {least} ({measured}).",
    }[test.verdict]


def _settings(experiment: Experiment, comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    config = experiment.statistics
    return {
        "metric": METRIC,
        "unit": "passage",
        "training_seeds": experiment.seeds,
        "training_seeds_note": "scores are averaged over training seeds for each question; with "
        f"fewer than {MIN_SEEDS} seeds intervals and tests are over passages, conditional on the "
        "seeds, else over both",
        "test": "paired_permutation, clustered, two-sided; paired_bootstrap, clustered, centred, "
        f"from {MIN_SEEDS} seeds up",
        "interval": "percentile bootstrap, clustered, expanded for few clusters; BCa beside it, "
        "conditional on the seeds",
        "effect_size_note": "intervals by clustered linearisation; conditional on the seeds",
        "confidence": config.confidence,
        "alpha": _alpha(experiment),
        "resamples": config.resamples,
        "seed": config.seed,
        "correction": config.correction,
        "family": [[method.value, reference.value] for method, reference in config.family],
        "family_size": len(comparisons),
        "family_note": None if comparisons else "statistics.family is empty: nothing was compared",
        "num_not_estimable": sum(comparison["p_value"] is None for comparison in comparisons),
        "power": POWER,
        "minimum_detectable_effect_note": "two-sided t-test over passages, uncorrected alpha",
        "non_inferiority_margin": config.non_inferiority_margin,
        "non_inferiority_note": "one-sided BCa bootstrap per receiver and "
        "target ratio of the contrast latent - (1 - margin) * text; not corrected",
        "statsmodels": statsmodels.__version__,
    }


def ratios_of_pair(answers: list[Answers], method: Method, reference: Method) -> list[float | None]:
    """Where a receiver has both; a method without target ratios stands beside every one."""
    own, other = (
        dict.fromkeys(run.target_ratio for run in answers if run.method == name)
        for name in (method, reference)
    )
    if None in own:
        return list(other)
    return [ratio for ratio in own if ratio in other or None in other]


def scores_of(answers: list[Answers], method: Method, target_ratio: float | None) -> SeedScores:
    """A method without target ratios has one score for all of them."""
    # Controls of wires that read senders are theirs, not the shared wire's.
    of_method = [
        own for own in answers if own.method == method and not (own.sender and method in CONTROLS)
    ]
    runs = [own for own in of_method if own.target_ratio == target_ratio]
    runs = runs or [own for own in of_method if own.target_ratio is None]
    runs.sort(key=lambda own: own.seed)
    return SeedScores(
        f1={own.seed: own.columns[METRIC] for own in runs},
        em={own.seed: own.columns["em"] for own in runs},
    )


def _rows(scores: dict[int, Floats], seeds: list[str] | None) -> Floats:
    """`[seeds, examples]`, or the mean over seeds where these cannot be paired."""
    rows = np.stack(list(scores.values()))
    return rows.mean(axis=0) if seeds is None else rows


def _test_name(num_seeds: int) -> str:
    return "paired_bootstrap" if num_seeds >= MIN_SEEDS else "paired_permutation"


def _unit(num_seeds: int) -> str:
    return unit_of(num_seeds).replace("clusters", "passages")


def _alpha(experiment: Experiment) -> float:
    return round(1 - experiment.statistics.confidence, 12)
