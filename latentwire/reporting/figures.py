"""Drawings of the report. Every method has one colour and one marker; none needs its colour."""

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler

from latentwire.config import QUESTION_AWARE_METHODS
from latentwire.reporting.breakdown import Part
from latentwire.reporting.scores import FROM, Mean, Score, in_order, label, look, select
from latentwire.reporting.series import Series
from latentwire.reporting.training_log import Row, minutes, resumed_after

PANEL_INCHES = (4.4, 3.4)
ROW_INCHES = 0.26
# The same drawing gives the same bytes, and text stays text.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "latentwire",
    "svg.fonttype": "none",
    "axes.prop_cycle": cycler(
        color="#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #661100 #999933".split()
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "font.size": 10,
}
RATIO_MARKERS = "os^DvPX"
LINE_STYLES = ("-", "--", ":", "-.")
F1_LIMITS = (0, 1.02)


def svg(draw: Callable[[], Figure]) -> str:
    """The drawing that a function makes, as an SVG document."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # A legend may be wider than the panels.
        draw().savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()


def draw_methods(series: Sequence[Series]) -> Figure:
    """F1 of each method as a row, a panel per receiver, a marker per target ratio."""
    receivers = list(dict.fromkeys(own.receiver for own in series))
    methods = in_order(own.method for own in series)
    ratios = _target_ratios(series)
    figure, panels = _panels(len(receivers), height=1 + ROW_INCHES * len(methods))
    for axes, receiver in zip(panels, receivers, strict=True):
        for own in (own for own in series if own.receiver == receiver):
            marker = RATIO_MARKERS[ratios.index(own.target_ratio)] if own.target_ratio else "|"
            _draw_row(axes, methods.index(own.method), own, marker)
        axes.set_yticks(range(len(methods)), map(label, methods))
        axes.set(xlabel="F1", xlim=F1_LIMITS, ylim=(len(methods) - 0.5, -0.5), title=receiver)
        axes.label_outer()
    entries = {
        f"{ratio:g}x": _marker(RATIO_MARKERS[place], "#444444")
        for place, ratio in enumerate(ratios)
    }
    return _legend_below(figure, entries)


def _draw_row(axes: Axes, row: int, own: Series, marker: str) -> None:
    colour = look(own.method).colour
    if own.f1.interval:
        axes.hlines(row, *own.f1.interval, color=colour, linewidth=1.2)
    axes.plot(own.f1.number, row, marker, color=colour, markersize=12 if marker == "|" else 6)
    for value in _several(own.f1):
        axes.plot(value, row, ".", color="#444444", markersize=3)


def draw_ratio(series: Sequence[Series]) -> Figure:
    """F1 against measured compression, a panel per receiver; methods without ratio as lines."""
    ratios = _target_ratios(series)

    def place(own: Series) -> float | None:
        return own.ratio if own.target_ratio else None

    figure = _draw_against(series, place, "measured compression ratio", base=2)
    ticks = [1.0, *ratios]
    for axes in figure.axes:
        axes.set_xticks(ticks, [f"{ratio:g}x" for ratio in ticks])
        # From uncompressed on, so that ratios that hardly differ stand close together.
        axes.set_xlim(1, 1.25 * max(*ticks, *(place(own) or 1 for own in series)))
    return figure


def draw_bytes(series: Sequence[Series]) -> Figure:
    """F1 against bytes sent, a panel per receiver; the full text as UTF-8 and as gzip."""
    figure = _draw_against(
        series, lambda own: own.mean("payload_bytes") or None, "bytes sent per message"
    )
    texts = [own for own in series if own.method == "text"]
    for axes, text in zip(figure.axes, texts, strict=True):
        axes.plot(
            text.mean("source_gzip_bytes"),
            text.f1.number,
            "*",
            color="#000000",
            markerfacecolor="#ffffff",
            markersize=10,
            label=f"{label('text')}, gzip",
        )
    return _legend_below(figure)


def draw_cost(series: Sequence[Series]) -> Figure:
    """F1 against the time of an answer, encoding included, a panel per receiver."""

    def place(own: Series) -> float:
        return 1000 * float(np.median(own.end_to_end_seconds))

    figure = _draw_against(
        series, place, "milliseconds per question, end to end (median)", joined=False
    )
    receivers = list(dict.fromkeys(own.receiver for own in series))
    for own in series:
        if own.target_ratio:
            # A time hardly follows the ratio, so that it must be said.
            figure.axes[receivers.index(own.receiver)].annotate(
                f"{own.target_ratio:g}x",
                (place(own), own.f1.number),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=look(own.method).colour,
            )
    return figure


def _draw_against(
    series: Sequence[Series],
    place: Callable[[Series], float | None],
    xlabel: str,
    base: int = 10,
    joined: bool = True,
) -> Figure:
    """F1 against some quantity on a logarithmic axis; where it is none, a line across."""
    receivers = list(dict.fromkeys(own.receiver for own in series))
    figure, panels = _panels(len(receivers))
    for axes, receiver in zip(panels, receivers, strict=True):
        methods = in_order(own.method for own in series)
        for rank, method in enumerate(methods):
            points = [o for o in series if (o.receiver, o.method) == (receiver, method)]
            # Where methods score alike, the first is on top.
            depth = 3 - rank / len(methods)
            _draw_method(axes, method, [(place(own), own.f1) for own in points], joined, depth)
        axes.set_xscale("log", base=base)
        axes.xaxis.set_major_locator(ticker.LogLocator(base, subs=(1, 3)))
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set(xlabel=xlabel, ylabel="F1", ylim=F1_LIMITS, title=receiver)
    return _legend_below(figure)


def _draw_method(
    axes: Axes,
    method: str,
    points: Sequence[tuple[float | None, Mean]],
    joined: bool,
    depth: float,
) -> None:
    shown = look(method)
    across = [mean for x, mean in points if x is None]
    for mean in across:
        axes.axhline(mean.number, color=shown.colour, linestyle="--", label=shown.label)
        if mean.interval:
            axes.axhspan(*mean.interval, color=shown.colour, alpha=0.12, linewidth=0)
    placed = sorted(((x, mean) for x, mean in points if x is not None), key=lambda point: point[0])
    if not placed:
        return
    axes.plot(
        [x for x, _ in placed],
        [mean.number for _, mean in placed],
        marker=shown.marker,
        linestyle=_line_style(method) if joined else "",
        zorder=depth,
        color=shown.colour,
        markersize=10 if shown.marker == "*" else 6,
        label=shown.label,
    )
    for x, mean in placed:
        if mean.interval:
            axes.vlines(x, *mean.interval, color=shown.colour, linewidth=1)
        for value in _several(mean):
            axes.plot(x, value, ".", color="#444444", markersize=3)


def draw_breakdown(parts: Sequence[Part]) -> Figure:
    """F1 on parts of the questions: a row of panels per grouping, a column per receiver."""
    receivers = list(dict.fromkeys(part.series.receiver for part in parts))
    groupings = list(dict.fromkeys(part.grouping for part in parts))
    width, height = PANEL_INCHES
    figure = Figure(
        figsize=(width * max(1.6, len(receivers)), height * len(groupings)), layout="constrained"
    )
    panels = figure.subplots(len(groupings), len(receivers), squeeze=False)
    for row, grouping in zip(panels, groupings, strict=True):
        for axes, receiver in zip(row, receivers, strict=True):
            own = [p for p in parts if (p.grouping, p.series.receiver) == (grouping, receiver)]
            _draw_parts(axes, own)
            axes.set(xlabel=grouping, ylabel="F1", ylim=F1_LIMITS, title=receiver)
    return _legend_below(figure)


def _draw_parts(axes: Axes, parts: Sequence[Part]) -> None:
    groups = list(dict.fromkeys(part.group for part in parts))
    methods = in_order(part.series.method for part in parts)
    for place, method in enumerate(methods):
        shown = look(method)
        offset = 0.7 * ((place + 0.5) / len(methods) - 0.5)
        own = [part for part in parts if part.series.method == method]
        positions = [groups.index(part.group) + offset for part in own]
        axes.plot(
            positions,
            [part.f1.number for part in own],
            shown.marker,
            color=shown.colour,
            label=shown.label,
        )
        for position, part in zip(positions, own, strict=True):
            if part.f1.interval:
                axes.vlines(position, *part.f1.interval, color=shown.colour, linewidth=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")


def draw_forest(comparisons: Sequence[dict[str, Any]]) -> Figure:
    """Paired differences of F1 with intervals; beside each its corrected p-value."""
    figure, axes = _rows(len(comparisons))
    axes.axvline(0, color="#000000", linewidth=1)
    for row, own in enumerate(comparisons):
        shown = look(own["method"])
        if own.get("ci_low") is not None:
            axes.hlines(row, own["ci_low"], own["ci_high"], color=shown.colour)
        face = shown.colour if own.get("significant") else "#ffffff"
        axes.plot(own["difference"], row, "o", color=shown.colour, markerfacecolor=face)
        p_value = own.get("p_value_corrected")
        text = "not estimable" if p_value is None else f"p = {p_value:.2g}"
        axes.annotate(
            text, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axes.set_yticks(range(len(comparisons)), map(_pair, comparisons))
    axes.set(xlabel="difference of F1")
    entries = {
        "significant after correction": _marker("o", "#444444"),
        "not significant": _marker("o", "#444444", "#ffffff"),
    }
    return _legend_below(figure, entries)


def _pair(comparison: dict[str, Any]) -> str:
    pair = f"{label(comparison['method'])} - {label(comparison['reference'])}"
    return f"{pair}, {_place(comparison)}"


def _place(record: dict[str, Any]) -> str:
    ratio = record.get("target_ratio")
    return f"{record['receiver']} {ratio:g}x" if ratio else str(record["receiver"])


def draw_kept(verdicts: Sequence[dict[str, Any]]) -> Figure:
    """The share of the text's F1 that latents keep, with intervals, and the declared margin."""
    figure, axes = _rows(len(verdicts))
    shown = look("latent")
    axes.axvline(1, color="#000000", linewidth=1, label=label("text"))
    for margin in sorted({own["margin"] for own in verdicts}):
        axes.axvline(1 - margin, color="#D55E00", linestyle="--", label=f"{1 - margin:.0%} of it")
    for row, own in enumerate(verdicts):
        if own["relative_f1_ci_low"] is not None:
            interval = own["relative_f1_ci_low"], own["relative_f1_ci_high"]
            axes.hlines(row, *interval, color=shown.colour)
        if own["relative_f1"] is not None:
            axes.plot(own["relative_f1"], row, shown.marker, color=shown.colour)
        axes.annotate(
            own["verdict"] or "not estimable",
            (1.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(verdicts)), map(_place, verdicts))
    axes.set(xlabel="F1 of latents, relative to text")
    return _legend_below(figure)


def draw_probe(probes: Sequence[dict[str, Any]], scores: Sequence[Score]) -> Figure:
    """Accuracy of a linear probe by layer, a panel per sender; a line for each pooling."""
    majority = select(scores, metric="majority_accuracy")
    figure, panels = _panels(len(probes))
    for axes, own in zip(panels, probes, strict=True):
        poolings = dict.fromkeys(entry["pooling"] for entry in own["tried"])
        for pooling, marker, style in zip(poolings, RATIO_MARKERS, itertools.cycle(LINE_STYLES)):
            tried = [entry for entry in own["tried"] if entry["pooling"] == pooling]
            axes.plot(
                [entry["layer"] for entry in tried],
                [entry["dev_accuracy"] for entry in tried],
                marker=marker,
                linestyle=style,
                label=pooling,
            )
        for score in select(majority, receiver=own["sender"]):
            axes.axhline(
                score.value or 0, color="#999999", linestyle=":", label="most frequent label"
            )
        axes.set(xlabel="layer", ylabel="accuracy", ylim=F1_LIMITS, title=own["sender"])
    return _legend_below(figure)


def draw_relay(series: Sequence[Series]) -> Figure:
    """F1 of each receiver that reads what comes from each sender; a panel per method.

    At the lowest target ratio of each method.
    """
    chosen: dict[str, dict[tuple[str, str], float]] = {}
    for own in sorted(series, key=lambda own: -(own.target_ratio or 0)):
        method, _, sender = own.method.partition(FROM)
        if not method.startswith("control_"):
            chosen.setdefault(method, {})[sender, own.receiver] = own.f1.number
    pairs = [pair for cells in chosen.values() for pair in cells]
    senders, receivers = (sorted(set(names)) for names in zip(*pairs, strict=True))
    figure, panels = _panels(len(chosen))
    for axes, method in zip(panels, in_order(chosen), strict=True):
        grid = np.full((len(senders), len(receivers)), np.nan)
        for (sender, receiver), value in chosen[method].items():
            row, column = senders.index(sender), receivers.index(receiver)
            grid[row, column] = value
            colour = "#ffffff" if value < 0.5 else "#000000"
            axes.text(column, row, f"{value:.2f}", color=colour, ha="center", va="center")
        # Of even brightness steps, for the colour-blind and in print.
        image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=1)
        axes.set_xticks(range(len(receivers)), receivers)
        axes.set_yticks(range(len(senders)), senders)
        axes.grid(visible=False)
        axes.set(xlabel="receiver", ylabel="sender", title=label(method))
    figure.colorbar(image, ax=panels, label="F1")
    return figure


@dataclass(frozen=True)
class Swept:
    """A wire that reads one layer of one sender, or several side by side."""

    sender: str
    layers: tuple[int, ...]
    series: Series

    @property
    def place(self) -> tuple[int, tuple[int, ...]]:
        """Sorts single layers before several."""
        return len(self.layers), self.layers

    @property
    def name(self) -> str:
        return ", ".join(map(str, self.layers))


def draw_layers(swept: Sequence[Swept]) -> Figure:
    """Relative F1 by the layers whose states are read, a panel per sender, a line per receiver.

    At the lowest target ratio. Lines join single layers.
    """
    lowest = min(own.series.target_ratio or 0 for own in swept)
    shown = [own for own in swept if own.series.target_ratio == lowest]
    senders = sorted({own.sender for own in shown})
    receivers = sorted({own.series.receiver for own in shown})
    figure, panels = _panels(len(senders))
    for axes, sender in zip(panels, senders, strict=True):
        sent = sorted((own for own in shown if own.sender == sender), key=lambda own: own.place)
        names = [*dict.fromkeys(own.name for own in sent)]
        for receiver, marker, style in zip(receivers, RATIO_MARKERS, itertools.cycle(LINE_STYLES)):
            read = [own for own in sent if own.series.receiver == receiver]
            places = [names.index(own.name) for own in read]
            scores = [own.series.quality["relative_f1"].number for own in read]
            num_single = sum(len(own.layers) == 1 for own in read)
            (line,) = axes.plot(places[:num_single], scores[:num_single], linestyle=style)
            axes.plot(
                places, scores, marker=marker, linestyle="", color=line.get_color(), label=receiver
            )
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="layers", ylabel="F1, relative to text", ylim=F1_LIMITS, title=sender)
    return _legend_below(figure)


def draw_training(runs: dict[str, list[Row]]) -> Figure:
    """Losses in training and on dev against the step, and relative F1 on dev against time.

    A dotted line marks where an interrupted run went on.
    """
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
        looks = zip(itertools.cycle(LINE_STYLES), itertools.cycle(RATIO_MARKERS), strict=True)
        for name, rows in runs.items():
            x = minutes(rows) if is_f1 else [row["step"] for row in rows]
            suffix = f", {name}" if len(runs) > 1 else ""
            for key, (style, marker) in zip(curves[title], looks, strict=False):
                _draw_curve(axes, x, rows, key, _curve_name(key) + suffix, style, marker)
            for place in resumed_after(rows):
                axes.axvline(x[place], color="#444444", linestyle=":", label="resumed")
        axes.set(
            xlabel="minutes" if is_f1 else "step",
            ylabel="share" if is_f1 else "nats per answer token",
            title=title,
        )
        entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(list(entries.values()), list(entries), fontsize=8)
    return figure


def _draw_curve(
    axes: Axes,
    x: Sequence[float],
    rows: Iterable[Row],
    key: str,
    name: str,
    style: str,
    marker: str,
) -> None:
    points = [(place, row[key]) for place, row in zip(x, rows, strict=True) if key in row]
    axes.plot(
        *zip(*points, strict=True),
        marker=marker if len(points) < 30 else "",
        linestyle=style,
        markersize=4,
        label=name,
    )


def _curve_name(key: str) -> str:
    return "/".join(key.split("/")[1:-1]) or key.replace("_", "-")


def _line_style(method: str) -> str:
    if method.startswith("latent"):
        return "-"
    return ":" if method in QUESTION_AWARE_METHODS else "--"


def _target_ratios(series: Iterable[Series]) -> list[float]:
    return sorted({own.target_ratio for own in series if own.target_ratio is not None})


def _several(mean: Mean) -> list[float]:
    """The value of each seed, where there are several."""
    values = [value for value in mean.per_seed.values() if value is not None]
    return values if len(values) > 1 else []


def _panels(count: int, height: float = PANEL_INCHES[1]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(PANEL_INCHES[0] * max(count, 1.6), height), layout="constrained")
    return figure, list(figure.subplots(1, max(count, 1), squeeze=False)[0])


def _rows(count: int) -> tuple[Figure, Axes]:
    """A panel with a row for each of so many things, the first on top."""
    count = max(1, count)
    figure, (axes,) = _panels(1, height=1 + ROW_INCHES * count)
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _marker(marker: str, colour: str, face: str | None = None) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor=face or colour)


def _legend_below(figure: Figure, entries: dict[str, Any] | None = None) -> Figure:
    """One legend for all panels, below them, in the place of an earlier one."""
    entries = dict(entries or {})
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    for legend in list(figure.legends):
        legend.remove()
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4)
    return figure
