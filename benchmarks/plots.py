"""Draws what the benchmarks beside it have measured: docs/images/benchmarks.svg.

    python benchmarks/training_step.py results/pocket > docs/measured/training_step.json
    python benchmarks/evaluation_speed.py results/pocket > docs/measured/evaluation_speed.json
    python benchmarks/prefill.py results/pocket/wires/shared/seed1 > docs/measured/prefill.json
    python benchmarks/scaling.py > docs/measured/scaling.json
    python benchmarks/plots.py

The last draws, and any finished experiment will do.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentwire.files import write_text
from latentwire.reporting.figures import PANEL_INCHES, svg

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    names = ("training_step", "evaluation_speed", "prefill", "scaling")
    measured = {name: json.loads((DOCS / f"measured/{name}.json").read_text()) for name in names}
    write_text(DOCS / "images/benchmarks.svg", svg(lambda: draw(measured)))


def draw(measured: dict[str, Any]) -> Figure:
    width, height = PANEL_INCHES
    figure = Figure(figsize=(2 * width, 2 * height), layout="constrained")
    panels = figure.subplots(2, 2)
    draw_step(panels[0, 0], measured["training_step"])
    draw_evaluation(panels[0, 1], measured["evaluation_speed"])
    draw_prefill(panels[1, 0], measured["prefill"])
    draw_scaling(panels[1, 1], measured["scaling"])
    return figure


def draw_step(axes: Axes, outcome: dict[str, Any]) -> None:
    """A step, and what it is compared with; the bare compute by its parts."""
    start = 0.0
    for part in ("encoder", "receivers", "teachers"):
        if seconds := outcome[part]["seconds"]:
            axes.barh("bare compute", seconds, left=start, label=part)
            start += seconds
    for name, key in (("step", "step"), ("straightforward loop", "straightforward")):
        axes.barh(name, outcome[key]["seconds"], color="#777777")
    axes.invert_yaxis()
    axes.legend(loc="upper right")
    axes.set(title=f"A step, {outcome['questions_per_step']:.0f} questions", xlabel="seconds")


def draw_evaluation(axes: Axes, outcome: dict[str, Any]) -> None:
    for name in ("evaluation", "generate"):
        axes.barh(name, outcome[name]["seconds"], color="#777777")
    axes.invert_yaxis()
    axes.set(title=f"{outcome['questions']:,} answers, {outcome['receiver']}", xlabel="seconds")


def draw_prefill(axes: Axes, outcome: dict[str, Any]) -> None:
    name, rows = next(iter(outcome["receivers"].items()))
    tokens = [row["tokens"] for row in rows]
    for way, marker in (("text", "o"), ("latents", "s"), ("encode", "^")):
        seconds = [1000 * row[f"{way}_seconds"] for row in rows]
        axes.loglog(tokens, seconds, marker=marker, label=way)
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.minorticks_off()
    axes.legend()
    axes.set(title=f"Until the first token, {name}", xlabel="tokens of text", ylabel="milliseconds")


def draw_scaling(axes: Axes, outcome: dict[str, Any]) -> None:
    counts = [int(count) for count in outcome["processes"]]
    speedups = [own["speedup"] for own in outcome["processes"].values()]
    axes.plot(counts, [count / counts[0] for count in counts], "--", color="#777777", label="ideal")
    axes.plot(counts, speedups, marker="o", label="measured")
    axes.set_xticks(counts)
    axes.legend()
    axes.set(title="A step on several processes", xlabel="processes", ylabel="times as fast")


if __name__ == "__main__":
    main()
