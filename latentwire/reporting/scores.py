"""Reading `metrics.csv`, and the order, names and colours in which methods are shown."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from latentwire.config import CONTROLS, PROBE_METHODS
from latentwire.errors import UserError

ALL_TASKS = "all"
FROM = " from "


@dataclass(frozen=True)
class Look:
    """How a method is shown, the same everywhere; no two methods share a colour and a marker."""

    label: str
    colour: str
    marker: str


# Colours by Okabe and Ito, then by Tol: told apart by the colour-blind. Markers do without colour.
METHODS = {
    "text": Look("full text", "#000000", "*"),
    "latent": Look("latents", "#0072B2", "o"),
    "latent_int8": Look("latents, int8", "#56B4E9", "s"),
    "latent_int4": Look("latents, int4", "#009E73", "D"),
    "latent_single": Look("latents for one receiver", "#117733", "p"),
    "latent_adapted": Look("latents, new receiver", "#332288", "h"),
    "gist": Look("memory tokens", "#777777", "8"),
    "llmlingua": Look("LLMLingua", "#B5A300", "v"),
    "llmlingua2": Look("LLMLingua-2", "#CC79A7", "^"),
    "extractive": Look("sentences by LexRank", "#661100", "<"),
    "truncate_head": Look("truncated text", "#E69F00", "P"),
    "truncate_random": Look("random span of the text", "#DDCC77", "X"),
    "closed_book": Look("no text", "#999999", "x"),
    "soft_prompt": Look("soft prompt", "#BBBBBB", "d"),
    "control_shuffled": Look("shuffled latents", "#D55E00", "s"),
    "control_zero": Look("zeros", "#999933", "v"),
    "control_mean": Look("mean latents", "#AA4499", "^"),
    "control_noise": Look("noise", "#44AA99", "D"),
    "sender_label": Look("the sender's own label", "#CC6677", "<"),
    "control_swap": Look("swapped answers", "#DD7788", "P"),
    "latent_prompt": Look("latents that hold the question", "#88CCEE", "H"),
    "extractive_question": Look("sentences for the question", "#6699CC", ">"),
    "llmlingua_question": Look("LongLLMLingua with the question", "#882255", "d"),
    "telepathy": Look("telepathy", "#004488", "p"),
    "telepathy_hub": Look("telepathy hub", "#997700", "h"),
    "telepathy_informed": Look("telepathy with the question", "#994455", "p"),
    "text_relay": Look("text relay", "#EE99AA", "h"),
    "sender_alone": Look("the sender alone", "#225555", "p"),
}


def look(method: str) -> Look:
    base, of, origin = method.partition(FROM)
    known = METHODS.get(base, Look(base.replace("_", " "), "#555555", "."))
    return replace(known, label=f"{known.label}{of}{origin}")


def label(method: str) -> str:
    return look(method).label


def told_apart(method: str, wire: str, sender: str) -> str:
    """The method, told from others of its name.

    Ablations, which are many wires of one method, are told by their wire, what comes from a sender
    by the sender, and controls of such a wire by both.
    """
    if method == "ablation":
        return f"ablation {wire}" + (f"{FROM}{sender}" if sender else "")
    if not sender or method in PROBE_METHODS:
        return method
    return f"{method}{FROM}{sender}" + (f" by {wire}" if method in CONTROLS else "")


@dataclass(frozen=True)
class Score:
    """One row of the metrics table; an empty value is one that cannot be estimated."""

    task: str
    method: str
    receiver: str
    sender: str
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

    @property
    def number(self) -> float:
        """The value, NaN where there is none."""
        return float("nan") if self.value is None else self.value


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


def in_order(methods: Iterable[str]) -> list[str]:
    """The methods, each once, in the order in which they are shown."""
    known = list(METHODS)

    def place(method: str) -> int:
        base = method.partition(FROM)[0]
        return known.index(base) if base in known else len(known)

    return sorted(dict.fromkeys(methods), key=place)


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
        method=told_apart(row["method"], row["wire"], row["sender"]),
        receiver=row["receiver"],
        sender=row["sender"],
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
