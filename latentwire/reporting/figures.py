"""Figures and tables of the report, drawn from the metrics, statistics and training logs."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.files import read_json, write_text
from latentwire.layout import Layout
from latentwire.reporting.headline import METRICS, in_blocks
from latentwire.reporting.scores import (
    ALL_TASKS,
    Mean,
    Score,
    colour,
    distinct,
    label,
    mean_over_seeds,
    read_scores,
    select,
    shown_methods,
    target_ratios,
    without_controls,
)
from latentwire.reporting.tables import Table, html_page

PANEL_INCHES = (4.4, 3.4)
# The same drawing gives the same bytes, and text stays text.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "latentwire",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "font.size": 10,
}


def write_figures(experiment: Experiment, layout: Layout) -> None:
    """Writes `figures/*.svg` and `tables/*.html`.

    Raises:
        UserError: if metrics, statistics, headline or a training log are missing or malformed.
    """
    scores = read_scores(layout.metrics)
    training = {
        f"seed {seed}": read_training_log(layout.wire(experiment.wire.name, seed) / "metrics.jsonl")
        for seed in experiment.seeds
    }
    with matplotlib.rc_context(STYLE):
        figures = {
            "quality": draw_quality(scores),
            "tasks": draw_tasks(scores),
            "ratio": draw_ratio(scores),
            "controls": draw_controls(scores),
            "training": draw_training(training),
            "cost": draw_cost(scores),
        }
        if experiment.probe is not None:
            figures["probe"] = draw_probe(
                [
                    read_json(layout.probe(own.name).with_suffix(".json"))
                    for own in experiment.receivers
                ],
                scores,
            )
        for name, figure in figures.items():
            write_text(layout.figure(name), _svg(figure))
    results, statistics = read_json(layout.headline), read_json(layout.statistics)
    write_text(layout.table("headline"), headline_page(results, statistics))
    write_text(layout.table("metrics"), metrics_page(scores))
    write_text(layout.table("statistics"), statistics_page(statistics))


def read_training_log(path: Path) -> list[dict[str, float]]:
    """Reads a `metrics.jsonl`.

    Raises:
        UserError: if it is missing or malformed.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage `train-wire` first") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON lines: {error}; train the wire again") from error


def draw_quality(scores: Sequence[Score]) -> Figure:
    """F1 of every method on each receiver, at the lowest target ratio."""
    scores = without_controls(select(scores, task=ALL_TASKS, metric="f1"))
    scores = _at_lowest_ratio(scores)
    figure, (axes,) = _panels(1)
    _draw_bars(axes, scores, "receiver")
    axes.set(ylabel="F1", ylim=(0, 1.02), title=_lowest_ratio_title(scores))
    return _shared_legend(figure)


def draw_tasks(scores: Sequence[Score]) -> Figure:
    """F1 by task for each receiver, at the lowest target ratio."""
    scores = _at_lowest_ratio(without_controls(select(scores, metric="f1")))
    receivers = distinct(scores, "receiver")
    figure, panels = _panels(len(receivers))
    for axes, receiver in zip(panels, receivers, strict=True):
        _draw_bars(axes, select(scores, receiver=receiver), "task")
        axes.set(ylabel="F1", ylim=(0, 1.02), title=receiver)
    return _shared_legend(figure)


def draw_ratio(scores: Sequence[Score]) -> Figure:
    """F1 against measured compression, a panel per receiver; methods without ratio as lines."""
    scores = without_controls(select(scores, task=ALL_TASKS, metric="f1"))
    receivers = distinct(scores, "receiver")
    figure, panels = _panels(len(receivers))
    for axes, receiver in zip(panels, receivers, strict=True):
        own = select(scores, receiver=receiver)
        for method in shown_methods(own):
            _draw_against_ratio(axes, method, select(own, method=method))
        ticks = [1.0, *target_ratios(own)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{ratio:g}x" for ratio in ticks])
        # From uncompressed on, so that ratios that hardly differ stand close together.
        axes.set_xlim(1, 1.25 * max(*ticks, *(score.ratio or 1 for score in own)))
        axes.set(xlabel="measured compression ratio", ylabel="F1", ylim=(0, 1.02), title=receiver)
    return _shared_legend(figure)


def draw_controls(scores: Sequence[Score]) -> Figure:
    """F1 of latents, of what controls put in their place, and without any text."""
    scores = [
        score
        for score in select(scores, task=ALL_TASKS, metric="f1")
        if score.method in ("latent", "closed_book") or score.method.startswith("control_")
    ]
    receivers = distinct(scores, "receiver")
    figure, panels = _panels(max(1, len(receivers)))
    for axes, receiver in zip(panels, receivers, strict=False):
        own = select(scores, receiver=receiver)
        _draw_bars(axes, own, "target_ratio", target_ratios(own))
        axes.set(xlabel="target ratio", ylabel="F1", ylim=(0, 1.02), title=receiver)
    return _shared_legend(figure)


def draw_probe(probes: Sequence[dict[str, Any]], scores: Sequence[Score]) -> Figure:
    """Accuracy of a linear probe by layer, a panel per sender; a line for each pooling."""
    majority = select(scores, task=ALL_TASKS, metric="majority_accuracy")
    figure, panels = _panels(len(probes))
    for axes, own in zip(panels, probes, strict=True):
        for pooling in dict.fromkeys(entry["pooling"] for entry in own["tried"]):
            tried = [entry for entry in own["tried"] if entry["pooling"] == pooling]
            layers, accuracies = zip(
                *((entry["layer"], entry["dev_accuracy"]) for entry in tried), strict=True
            )
            axes.plot(layers, accuracies, marker="o", label=pooling)
        for score in select(majority, receiver=own["sender"]):
            axes.axhline(
                score.value or 0, color="#999999", linestyle=":", label="most frequent label"
            )
        axes.set(xlabel="layer", ylabel="accuracy", ylim=(0, 1.02), title=own["sender"])
    return _shared_legend(figure)


def draw_training(runs: dict[str, list[dict[str, float]]]) -> Figure:
    """Losses in training and on dev against the step, and relative F1 on dev against time."""
    columns = list(dict.fromkeys(key for rows in runs.values() for row in rows for key in row))
    curves: dict[str, list[str]] = {
        "training": [key for key in ("cross_entropy", "kl") if key in columns],
        "dev cross-entropy": [key for key in columns if key.endswith("/cross_entropy")],
        "dev F1, relative to text": [key for key in columns if key.endswith("/relative_f1")],
    }
    curves = {title: keys for title, keys in curves.items() if keys}
    figure, panels = _panels(len(curves))
    for axes, title in zip(panels, curves, strict=True):
        is_f1 = "F1" in title
        x, y = ("minutes", "share") if is_f1 else ("step", "nats per answer token")
        for name, rows in runs.items():
            suffix = f", {name}" if len(runs) > 1 else ""
            for key in curves[title]:
                _draw_curve(axes, rows, x, key, _curve_name(key) + suffix)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.legend(fontsize=8)
    return figure


def _curve_name(key: str) -> str:
    return "/".join(key.split("/")[1:-1]) or key.replace("_", "-")


def draw_cost(scores: Sequence[Score]) -> Figure:
    """Bytes sent and seconds taken per question, at the lowest target ratio."""
    scores = _at_lowest_ratio(select(scores, task=ALL_TASKS))
    figure, (size, time) = _panels(2)
    _draw_bars(size, select(scores, metric="payload_bytes"), "receiver")
    size.set(ylabel="bytes sent per question", title=_lowest_ratio_title(scores))
    _draw_bars(time, _total_seconds(scores), "receiver")
    time.set(ylabel="seconds per question", title="encoding and answering")
    return _shared_legend(figure)


def headline_page(results: dict[str, Any], statistics: dict[str, Any]) -> str:
    """Verdicts in words, then the headline tables."""
    columns = ["method", "receiver", "target ratio"]
    columns += [*(metric.replace("_", " ") for metric in METRICS), "questions", "passages"]
    kept = [
        f"{verdict['receiver']} at {verdict['target_ratio']:g}x: {verdict['sentence']}"
        for verdict in statistics["non_inferiority"]
    ]
    caption = "Means over questions and training seeds, on the test split"
    tables = [
        Table(f"{caption}, {title}" if title else caption, columns, list(map(_headline_row, rows)))
        for title, rows in in_blocks(results["headline"]).items()
    ]
    return html_page(results["experiment"], [*results["verdicts"], *kept], tables)


def _headline_row(row: dict[str, Any]) -> list[Any]:
    return [
        label(row["method"]),
        row["receiver"],
        row["target_ratio"],
        *(row[metric]["value"] for metric in METRICS),
        row["n"],
        row["n_clusters"],
    ]


def metrics_page(scores: Sequence[Score]) -> str:
    """The whole metrics table."""
    columns = [field.name for field in fields(Score)]
    rows = [[getattr(score, column) for column in columns] for score in scores]
    return html_page("All metrics", [], [Table("Intervals are over passages", columns, rows)])


def statistics_page(statistics: dict[str, Any]) -> str:
    """The declared comparisons, the verdicts on the text score, and every setting."""
    settings = [[key, str(value)] for key, value in statistics["settings"].items()]
    return html_page(
        "Statistics",
        [],
        [
            _records("Declared comparisons", statistics["comparisons"]),
            _records("Is the text score maintained?", statistics["non_inferiority"]),
            Table("Settings", ["setting", "value"], settings),
        ],
    )


def _records(caption: str, records: Sequence[dict[str, Any]]) -> Table:
    """A table of the records' plain values."""
    columns = [
        key
        for key in dict.fromkeys(key for record in records for key in record)
        if not any(isinstance(record.get(key), dict | list) for record in records)
    ]
    rows = [[record.get(key) for key in columns] for record in records]
    return Table(caption, [column.replace("_", " ") for column in columns], rows)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * max(count, 1.6), height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _draw_bars(
    axes: Axes, scores: Sequence[Score], group_by: str, groups: Sequence[Any] | None = None
) -> None:
    """Bars of each method, side by side within each value of an attribute.

    Methods without a value of the attribute stand in every group.
    """
    groups = distinct(scores, group_by) if groups is None else groups
    methods = shown_methods(scores)
    width = 0.8 / max(1, len(methods))
    for place, method in enumerate(methods):
        own = select(scores, method=method)
        means = [
            mean_over_seeds(select(own, **{group_by: group}) or select(own, **{group_by: None}))
            for group in groups
        ]
        centres = [index + (place - (len(methods) - 1) / 2) * width for index in range(len(groups))]
        heights = [mean.value or 0 for mean in means]
        axes.bar(centres, heights, width * 0.92, color=colour(method), label=label(method))
        _draw_intervals(axes, centres, means)
    names = [f"{group:g}x" if isinstance(group, float) else str(group) for group in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.grid(visible=False, axis="x")


def _draw_against_ratio(axes: Axes, method: str, scores: Sequence[Score]) -> None:
    if all(score.target_ratio is None for score in scores):
        mean = mean_over_seeds(scores)
        if mean.value is not None:
            axes.axhline(mean.value, color=colour(method), linestyle="--", label=label(method))
        if mean.interval:
            axes.axhspan(*mean.interval, color=colour(method), alpha=0.12, linewidth=0)
        return
    groups = [select(scores, target_ratio=ratio) for ratio in target_ratios(scores)]
    means = [mean_over_seeds(group) for group in groups]
    ratios = [group[0].ratio or group[0].target_ratio or 1 for group in groups]
    values = [float("nan") if mean.value is None else mean.value for mean in means]
    axes.plot(ratios, values, marker="o", color=colour(method), label=label(method))
    _draw_intervals(axes, ratios, means)
    for ratio, mean in zip(ratios, means, strict=True):
        if len(mean.per_seed) > 1:
            points = [value for value in mean.per_seed.values() if value is not None]
            axes.plot([ratio] * len(points), points, ".", color=colour(method), alpha=0.6)


def _draw_intervals(axes: Axes, positions: Sequence[float], means: Sequence[Mean]) -> None:
    for position, mean in zip(positions, means, strict=True):
        if mean.interval:
            axes.vlines(position, *mean.interval, color="#444444", linewidth=1)


def _draw_curve(axes: Axes, rows: Iterable[dict[str, float]], x: str, key: str, name: str) -> None:
    points = [
        (row["seconds"] / 60 if x == "minutes" else row[x], row[key]) for row in rows if key in row
    ]
    axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name)


def _shared_legend(figure: Figure) -> Figure:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4)
    return figure


def _at_lowest_ratio(scores: Sequence[Score]) -> list[Score]:
    """Methods without ratio, and the others at the lowest target ratio."""
    lowest = target_ratios(scores)[:1]
    return [score for score in scores if score.target_ratio in (None, *lowest)]


def _lowest_ratio_title(scores: Sequence[Score]) -> str:
    return " ".join(f"at target ratio {ratio:g}" for ratio in target_ratios(scores))


def _total_seconds(scores: Sequence[Score]) -> list[Score]:
    """Encoding and answering time together, in place of either."""
    encoding = {
        (s.method, s.receiver, s.target_ratio, s.seed): s.value or 0
        for s in select(scores, metric="encode_seconds")
    }
    return [
        replace(
            score,
            metric="seconds",
            value=(score.value or 0)
            + encoding[score.method, score.receiver, score.target_ratio, score.seed],
            ci_low=None,
            ci_high=None,
        )
        for score in select(scores, metric="answer_seconds")
    ]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # A legend may be wider than the panels.
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()
