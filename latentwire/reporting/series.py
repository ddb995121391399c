"""The answers of one method, on one receiver, at one target ratio, over all of its seeds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentwire.config import Experiment
from latentwire.layout import Layout
from latentwire.reporting.scores import Mean, in_order, told_apart
from latentwire.statistics.bootstrap import bootstrap_cis
from latentwire.statistics.clusters import Floats
from latentwire.statistics.inputs import Answers, read_answers

QUALITY = ("f1", "em", "relative_f1")


@dataclass(frozen=True)
class Series:
    """What a method scores and costs.

    Attributes:
        runs: the answers of each training seed; of the same examples, in the same order.
        quality: each of QUALITY with its interval over passages, given the seeds.
    """

    method: str
    receiver: str
    target_ratio: float | None
    question_aware: bool
    runs: tuple[Answers, ...]
    quality: dict[str, Mean]

    @property
    def f1(self) -> Mean:
        return self.quality["f1"]

    @property
    def tokens_in_place(self) -> float:
        """Vectors or tokens in the place of a source, the mean over questions."""
        return float(_positions(self.runs[0]).mean())

    @property
    def ratio(self) -> float | None:
        """The measured compression ratio; none where nothing stands for the source."""
        positions = self.tokens_in_place
        return self.mean("source_tokens") / positions if positions else None

    def mean(self, column: str) -> float:
        """Mean over questions and seeds."""
        return float(np.mean([run.columns[column] for run in self.runs]))

    @property
    def end_to_end_seconds(self) -> Floats:
        """Encoding and answering, `[seeds * examples]`."""
        return self.pooled("encode_seconds") + self.pooled("answer_seconds")

    def pooled(self, column: str) -> Floats:
        """Every question of every seed, `[seeds * examples]`."""
        return np.concatenate([run.columns[column] for run in self.runs])


def read_series(experiment: Experiment, layout: Layout) -> list[Series]:
    """All series of an experiment, by method in the order in which methods are shown.

    Raises:
        UserError: if a prediction file is missing or does not hold what the configuration implies.
    """
    series = [
        own
        for receiver in experiment.receivers
        for own in _of_receiver(experiment, read_answers(experiment, layout, receiver.name))
    ]
    order = in_order(own.method for own in series)
    return sorted(series, key=lambda own: order.index(own.method))


def means(
    experiment: Experiment,
    groups: Iterable[tuple[Answers, ...]],
    text: Answers,
    members: NDArray[np.bool_] | None = None,
) -> list[dict[str, Mean]]:
    """QUALITY of each group of runs, with bootstrap intervals over passages, given the seeds.

    Args:
        groups: runs that differ in their seed only.
        text: the answers of the same receiver with the full text.
        members: the examples to look at, `[examples]`; none is all.
    """
    groups = list(groups)
    chosen = np.ones(len(text.passages), dtype=bool) if members is None else members
    columns = [
        (_seed_mean(runs, name)[chosen], below[chosen])
        for runs in groups
        for name, below in (
            ("f1", np.ones(len(chosen))),
            ("em", np.ones(len(chosen))),
            ("f1", text.columns["f1"]),
        )
    ]
    estimates = iter(
        bootstrap_cis(
            np.column_stack([above for above, _ in columns]),
            np.column_stack([below for _, below in columns]),
            clusters=text.passages[chosen],
            confidence=experiment.statistics.confidence,
            n_resamples=experiment.statistics.resamples,
            random_state=experiment.statistics.seed,
        )
    )
    return [
        {
            name: Mean(estimate.value, estimate.ci, _per_seed(runs, name, chosen))
            for name, estimate in zip(QUALITY, estimates, strict=False)
        }
        for runs in groups
    ]


def _of_receiver(experiment: Experiment, answers: list[Answers]) -> Iterator[Series]:
    groups: dict[tuple[str, float | None, bool], list[Answers]] = {}
    for own in answers:
        method = told_apart(own.method, own.wire, own.sender)
        groups.setdefault((method, own.target_ratio, own.question_aware), []).append(own)
    runs = [tuple(own) for own in groups.values()]
    # The text's come first.
    quality = means(experiment, runs, answers[0])
    for (method, ratio, is_aware), own_runs, own_quality in zip(groups, runs, quality, strict=True):
        yield Series(method, answers[0].receiver, ratio, is_aware, own_runs, own_quality)


def _seed_mean(runs: tuple[Answers, ...], column: str) -> Floats:
    return np.mean([run.columns[column] for run in runs], axis=0)


def _per_seed(
    runs: tuple[Answers, ...], name: str, members: NDArray[np.bool_]
) -> dict[int, float | None]:
    if name not in ("f1", "em"):
        return {}
    return {run.seed: float(run.columns[name][members].mean()) for run in runs}


def _positions(answers: Answers) -> Floats:
    """Vectors or tokens in the place of the source, `[examples]`."""
    return np.nan_to_num(np.rint(answers.columns["source_tokens"] / answers.columns["ratio"]))
