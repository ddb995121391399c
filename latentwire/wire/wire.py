"""The wire: one encoder and an adapter for each receiver.

Shapes: B sources, S tokens, M latents of the longest message, L latent_dim, D embedding width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.config import Wire as WireConfig
from latentwire.errors import UserError
from latentwire.files import read_json, whole_file, write_json, write_text
from latentwire.receivers.loading import open_tokenizer
from latentwire.receivers.packing import pad_rows
from latentwire.receivers.receiver import Source
from latentwire.wire.adapter import Adapter
from latentwire.wire.encoder import EncodedSources, Encoder
from latentwire.wire.payload import Latents
from latentwire.wire.pooling import num_groups

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SENTENCE_MARKS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")


@dataclass(frozen=True)
class ReceiverFacts:
    """What a wire must know of a receiver to write for it.

    Attributes:
        embedding_dim: width D of its embeddings.
        embedding_rms: root mean square of its embedding matrix.
        num_layers: its layers.
        anchor_ids: token ids of the anchor, as trained with.
    """

    embedding_dim: int
    embedding_rms: float
    num_layers: int
    anchor_ids: list[int]


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


class Wire(nn.Module):
    """Encodes source text into latents, and latents into soft tokens of each receiver.

    Args:
        config: the wire's section of the experiment.
        backbone: the encoder's transformer, without language-model head.
        tokenizer: the encoder's tokenizer.
        widths: encoder tokens per latent for each target ratio, chosen so that every receiver
            reaches the ratio.
        receivers: facts of each receiver by name.
    """

    def __init__(
        self,
        config: WireConfig,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        widths: dict[float, float],
        receivers: dict[str, ReceiverFacts],
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.widths = widths
        self.receivers = receivers
        self.encoder = Encoder(backbone, config.encoder, config.latent_dim)
        # Names may hold dots, which module names may not.
        self.adapters = nn.ModuleList(self._adapter(facts) for facts in receivers.values())

    @property
    def device(self) -> torch.device:
        return self.encoder.project.weight.device

    @cached_property
    def wire_id(self) -> bytes:
        """16 bytes that name the wire: a digest of its encoder, taken when first asked for.

        Adapters do not count: a receiver that is added later reads the messages of before.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
        return digest.digest()[:16]

    @cached_property
    def _sentence_ends(self) -> Tensor:
        """Tokens `[V]` that end a sentence, if groups keep to sentences."""
        ends = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        if self.config.encoder.keep_sentences:
            texts = self.tokenizer.batch_decode([[index] for index in range(len(ends))])
            marks = [text.rstrip(" ").endswith(SENTENCE_MARKS) for text in texts]
            ends |= torch.tensor(marks)
        return ends

    def add_receivers(self, receivers: dict[str, ReceiverFacts]) -> None:
        """Adds untrained adapters of further receivers; what is there stays as it is."""
        self.adapters.extend(self._adapter(facts) for facts in receivers.values())
        self.receivers = self.receivers | receivers

    def take_weights(self, other: "Wire") -> None:
        """Copies the encoder of another wire, and its adapters for this one's receivers."""
        self.encoder.load_state_dict(other.encoder.state_dict())
        adapters = dict(zip(other.receivers, other.adapters, strict=True))
        for name, adapter in zip(self.receivers, self.adapters, strict=True):
            adapter.load_state_dict(adapters[name].state_dict())

    def source_ids(self, sources: Sequence[str]) -> list[list[int]]:
        """The encoder's token ids of source texts, no special tokens, nothing cut."""
        return self.tokenizer(list(sources), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def read(self, source_ids: Sequence[Sequence[int]]) -> EncodedSources:
        """Reads sources once; latents of any ratio are pooled from the outcome."""
        ids, mask = pad_rows(source_ids, self.tokenizer.pad_token_id or 0)
        ends = self._sentence_ends[ids] & mask
        return self.encoder.read(*(part.to(self.device) for part in (ids, mask, ends)))

    def latents(
        self, sources: EncodedSources, ratios: Sequence[float], growth: float = 1.0
    ) -> LatentBatch:
        """Latents at one target ratio for each source.

        Args:
            sources: what the encoder read.
            ratios: target ratio of each source.
            growth: how far training has come from one latent per token, 0, to the highest
                ratio, 1; lower ratios are kept once they are reached.

        Raises:
            UserError: if the wire was not trained for a ratio.
        """
        most = torch.tensor(max(self.widths.values()) ** growth)
        widths = self._widths(ratios).minimum(most.to(self.device))
        groups = num_groups(sources.mask.sum(1), widths)
        return LatentBatch(*self.encoder.latents(sources, groups), widths)

    def soft_tokens(self, receiver: str, latents: LatentBatch) -> Source:
        """Maps latents to a receiver's soft tokens `[B, M, D]`.

        Soft tokens that are spread stand as far apart as what they were pooled from, after Enhanced
        Position Layout (arXiv 2409.14364).

        Raises:
            UserError: if the wire has no adapter for the receiver.
        """
        names = [*self.receivers]
        if receiver not in names:
            raise UserError(f"no adapter for receiver {receiver!r}; there are {names}")
        soft_tokens, deep = self.adapters[names.index(receiver)](latents.values)
        is_spread = (
            self.config.adapter.positions == "spread" and self.config.encoder.num_latents is None
        )
        spacing = latents.widths.clamp(min=1) if is_spread else None
        return Source(soft_tokens, latents.mask, spacing, deep)

    @torch.no_grad()
    def encode(self, sources: Sequence[str], ratio: float) -> list[Latents]:
        """Messages of source texts at a target ratio.

        Raises:
            UserError: if a text is empty or the ratio is not one of the wire's.
        """
        ids = self.source_ids(sources)
        if not all(ids):
            raise UserError("cannot encode an empty text: give at least one character")
        return self.messages(self.read(ids), ratio)

    @torch.no_grad()
    def messages(self, sources: EncodedSources, ratio: float) -> list[Latents]:
        """Messages of sources that were read already."""
        batch = self.latents(sources, [ratio] * len(sources.mask))
        return [
            Latents.quantise(row[: int(length)], ratio, self.wire_id)
            for row, length in zip(batch.values, batch.mask.sum(1), strict=True)
        ]

    def receive(self, receiver: str, messages: Sequence[Latents]) -> Source:
        """Soft tokens of messages, right-padded to the longest.

        Raises:
            UserError: if the wire has no adapter for the receiver, or a message is another wire's
                or at a ratio that is not one of this one's.
        """
        for message in messages:
            if message.wire_id != self.wire_id:
                raise UserError(
                    f"a message of wire {message.wire_id.hex()} cannot be read through wire "
                    f"{self.wire_id.hex()}; use the wire that wrote it"
                )
        lengths = torch.tensor([len(message.values) for message in messages])
        values = nn.utils.rnn.pad_sequence(
            [message.values for message in messages], batch_first=True
        ).to(self.device)
        mask = (torch.arange(values.shape[1]) < lengths[:, None]).to(self.device)
        widths = self._widths([message.ratio for message in messages])
        return self.soft_tokens(receiver, LatentBatch(values, mask, widths))

    def save_pretrained(self, directory: Path) -> None:
        """Writes weights, configuration and tokenizer; the weights last."""
        description = {
            "wire": self.config.model_dump(mode="json"),
            "backbone": self.encoder.backbone.config.to_dict(),
            "widths": {f"{ratio:g}": width for ratio, width in self.widths.items()},
            "receivers": {name: asdict(facts) for name, facts in self.receivers.items()},
        }
        special_tokens = {
            name: token
            for name, token in self.tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        }
        write_text(directory / "tokenizer.json", self.tokenizer.backend_tokenizer.to_str())
        write_json(
            directory / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens},
        )
        write_json(directory / CONFIG, description)
        with whole_file(directory / WEIGHTS) as temporary:
            save_file(
                {name: value.contiguous() for name, value in self.state_dict().items()}, temporary
            )

    @classmethod
    def from_pretrained(cls, directory: Path | str, device: str = "cpu") -> "Wire":
        """Loads a trained wire.

        Raises:
            UserError: if a file is missing or malformed, or the weights do not fit the
                configuration.
        """
        directory = Path(directory)
        description: dict[str, Any] = read_json(directory / CONFIG)
        backbone_config = dict(description["backbone"])
        backbone = AutoModel.from_config(
            AutoConfig.for_model(backbone_config.pop("model_type"), **backbone_config),
            attn_implementation="sdpa",
        )
        wire = cls(
            WireConfig.model_validate(description["wire"]),
            backbone.float(),
            open_tokenizer(str(directory), None),
            {float(ratio): width for ratio, width in description["widths"].items()},
            {name: ReceiverFacts(**facts) for name, facts in description["receivers"].items()},
        )
        try:
            wire.load_state_dict(load_file(directory / WEIGHTS))
        except (FileNotFoundError, RuntimeError) as error:
            raise UserError(
                f"the weights of the wire in {directory} do not load: {error}"
            ) from error
        return wire.eval().requires_grad_(False).to(device)

    def _widths(self, ratios: Sequence[float]) -> Tensor:
        unknown = sorted(set(ratios) - self.widths.keys())
        if unknown:
            raise UserError(f"ratio {unknown[0]} is not one of the wire's: {sorted(self.widths)}")
        return torch.tensor([self.widths[ratio] for ratio in ratios], device=self.device)

    def _adapter(self, facts: ReceiverFacts) -> Adapter:
        settings = self.config.adapter
        unit = facts.embedding_rms if settings.calibration == "embed_rms" else 1.0
        hidden_dim = settings.hidden_dim or 2 * facts.embedding_dim
        return Adapter(
            self.config.latent_dim,
            hidden_dim,
            facts.embedding_dim,
            settings.gain * unit,
            settings.learned_gain,
            min(settings.deep_layers, facts.num_layers - 1),
        )
