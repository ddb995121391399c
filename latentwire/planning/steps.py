"""What a training step reads, from the lengths of its passages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from latentwire.config import Experiment, Pooling
from latentwire.planning.cost import StepWork, Work
from latentwire.planning.lengths import Lengths


@dataclass(frozen=True)
class ReadingShape:
    """Positions that a receiver reads in each row of a step, and tokens of all rows.

    Attributes:
        head: positions before the source.
        text: of the text.
        asked: behind latents.
        text_asked: behind the text.
        targets: answer tokens of all rows.
        text_targets: tokens of the texts of all rows.
    """

    head: int
    text: int
    asked: int
    text_asked: int
    targets: int
    text_targets: int


@dataclass(frozen=True)
class StepShape:
    """The tensors of a step: rows, source tokens and latents of each, and what receivers read."""

    rows: int
    source: int
    latents: int
    readings: Mapping[str, ReadingShape]


def step_shape(experiment: Experiment, lengths: Lengths, indices: Sequence[int]) -> StepShape:
    """The tensors of a step when its messages are longest.

    Args:
        experiment: as the wire sees it.
        lengths: of all passages.
        indices: the step's passages.
    """
    growing = experiment.training.ratio_growth > 0
    ratio = 1.0 if growing else min(experiment.wire.target_ratios)
    longest = lengths.source[indices].max(keepdims=True)
    return StepShape(
        rows=len(indices),
        source=int(longest[0]),
        latents=int(_num_latents(experiment, longest, ratio)[0]),
        readings={
            name: ReadingShape(
                head=own.head,
                text=int(own.text[indices].max()),
                asked=int(own.asked[indices].max()),
                text_asked=int(own.text_asked[indices].max()),
                targets=int(own.targets[indices].sum()),
                text_targets=int(own.text[indices].sum()),
            )
            for name, own in lengths.readings.items()
        },
    )


def step_work(
    experiment: Experiment, lengths: Lengths, indices: Sequence[int], padded: bool
) -> StepWork:
    """What a step reads once its ratios are the targets.

    Args:
        experiment: as the wire sees it.
        lengths: of all passages.
        indices: the step's passages.
        padded: whether padding counts.
    """

    def rows(part: np.ndarray) -> np.ndarray:
        own = part[indices]
        return np.full_like(own, own.max()) if padded else own

    encoder = experiment.wire.encoder
    source = rows(lengths.source)
    ratio = 1 / fmean(1 / ratio for ratio in experiment.wire.target_ratios)
    latents = _num_latents(experiment, source, ratio)
    read = source * encoder.reads_source + (encoder.num_latents or 0)
    return StepWork(
        encoder=_work(read),
        latents=float(latents.sum()),
        students={
            name: _work(own.head + latents + rows(own.asked), own.targets[indices])
            for name, own in lengths.readings.items()
        },
        teachers={
            name: _work(own.head + rows(own.text) + rows(own.text_asked), own.targets[indices])
            for name, own in lengths.readings.items()
        },
    )


def _work(rows: np.ndarray, targets: np.ndarray | None = None) -> Work:
    predictions = 0.0 if targets is None else float(targets.sum())
    return Work(float(rows.sum()), float((rows**2).sum()), predictions)


def _num_latents(experiment: Experiment, source: np.ndarray, ratio: float) -> np.ndarray:
    encoder = experiment.wire.encoder
    latents = np.maximum(1, np.ceil(source / ratio).astype(int))
    if encoder.num_latents is None:
        return latents
    if encoder.pooling == Pooling.queries:
        return np.full_like(latents, encoder.num_latents)
    return np.minimum(latents, encoder.num_latents)
