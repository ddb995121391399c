"""The declared family of comparisons, and whether latents maintain the score of the full text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import statsmodels

from latentwire.config import Experiment, Method
from latentwire.files import write_json
from latentwire.layout import Layout
from latentwire.statistics.bootstrap import bootstrap_ci
from latentwire.statistics.clusters import Floats
from latentwire.statistics.correction import multiple_comparison_correction
from latentwire.statistics.effects import cohens_d_paired
from latentwire.statistics.inputs import Answers, read_answers
from latentwire.statistics.paired import (
    NonInferiority,
    non_inferiority_test,
    paired_bootstrap_test,
    paired_permutation_test,
)
from latentwire.statistics.power import minimum_detectable_effect

METRIC = "f1"
POWER = 0.8


@dataclass(frozen=True)
class SeedMean:
    """Scores of a method at a target ratio, averaged over training seeds for each example.

    Attributes:
        scores: `[examples]`.
        per_seed: mean over examples for each training seed.
    """

    scores: Floats
    per_seed: dict[str, float]

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


def write_statistics(experiment: Experiment, layout: Layout) -> None:
    """Writes `statistics.json` and the identical `statistical_report.json`.

    Each declared pair is compared per receiver and target ratio; the correction is over all of
    them. Intervals and tests are over passages, conditional on the training seeds. An empty family
    is said to be one.

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
        for target_ratio in _ratios_of_pair(answers, method, reference):
            yield {
                "receiver": answers[0].receiver,
                "target_ratio": target_ratio,
                "method": method.value,
                "reference": reference.value,
                "metric": METRIC,
            } | _comparison(
                experiment,
                _seed_mean(answers, method, target_ratio),
                _seed_mean(answers, reference, target_ratio),
                answers[0].passages,
            )


def _comparison(
    experiment: Experiment, own: SeedMean, other: SeedMean, passages: np.ndarray
) -> dict[str, Any]:
    config = experiment.statistics
    permutation, bootstrap = (
        test(
            own.scores,
            other.scores,
            n_resamples=config.resamples,
            random_state=config.seed,
            clusters=passages,
            confidence=config.confidence,
        )
        for test in (paired_permutation_test, paired_bootstrap_test)
    )
    low, high = permutation.ci or (None, None)
    return {
        "method_mean": own.mean,
        "reference_mean": other.mean,
        "method_mean_per_seed": own.per_seed,
        "reference_mean_per_seed": other.per_seed,
        "difference": permutation.difference,
        "ci_low": low,
        "ci_high": high,
        "test": "paired_permutation",
        "p_value": permutation.p_value,
        "bootstrap_p_value": bootstrap.p_value,
        "effect_size_name": "cohens_dz",
        "effect_size": cohens_d_paired(own.scores, other.scores),
        "minimum_detectable_effect": minimum_detectable_effect(
            own.scores, other.scores, passages, _alpha(experiment), POWER
        ),
        "n": permutation.n,
        "n_clusters": permutation.n_clusters,
        "not_estimable": permutation.not_estimable,
        "signature": permutation.signature,
    }


def _correct(experiment: Experiment, comparisons: list[dict[str, Any]]) -> None:
    """Adds the corrected p-values, which need the whole family."""
    correction = multiple_comparison_correction(
        [comparison["p_value"] for comparison in comparisons],
        alpha=_alpha(experiment),
        method=experiment.statistics.correction,
    )
    for comparison, p_value, rejected in zip(
        comparisons, correction.p_values, correction.rejected, strict=True
    ):
        comparison["p_value_corrected"] = p_value
        comparison["significant"] = rejected


def _verdicts(experiment: Experiment, answers: list[Answers]) -> Iterator[dict[str, Any]]:
    for target_ratio in _ratios_of_pair(answers, Method.latent, Method.text):
        own = _seed_mean(answers, Method.latent, target_ratio)
        text = _seed_mean(answers, Method.text, target_ratio)
        yield {
            "receiver": answers[0].receiver,
            "target_ratio": target_ratio,
            "method": Method.latent.value,
            "reference": Method.text.value,
            "metric": METRIC,
            "method_mean": own.mean,
            "reference_mean": text.mean,
            "method_mean_per_seed": own.per_seed,
        } | _verdict(experiment, own.scores, text.scores, answers[0].passages)


def _verdict(
    experiment: Experiment, scores: Floats, text: Floats, passages: np.ndarray
) -> dict[str, Any]:
    config = experiment.statistics
    test = non_inferiority_test(
        scores,
        text,
        margin=config.non_inferiority_margin,
        n_resamples=config.resamples,
        random_state=config.seed,
        clusters=passages,
        alpha=_alpha(experiment),
    )
    relative = bootstrap_ci(
        scores,
        relative_to=text,
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
        "training_seeds_note": "scores are averaged over training seeds for each question; "
        "intervals are over passages, conditional on the seeds",
        "test": "paired_permutation, clustered, two-sided",
        "interval": "percentile bootstrap, clustered",
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
        "non_inferiority_note": "one-sided test per receiver and target ratio of the contrast "
        "latent - (1 - margin) * text; not corrected",
        "statsmodels": statsmodels.__version__,
    }


def _ratios_of_pair(
    answers: list[Answers], method: Method, reference: Method
) -> list[float | None]:
    """Where a receiver has both; a method without target ratios stands beside every one."""
    own, other = (
        dict.fromkeys(run.target_ratio for run in answers if run.method == name)
        for name in (method, reference)
    )
    if None in own:
        return list(other)
    return [ratio for ratio in own if ratio in other or None in other]


def _seed_mean(answers: list[Answers], method: Method, target_ratio: float | None) -> SeedMean:
    """A method without target ratios has one score for all of them."""
    runs = [
        own for own in answers if own.method == method and own.target_ratio in (target_ratio, None)
    ]
    return SeedMean(
        scores=np.mean([own.columns[METRIC] for own in runs], axis=0),
        per_seed={str(own.seed): float(own.columns[METRIC].mean()) for own in runs},
    )


def _alpha(experiment: Experiment) -> float:
    return round(1 - experiment.statistics.confidence, 12)
