"""Reading `metrics.csv`, and the order, names and colours in which methods are shown."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from latentwire.errors import UserError

ALL_TASKS = "all"

# Colours by Okabe and Ito, then by Tol: told apart by the colour-blind.
METHODS = {
    "text": ("full text", "#000000"),
    "latent": ("latents", "#0072B2"),
    "latent_int8": ("latents, int8", "#56B4E9"),
    "latent_int4": ("latents, int4", "#009E73"),
    "latent_single": ("latents for one receiver", "#117733"),
    "latent_adapted": ("latents, new receiver", "#332288"),
    "gist": ("memory tokens", "#777777"),
    "llmlingua": ("LLMLingua", "#F0E442"),
    "llmlingua2": ("LLMLingua-2", "#CC79A7"),
    "extractive": ("sentences by LexRank", "#661100"),
    "truncate_head": ("truncated text", "#E69F00"),
    "truncate_random": ("random span of the text", "#DDCC77"),
    "closed_book": ("no text", "#999999"),
    "soft_prompt": ("soft prompt", "#BBBBBB"),
    "control_shuffled": ("shuffled latents", "#D55E00"),
    "control_zero": ("zeros", "#999933"),
    "control_mean": ("mean latents", "#AA4499"),
    "control_noise": ("noise", "#44AA99"),
    "sender_label": ("the sender's own label", "#CC6677"),
    "control_swap": ("swapped answers", "#DD7788"),
    "latent_prompt": ("latents that hold the question", "#88CCEE"),
    "extractive_question": ("sentences for the question", "#6699CC"),
    "llmlingua_question": ("LongLLMLingua with the question", "#882255"),
}


def label(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method.replace("_", " ")


def colour(method: str) -> str:
    return METHODS[method][1] if method in METHODS else "#CC79A7"


@dataclass(frozen=True)
class Score:
    """One row of the metrics table; an empty value is one that cannot be estimated."""

    task: str
    method: str
    receiver: str
    wire: str
    target_ratio: float | None
    ratio: float | None
    seed: int
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_clusters: int


@dataclass(frozen=True)
class Mean:
    """A metric averaged over training seeds.

    Attributes:
        value: the mean, none where a seed's value cannot be estimated.
        interval: the interval over passages where there is one seed; none otherwise.
        per_seed: the value of each seed.
    """

    value: float | None
    interval: tuple[float, float] | None
    per_seed: dict[int, float | None]


def read_scores(path: Path) -> list[Score]:
    """Reads the metrics table.

    Raises:
        UserError: if it is missing, empty, or not a metrics table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            scores = [_score(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage `metrics` first") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a metrics table: {error}; run `metrics` again") from error
    if not scores:
        raise UserError(f"{path} holds no rows; run the stage `metrics` again")
    return scores


def select(scores: Iterable[Score], **wanted: Any) -> list[Score]:
    """The scores whose attributes have these values."""
    return [s for s in scores if all(getattr(s, key) == value for key, value in wanted.items())]


def distinct(scores: Iterable[Score], attribute: str) -> list[Any]:
    """The values of an attribute, in the order of their first row."""
    return list(dict.fromkeys(getattr(score, attribute) for score in scores))


def shown_methods(scores: Iterable[Score]) -> list[str]:
    """The methods that were measured, in the order in which they are shown."""
    known = list(METHODS)
    return sorted(
        distinct(scores, "method"),
        key=lambda method: known.index(method) if method in known else len(known),
    )


def without_controls(scores: Iterable[Score]) -> list[Score]:
    return [score for score in scores if not score.method.startswith("control_")]


def target_ratios(scores: Iterable[Score]) -> list[float]:
    return sorted(ratio for ratio in distinct(scores, "target_ratio") if ratio is not None)


def mean_over_seeds(scores: Sequence[Score]) -> Mean:
    """Averages rows that differ in the training seed only."""
    values = [score.value for score in scores]
    known = [value for value in values if value is not None]
    interval = None
    if len(scores) == 1 and scores[0].ci_low is not None and scores[0].ci_high is not None:
        interval = (scores[0].ci_low, scores[0].ci_high)
    return Mean(
        value=fmean(known) if values and len(known) == len(values) else None,
        interval=interval,
        per_seed={score.seed: score.value for score in scores},
    )


def _score(row: dict[str, str]) -> Score:
    return Score(
        task=row["task"],
        method=row["method"],
        receiver=row["receiver"],
        wire=row["wire"],
        target_ratio=_number(row["target_ratio"]),
        ratio=_number(row["ratio"]),
        seed=int(row["seed"]),
        metric=row["metric"],
        value=_number(row["value"]),
        ci_low=_number(row["ci_low"]),
        ci_high=_number(row["ci_high"]),
        n=int(row["n"]),
        n_clusters=int(row["n_clusters"]),
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
