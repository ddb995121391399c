"""What the statistics promise, held against simulated data whose truth is known.

    python benchmarks/statistics_simulation.py > simulation.json

200 questions about 50 passages unless a setting says otherwise. Every rate comes with the range
that it must lie in, if any; a rate outside of it makes the exit code 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import scipy.stats
from tqdm import tqdm

from latentwire.statistics.bootstrap import bootstrap_ci
from latentwire.statistics.classical import mcnemar_test, wilcoxon_test
from latentwire.statistics.clusters import ClusteredRatios, Clusters, Floats
from latentwire.statistics.effects import cliffs_delta, cohens_d_paired, odds_ratio
from latentwire.statistics.paired import (
    non_inferiority_test,
    paired_bootstrap_test,
    paired_permutation_test,
)
from latentwire.statistics.power import detectable_effect, deviation_of_cluster
from latentwire.statistics.resampling import resample

NUM_CLUSTERS, CLUSTER_SIZE, RESAMPLES = 50, 4, 999
ICCS = (0.0, 0.3, 0.7)
NOMINAL, COVERAGE = (0.035, 0.065), (0.93, 0.97)
AT_MOST, FAILS = (0.0, 0.065), (0.1, 1.0)
Outcomes = dict[str, bool]


@dataclass
class Rate:
    """How often something happened, and the range that this must lie in."""

    of: str
    setting: str
    rate: float
    simulations: int
    allowed: tuple[float, float] | None

    @property
    def holds(self) -> bool:
        return self.allowed is None or self.allowed[0] <= self.rate <= self.allowed[1]


@dataclass
class Study:
    """A simulation that answers several yes-or-no questions, with the ranges of their rates."""

    setting: str
    simulate: Callable[[np.random.Generator, int], Outcomes]
    allowed: dict[str, tuple[float, float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000, help="for every setting")
    num_simulations = parser.parse_args().simulations
    rates = []
    for study in tqdm(list(studies()), unit="setting"):
        outcomes = [study.simulate(np.random.default_rng(s), s) for s in range(num_simulations)]
        for name in outcomes[0]:
            rate = float(np.mean([outcome[name] for outcome in outcomes]))
            allowed = study.allowed.get(name)
            rates.append(Rate(name, study.setting, rate, num_simulations, allowed))
    json.dump([asdict(rate) | {"holds": rate.holds} for rate in rates], sys.stdout, indent=1)
    print()
    return 0 if all(rate.holds for rate in rates) else 1


def studies() -> Iterator[Study]:
    for icc in ICCS:
        clustered = FAILS if icc else NOMINAL
        yield Study(
            f"no effect, normal, ICC {icc}",
            lambda rng, seed, icc=icc: _rejections(rng, seed, icc),
            {
                "type I error, permutation": NOMINAL,
                "type I error, bootstrap": NOMINAL,
                "type I error, permutation without clusters": clustered,
                "type I error, bootstrap without clusters": clustered,
            },
        )
        yield Study(
            f"no effect, right or wrong, ICC {icc}",
            lambda rng, seed, icc=icc: _classical_rejections(rng, icc),
            {
                "type I error, Wilcoxon": FAILS if icc == max(ICCS) else AT_MOST,
                "type I error, McNemar": FAILS if icc == max(ICCS) else AT_MOST,
            }
            if icc in (min(ICCS), max(ICCS))
            else {},
        )
        yield Study(
            f"effect planned for power 0.8, normal, ICC {icc}",
            lambda rng, seed, icc=icc: _detections(rng, seed, icc),
            {"power, permutation": (0.77, 0.83), "power, bootstrap": (0.76, 0.83)},
        )
    for name, share in (("normal", None), ("right in 90 %", 0.9)):
        for count in (10, 20, NUM_CLUSTERS):
            for icc in ICCS if count == NUM_CLUSTERS else (0.3,):
                promised = {"coverage, percentile": COVERAGE, "coverage, BCa": COVERAGE}
                yield Study(
                    f"mean, {name}, {count} passages, ICC {icc}",
                    lambda rng, seed, icc=icc, count=count, share=share: _mean_coverage(
                        rng, seed, icc, count, share
                    ),
                    promised if count == NUM_CLUSTERS else {},
                )
    yield Study(
        "effect sizes, ICC 0.3",
        _effect_coverage,
        dict.fromkeys(
            (f"coverage, {name}" for name in ("Cohen's dz", "Cliff's delta", "odds ratio")),
            COVERAGE,
        ),
    )
    for seed_deviation in (0.0, 0.1, 0.3):
        yield Study(
            f"mean, normal, 5 training seeds with sd {seed_deviation}, ICC 0.3",
            lambda rng, seed, deviation=seed_deviation: _seed_coverage(rng, seed, deviation),
            {"coverage, passages and seeds": (0.93, 1.0)},
        )
    for text, count in ((0.8, 50), (0.8, 120), (0.97, 50), (0.97, 120)):
        yield Study(
            f"text right in {text:.0%}, {count} passages, ICC 0.3",
            lambda rng, seed, text=text, count=count: _non_inferiority(rng, seed, text, count),
            {"claims non-inferiority at the margin": AT_MOST},
        )


def _noise(rng: np.random.Generator, icc: float, count: int = NUM_CLUSTERS) -> Floats:
    """Unit-variance noise `[examples]` whose correlation within a cluster is `icc`."""
    shared = np.repeat(rng.normal(size=count), CLUSTER_SIZE)
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=count * CLUSTER_SIZE)


def _right(rng: np.random.Generator, icc: float, share: float, count: int = NUM_CLUSTERS) -> Floats:
    """1 in that share of examples, else 0."""
    return (_noise(rng, icc, count) < scipy.stats.norm.ppf(share)).astype(float)


def _passages(count: int = NUM_CLUSTERS) -> np.ndarray:
    return np.repeat(np.arange(count), CLUSTER_SIZE)


def _rejections(rng: np.random.Generator, seed: int, icc: float) -> Outcomes:
    scores = _noise(rng, icc)
    return {
        f"type I error, {name}{suffix}": _p_value(test, scores, seed, clusters) <= 0.05
        for name, test in (
            ("permutation", paired_permutation_test),
            ("bootstrap", paired_bootstrap_test),
        )
        for suffix, clusters in (("", _passages()), (" without clusters", None))
    }


def _classical_rejections(rng: np.random.Generator, icc: float) -> Outcomes:
    first, second = _right(rng, icc, 0.7), _right(rng, icc, 0.7)
    graded = _noise(rng, icc)
    return {
        "type I error, Wilcoxon": wilcoxon_test(graded, np.zeros_like(graded)).p_value <= 0.05,
        "type I error, McNemar": mcnemar_test(first, second).p_value <= 0.05,
    }


def _detections(rng: np.random.Generator, seed: int, icc: float) -> Outcomes:
    deviation = deviation_of_cluster(1.0, CLUSTER_SIZE, icc)
    scores = detectable_effect(NUM_CLUSTERS, deviation, 0.05, 0.8) + _noise(rng, icc)
    return {
        "power, permutation": _p_value(paired_permutation_test, scores, seed, _passages()) <= 0.05,
        "power, bootstrap": _p_value(paired_bootstrap_test, scores, seed, _passages()) <= 0.05,
    }


def _p_value(test: Callable, scores: Floats, seed: int, clusters: np.ndarray | None) -> float:
    return test(scores, np.zeros_like(scores), RESAMPLES, seed, clusters).p_value


def _mean_coverage(
    rng: np.random.Generator, seed: int, icc: float, count: int, share: float | None
) -> Outcomes:
    scores = _noise(rng, icc, count) if share is None else _right(rng, icc, share, count)
    truth, passages = share or 0.0, _passages(count)
    settings = {"n_resamples": RESAMPLES, "random_state": seed}
    means = ClusteredRatios.of(scores[:, None], None, Clusters.of(passages, len(scores)))
    plain = resample(means, RESAMPLES, seed)
    low, high = (
        plain.bounds(normal, "percentile")[0] for normal in scipy.stats.norm.ppf([0.025, 0.975])
    )
    return {
        "coverage, percentile": _covers(bootstrap_ci(scores, clusters=passages, **settings), truth),
        "coverage, BCa": _covers(
            bootstrap_ci(scores, clusters=passages, method="bca", **settings), truth
        ),
        "coverage, percentile not expanded": low <= truth <= high,
        "coverage, percentile without clusters": _covers(bootstrap_ci(scores, **settings), truth),
    }


def _effect_coverage(rng: np.random.Generator, seed: int) -> Outcomes:
    icc, passages = 0.3, _passages()
    first, second = 0.5 + _noise(rng, icc), _noise(rng, icc)
    own, other = _right(rng, icc, 0.8), _right(rng, icc, 0.6)
    # Of independent normal scores with unit variance, half a deviation apart.
    delta = 2 * scipy.stats.norm.cdf(0.5 / np.sqrt(2)) - 1
    return {
        "coverage, Cohen's dz": _covers(cohens_d_paired(first, second, passages), 0.5 / np.sqrt(2)),
        "coverage, Cliff's delta": _covers(cliffs_delta(first, second, passages), delta),
        "coverage, odds ratio": _covers(
            odds_ratio(own, other, passages), (0.8 * 0.4) / (0.2 * 0.6)
        ),
    }


def _seed_coverage(rng: np.random.Generator, seed: int, deviation: float) -> Outcomes:
    """Seeds differ in their means; answers of a question correlate by half over seeds."""
    shared, own = _noise(rng, 0.3), np.stack([_noise(rng, 0.3) for _ in range(5)])
    scores = (shared + own) / np.sqrt(2) + deviation * rng.normal(size=(5, 1))
    settings = {"clusters": _passages(), "n_resamples": RESAMPLES, "random_state": seed}
    return {
        "coverage, passages and seeds": _covers(bootstrap_ci(scores, **settings), 0.0),
        "coverage, given the seeds": _covers(bootstrap_ci(scores.mean(axis=0), **settings), 0.0),
    }


def _non_inferiority(rng: np.random.Generator, seed: int, text: float, count: int) -> Outcomes:
    """A method that loses the margin, or a third of it, of what the text gets right."""
    right = _right(rng, 0.3, text, count)
    outcomes = {}
    for name, loss in (("at the margin", 0.03), ("at a third of the margin", 0.01)):
        method = right * _right(rng, 0.3, 1 - loss, count)
        result = non_inferiority_test(method, right, 0.03, RESAMPLES, seed, _passages(count))
        outcomes[f"claims non-inferiority {name}"] = result.verdict == "non-inferior"
        contrasts = (method - 0.97 * right).reshape(count, CLUSTER_SIZE).mean(axis=1)
        t_test = scipy.stats.ttest_1samp(contrasts, 0, alternative="greater")
        outcomes[f"a t-test over passages would claim it {name}"] = t_test.pvalue <= 0.05
    return outcomes


def _covers(estimate, truth: float) -> bool:
    """Whether the interval is there and holds the truth."""
    return estimate.ci is not None and estimate.ci[0] <= truth <= estimate.ci[1]


if __name__ == "__main__":
    sys.exit(main())
