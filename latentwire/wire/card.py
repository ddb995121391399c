"""The model card of a wire, with what was measured of it as soon as that is at hand."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from latentwire.config import NOT_SCIENCE, Experiment
from latentwire.wire.description import CARD

if TYPE_CHECKING:
    from latentwire.wire.wire import Wire

_FORMATS = {
    "ratio": ".2f",
    "em": ".3f",
    "f1": ".3f",
    "relative_f1": ".1%",
    "payload_bytes": ",.0f",
}
_NOT_MEASURED = "Measured results stand in the experiment's `metrics.csv`."


def wire_card(experiment: Experiment, wire: "Wire", seed: int, num_steps: int) -> str:
    """Markdown that says what the wire is, what it was trained on and how to load it."""
    ratios = ", ".join(f"{ratio:g}x" for ratio in wire.widths)
    receivers = ", ".join(wire.receivers)
    settings = experiment.training.model_dump(mode="json", exclude=NOT_SCIENCE["training"])
    training = json.dumps(settings, indent=2)
    return f"""---
library_name: latentwire
tags: [latentwire, context-compression]
---
# Wire `{experiment.wire.name}`, seed {seed}

One encoder and an adapter for each of: {receivers}. Target ratios: {ratios}.

* Experiment: `{experiment.experiment}`, data source `{experiment.data.source}`
* Encoder: started from `{experiment.wire.encoder.backbone}`
* Pooling: `{wire.config.encoder.pooling}`
* Latents: width {wire.config.latent_dim}
* Parameters: {sum(parameter.numel() for parameter in wire.parameters()):,}
* Training: {num_steps:,} steps

{_NOT_MEASURED}

```python
from latentwire import Wire

wire = Wire.from_pretrained("{experiment.wire.name}/seed{seed}")  # folder or hub repository
latents = wire.encode(["A passage."], ratio={next(iter(wire.widths)):g})
receiver = wire.receiver("{next(iter(wire.receivers))}")
print(receiver.answer(latents, ["A question?"]))
```

## Training settings

```json
{training}
```
"""


def read_card(directory: Path) -> str | None:
    """The card in a wire's folder; with measured results, once the experiment around it has them.

    The table stays in the card where the wire is saved or uploaded again.
    """
    path = directory / CARD
    if not path.is_file():
        return None
    card = path.read_text(encoding="utf-8")
    table = _measured(directory)
    return card.replace(_NOT_MEASURED, table) if table else card


def _measured(directory: Path) -> str | None:
    """Test scores of the wire in `<experiment>/wires/<wire>/seed<seed>`, as a table."""
    directory = directory.resolve()
    metrics = directory / ".." / ".." / ".." / "metrics.csv"
    if directory.parent.parent.name != "wires" or not metrics.is_file():
        return None
    wire, seed = directory.parent.name, directory.name
    values: dict[tuple[str, str, float], dict[str, str]] = {}
    counts = set()
    with metrics.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            is_own = (row["wire"], f"seed{row['seed']}", row["task"]) == (wire, seed, "all")
            if is_own and not row["method"].startswith("control"):
                place = (row["receiver"], row["method"], float(row["target_ratio"]))
                values.setdefault(place, {})[row["metric"]] = row["value"]
                counts.add(row["n"])
    if not values:
        return None
    lines = [
        f"Measured on {'/'.join(sorted(counts))} test questions; relative F1 is to the same "
        "receiver's with the full text.",
        "",
        "| receiver | method | target ratio | ratio | EM | F1 | relative F1 | payload bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (receiver, method, target), own in sorted(values.items()):
        cells = [_cell(own.get(metric), form) for metric, form in _FORMATS.items()]
        lines.append(f"| {' | '.join([receiver, method, f'{target:g}', *cells])} |")
    return "\n".join(lines)


def _cell(value: str | None, form: str) -> str:
    return format(float(value), form) if value else "–"
