"""The models of a wire's training, as their configurations describe them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from latentwire.config import Experiment, ReceiverSource
from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.planning.cost import ModelShape
from latentwire.receivers.loading import BUNDLED, DESCRIPTION, model_location
from latentwire.receivers.receiver import ending_mlps
from latentwire.wire.reading import receiver_facts
from latentwire.wire.wire import Wire

# Of each weight in the matrices of layers. To nf4 belongs a byte of scale for 64 weights.
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64}


@dataclass(frozen=True)
class Models:
    """A wire to train, without tokenizer, and its frozen receivers and senders by name."""

    wire: Wire
    receivers: Mapping[str, PreTrainedModel]
    senders: Mapping[str, PreTrainedModel]


def build_models(
    experiment: Experiment, layout: Layout, wire: str, shapes: Mapping[str, Path]
) -> Models:
    """Models with weights of no particular value.

    Args:
        experiment: the whole experiment.
        layout: where prepared receivers are.
        wire: name of the wire to train.
        shapes: files to read in the place of a model's own `config.json`, by its name.

    Raises:
        UserError: if a configuration cannot be read.
    """
    own = experiment.of_wire(wire)
    receivers = _frozen(experiment, layout, [reader.name for reader in own.readers], shapes)
    # A wire that takes another's encoder is made as that one was.
    settings = experiment.of_wire(own.wire.encoder_of or wire).wire
    # A sender that is a receiver too is loaded once more.
    senders = _frozen(experiment, layout, settings.sender_names, shapes)
    config = _read_config(experiment, layout, settings.encoder.backbone, shapes)
    backbone = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    facts, of_senders = (
        {name: receiver_facts(model, 1.0, [], location=name) for name, model in models.items()}
        for models in (receivers, senders)
    )
    made = Wire(settings, backbone, cast(Any, None), {}, facts, senders=of_senders)
    if own.wire.encoder_of is not None:
        made.encoder.requires_grad_(False)
    elif settings.encoder.lora_rank is not None:
        # peft moves what it adds to where it is already, which weights without values refuse.
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):
            made.encoder.add_lora(settings.encoder.lora_rank)
    return Models(made, receivers, senders)


def model_shape(model: Any) -> ModelShape:
    """Shape of a receiver, or of an encoder's backbone."""
    config, has_head = model.config, hasattr(model, "lm_head")
    layers = model.model if has_head else model
    embeddings = model.get_input_embeddings().weight.numel()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        num_parameters(layers) - embeddings,
        config.num_hidden_layers,
        config.num_attention_heads * head_dim,
        config.hidden_size,
        config.vocab_size if has_head else 0,
        sum(map(num_parameters, ending_mlps(layers.layers))) if has_head else 0,
    )


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def num_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def frozen_bytes(model: PreTrainedModel, dtype: str, shares: int = 1) -> int:
    """Bytes of a receiver's weights, the most that one process has at a time.

    Args:
        model: made in bfloat16 where its matrices are quantised.
        dtype: as a receiver's in the configuration.
        shares: processes that the layers are spread over, each gathered while it is at work.
    """
    layers = model.model.layers
    of_layers = num_bytes(layers)
    rest = num_bytes(model) - of_layers
    if dtype in _QUANTISED_BYTES:
        matrices = (module for module in layers.modules() if isinstance(module, nn.Linear))
        saved = torch.bfloat16.itemsize - _QUANTISED_BYTES[dtype]
        of_layers -= round(saved * sum(matrix.weight.numel() for matrix in matrices))
    if shares > 1:
        of_layers = of_layers // shares + of_layers // len(layers)
    return rest + of_layers


def _frozen(
    experiment: Experiment, layout: Layout, names: Sequence[str], shapes: Mapping[str, Path]
) -> dict[str, PreTrainedModel]:
    dtypes = {receiver.name: receiver.dtype for receiver in experiment.receivers}
    models = {}
    for name in names:
        models[name] = AutoModelForCausalLM.from_config(
            _read_config(experiment, layout, name, shapes),
            dtype="bfloat16" if dtypes[name] in _QUANTISED_BYTES else dtypes[name],
            attn_implementation="sdpa",
        ).eval()
        models[name].requires_grad_(False)
    return models


def _read_config(
    experiment: Experiment, layout: Layout, name: str, shapes: Mapping[str, Path]
) -> Any:
    location, revision = _locate(experiment, layout, name, shapes)
    try:
        return AutoConfig.from_pretrained(location, revision=revision)
    except Exception as error:  # transformers raises many kinds for the same absence
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"cannot read the shape of {name!r}: no config.json of {location}{at}: {error}\n"
            "Where the hub is not to be reached, fetch the file beforehand (`hf download "
            f"{location} config.json`), or give another like it: --shape {name}=path/to/config.json"
        ) from error


def _locate(
    experiment: Experiment, layout: Layout, name: str, shapes: Mapping[str, Path]
) -> tuple[Path | str, str | None]:
    """Where a model's configuration is: a folder, a file, or a repository and its revision."""
    if name in shapes:
        return shapes[name], None
    receiver = next((own for own in experiment.receivers if own.name == name), None)
    if receiver is None:
        repository, _, revision = name.partition("@")
        return repository, revision or None
    if (layout.receiver(name) / DESCRIPTION).exists():
        prepared = model_location(layout.receiver(name))
        return prepared["location"], prepared["revision"]
    if receiver.source == ReceiverSource.hub:
        return str(receiver.repo_id), receiver.revision
    # The pocket receivers that are made anew have the shapes of those that are bundled.
    return receiver.path or BUNDLED / name, None
