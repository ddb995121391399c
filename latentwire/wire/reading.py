"""From messages to what a receiver reads; the encoder has no part in it.

Shapes: B messages, M latents of the longest, L latent_dim, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.config import Wire as WireConfig
from latentwire.errors import UserError
from latentwire.receivers.receiver import Source, key_value_dim
from latentwire.wire.adapter import Adapter
from latentwire.wire.description import ReceiverFacts
from latentwire.wire.payload import Latents


@dataclass(frozen=True)
class LatentBatch:
    """Latents of several sources, as receivers' adapters take them.

    Attributes:
        values: `[B, M, L]`.
        mask: `[B, M]`, true where real; real latents come first.
        widths: `[B]` encoder tokens that each latent of a source stands for.
    """

    values: Tensor
    mask: Tensor
    widths: Tensor


def receiver_facts(
    model: PreTrainedModel, embedding_rms: float, anchor_ids: list[int], **origin: Any
) -> ReceiverFacts:
    """What a wire must know of a receiver or sender.

    Args:
        model: its weights, which may be without values.
        embedding_rms: root mean square of its embedding matrix.
        anchor_ids: token ids of the anchor.
        origin: where it is found again, as `receiver_origin` gives it.
    """
    embeddings, layers = cast(nn.Embedding, model.get_input_embeddings()), model.model.layers
    return ReceiverFacts(
        embeddings.embedding_dim,
        embedding_rms,
        len(layers),
        key_value_dim(layers),
        embeddings.num_embeddings,
        anchor_ids,
        **origin,
    )


def make_adapter(config: WireConfig, facts: ReceiverFacts) -> Adapter:
    """An untrained adapter for a receiver.

    Raises:
        UserError: if the receiver has no keys and values that soft tokens could add to.
    """
    settings = config.adapter
    if settings.deep_layers and not facts.key_value_dim:
        raise UserError(
            f"wire.adapter.deep_layers: {settings.deep_layers}: the receiver {facts.location} "
            "makes keys and values in one, or of several widths; set it to 0"
        )
    unit = facts.embedding_rms if settings.calibration == "embed_rms" else 1.0
    hidden_dim = settings.hidden_dim or 2 * facts.embedding_dim
    return Adapter(
        config.latent_dim,
        hidden_dim,
        facts.embedding_dim,
        settings.gain * unit,
        settings.learned_gain,
        min(settings.deep_layers, facts.num_layers),
        facts.key_value_dim,
    )


def is_spread(config: WireConfig) -> bool:
    """Whether soft tokens stand as far apart as what they were pooled from."""
    return config.adapter.positions == "spread" and config.encoder.num_latents is None


def soft_tokens(config: WireConfig, adapter: Adapter, latents: LatentBatch) -> Source:
    """Maps latents to a receiver's soft tokens `[B, M, D]`.

    Soft tokens that are spread stand as far apart as what they were pooled from, after Enhanced
    Position Layout (arXiv 2409.14364).
    """
    embeddings, deep = adapter(latents.values)
    spacing = latents.widths.clamp(min=1) if is_spread(config) else None
    return Source(embeddings, latents.mask, spacing, deep)


def stack_messages(
    messages: Sequence[Latents],
    wire_id: bytes,
    latent_dim: int,
    widths: Mapping[float, float],
    device: torch.device,
) -> LatentBatch:
    """Messages of a wire, right-padded to the longest.

    Raises:
        UserError: if a message is another wire's, or its ratio or width is none of this one's.
    """
    for message in messages:
        if message.wire_id != wire_id:
            raise UserError(
                f"a message of wire {message.wire_id.hex()} cannot be read through wire "
                f"{wire_id.hex()}; use the wire that wrote it"
            )
        if message.values.shape[1] != latent_dim:
            raise UserError(
                f"a message of width {message.values.shape[1]} cannot be read: those of this wire "
                f"have {latent_dim}"
            )
    lengths = torch.tensor([len(message.values) for message in messages])
    values = nn.utils.rnn.pad_sequence([message.values for message in messages], batch_first=True)
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    ratios = [message.ratio for message in messages]
    return LatentBatch(values.to(device), mask.to(device), latent_widths(widths, ratios).to(device))


def latent_widths(widths: Mapping[float, float], ratios: Sequence[float]) -> Tensor:
    """Encoder tokens per latent `[B]` at each target ratio.

    Raises:
        UserError: if the wire was not trained for a ratio.
    """
    unknown = sorted(set(ratios) - widths.keys())
    if unknown:
        raise UserError(f"ratio {unknown[0]:g} is not one of the wire's: {sorted(widths)}")
    return torch.tensor([widths[ratio] for ratio in ratios])
