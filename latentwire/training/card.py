"""The model card of a wire."""

import json

from latentwire.config import NOT_SCIENCE, Experiment
from latentwire.wire.wire import Wire


def wire_card(experiment: Experiment, wire: Wire, seed: int, num_steps: int) -> str:
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

Measured results stand in the experiment's `metrics.csv`.

```python
from latentwire.wire.wire import Wire

wire = Wire.from_pretrained("{experiment.wire.name}/seed{seed}")
latents = wire.encode(["A passage."], ratio={next(iter(wire.widths)):g})
```

## Training settings

```json
{training}
```
"""
