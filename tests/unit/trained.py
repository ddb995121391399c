"""An untrained wire in a folder, its two receivers beside it, as an experiment leaves them."""

from pathlib import Path

import torch
from samples import make_receiver
from transformers import AutoModel

from latentwire.config import Adapter, Encoder
from latentwire.config import Wire as WireConfig
from latentwire.files import save_pretrained
from latentwire.receivers.loading import weights_checksum
from latentwire.wire.reading import receiver_facts
from latentwire.wire.wire import Wire

CARD = "---\nlibrary_name: latentwire\n---\n# Wire\n"


def save_wire(experiment: Path, source_mode: str = "context", **adapter) -> Path:
    """Saves a wire for `llama` and `qwen`, that writes at 2x and 4x; returns its folder."""
    receivers = {name: make_receiver(name) for name in ("llama", "qwen")}
    facts = {}
    for name, receiver in receivers.items():
        folder = experiment / "receivers" / name
        save_pretrained(folder, receiver.model, receiver.tokenizer)
        facts[name] = receiver_facts(
            receiver.model,
            receiver.embedding_rms,
            receiver.prompt.anchor_ids,
            location=str(folder.resolve()),
            weights_sha256=weights_checksum(str(folder)),
        )
    llama = receivers["llama"]
    torch.manual_seed(1)
    backbone = AutoModel.from_config(llama.model.config, attn_implementation="sdpa")
    backbone.load_state_dict(llama.model.model.state_dict())
    config = WireConfig(
        latent_dim=24,
        target_ratios=[2, 4],
        source_mode=source_mode,
        encoder=Encoder(),
        adapter=Adapter(**{"gain": 3, **adapter}),
    )
    widths = {2.0: 2.1, 4.0: 4.2}
    wire = Wire(config, backbone, llama.tokenizer, widths, facts, max_source_tokens=60)
    for weight in wire.parameters():
        # Some layers start as the identity, which nothing could be seen through.
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    wire.card = CARD
    folder = experiment / "wires" / "shared" / "seed1"
    wire.eval().requires_grad_(False).save_pretrained(folder)
    return folder
