"""The encoder: source text to latents.

Shapes: B sources, S tokens, M latents of the longest message, D embedding width, H width of a
token's states (of one layer, or of all side by side), L latent_dim.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.config import Encoder as EncoderConfig
from latentwire.config import Pooling
from latentwire.wire.pooling import PooledAttention, group_weights
from latentwire.wire.sentences import Sentences


@dataclass(frozen=True)
class EncodedSources:
    """Token states of sources, from which latents of any ratio are pooled.

    Attributes:
        hidden: `[B, S, H]`; with learned tokens `[B, *, H]`, theirs last.
        mask: `[B, S]` true where a token of the source is real.
        sentences: what its tokens belong to.
    """

    hidden: Tensor
    mask: Tensor
    sentences: Sentences


class Encoder(nn.Module):
    """A transformer's token states, pooled over groups and projected to latents.

    Pooling follows "Simple Context Compression" (arXiv 2510.20797); learned tokens behind the
    source, of which a message takes all or the first, are the memory tokens of ICAE
    (arXiv 2307.06945).

    Args:
        backbone: a transformer without language-model head.
        config: pooling and direction of attention.
        latent_dim: width of a latent vector.

    Attributes:
        rarity: `[V]` how rare each of its tokens is.
    """

    rarity: Tensor

    def __init__(self, backbone: PreTrainedModel, config: EncoderConfig, latent_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        hidden_size = backbone.config.hidden_size
        num_states = 1 + backbone.config.num_hidden_layers if config.layers == "all" else 1
        self.project = nn.Linear(num_states * hidden_size, latent_dim)
        self.register_buffer("rarity", torch.zeros(backbone.config.vocab_size))
        if config.pooling == Pooling.attention:
            num_heads = math.gcd(backbone.config.num_attention_heads, latent_dim // 2)
            self.pooled_attention = nn.ModuleList(
                PooledAttention(latent_dim, num_states * hidden_size, num_heads)
                for _ in range(config.pooling_layers)
            )
        if config.num_latents is not None:
            self.queries = nn.Parameter(torch.randn(config.num_latents, hidden_size) * 0.02)

    def add_lora(self, rank: int) -> None:
        """Freezes the backbone but for low-rank updates of its linear layers (arXiv 2106.09685)."""
        # A slow import that few wires need.
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        self.backbone = cast(PreTrainedModel, get_peft_model(self.backbone, settings))

    def merge_lora(self) -> None:
        """Adds the updates to the weights that they update, if there are any."""
        # What was merged already is a plain model again.
        if hasattr(self.backbone, "merge_and_unload"):
            self.backbone = cast(Any, self.backbone).merge_and_unload()

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings `[B, S, D]` of source tokens `[B, S]`."""
        return self.backbone.get_input_embeddings()(ids)

    def read(self, embeddings: Tensor, mask: Tensor, sentences: Sentences) -> EncodedSources:
        """Reads right-padded embeddings `[B, S, D]` of sources once; padding changes nothing."""
        source_mask = mask
        if not self.config.reads_source:
            embeddings, mask = embeddings[:, :0], mask[:, :0]
        if self.config.num_latents is not None:
            embeddings, mask = self._append_queries(embeddings, mask)
        length = embeddings.shape[1]
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)
        visible = mask[:, None, :] | itself
        if not self.config.bidirectional:
            visible = visible & torch.ones_like(itself).tril()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.backbone(
            inputs_embeds=embeddings,
            attention_mask=visible[:, None],
            position_ids=positions,
            use_cache=False,
            output_hidden_states=self.config.layers == "all",
        )
        # The last layer is the one that is furthest from the source: it predicts what comes next.
        states = output.hidden_states or [output.last_hidden_state]
        hidden = torch.cat([F.rms_norm(state, state.shape[-1:]) for state in states], dim=-1)
        return EncodedSources(hidden, source_mask, sentences)

    def latents(self, sources: EncodedSources, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Latents `[B, M, L]` and their mask `[B, M]`, `groups` `[B]` of them for each source.

        With learned queries every source has `num_latents`, whatever `groups` says; of memory
        tokens it has no more than these.
        """
        if self.config.num_latents is not None:
            pooled = sources.hidden[:, -self.config.num_latents :]
            if self.config.pooling == Pooling.queries:
                groups = torch.full_like(groups, self.config.num_latents)
            index = torch.arange(pooled.shape[1], device=groups.device)
            mask = index < groups[:, None]
            longest = int(mask.sum(1).max())
            pooled, mask = pooled[:, :longest], mask[:, :longest]
        else:
            pooling = self.config.pooling
            weights, mask = group_weights(sources.mask, sources.sentences, groups, pooling)
            pooled = weights.to(sources.hidden.dtype) @ sources.hidden
        latents = self.project(pooled)
        if self.config.pooling == Pooling.attention:
            centres = weights @ torch.arange(weights.shape[2], device=weights.device).float()
            for layer in self.pooled_attention:
                latents = layer(latents, sources.hidden, sources.mask, centres)
        return latents, mask

    def _append_queries(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.queries.to(embeddings.dtype).expand(len(embeddings), -1, -1)
        real = mask.new_ones(queries.shape[:2])
        return torch.cat([embeddings, queries], dim=1), torch.cat([mask, real], dim=1)
