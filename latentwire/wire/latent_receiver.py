"""A frozen receiver with its adapter: reads messages of a wire and answers.

Neither the encoder nor a text has a part in it: this is all that a receiver's side needs.

Shapes: B prompts, T positions of the longest, S soft tokens, D embedding width, W of keys and
values.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentwire.config import PromptFormat
from latentwire.config import Wire as WireConfig
from latentwire.errors import UserError
from latentwire.receivers.loading import BUNDLED, open_model, open_tokenizer, weights_checksum
from latentwire.receivers.packing import lay_out
from latentwire.receivers.prompt import Prompt
from latentwire.receivers.receiver import Receiver, Source
from latentwire.wire.adapter import Adapter
from latentwire.wire.description import WEIGHTS, Description, ReceiverFacts, wire_folder
from latentwire.wire.payload import Latents
from latentwire.wire.reading import make_adapter, soft_tokens, stack_messages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SoftPrompt:
    """Prompts whose sources are soft tokens, left-padded, as `transformers` generates from them.

    Attributes:
        inputs_embeds: `[B, T, D]`, in the receiver's precision.
        attention_mask: `[B, T]`, 1 where real.
        position_ids: `[B, T]`; soft tokens that are spread take more than one position each.
        deep: `[B, T, W]` each, what is to be added to keys and values, side by side, of the layers
            from the first on; none for a wire with `wire.adapter.deep_layers: 0`.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    deep: tuple[Tensor, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the embeddings alone, at consecutive positions, say all."""
        consecutive = (self.attention_mask.cumsum(1) - 1) * self.attention_mask
        return not self.deep and torch.equal(consecutive, self.position_ids)


class LatentReceiver:
    """A frozen receiver that reads latents.

    Args:
        receiver: the model, asked as the wire was trained.
        adapter: its adapter.
        description: the wire's.
    """

    def __init__(self, receiver: Receiver, adapter: Adapter, description: Description) -> None:
        self.receiver = receiver
        self._adapter = adapter
        self._description = description

    @property
    def name(self) -> str:
        return self.receiver.name

    @torch.no_grad()
    def answer(
        self,
        latents: Latents | Sequence[Latents],
        questions: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> list[str]:
        """Answers questions greedily, as evaluation does.

        Args:
            latents: a message for each question, or one that all are about. A message that comes
                several times, the very same object, is read once for all of its questions.
            questions: the questions; none where they are inside the latents already
                (`wire.source_mode: prompt`).
            max_new_tokens: cap on an answer.
            batch_size: messages that are read together.

        Returns:
            The answers, in order; empty where the receiver finds none.

        Raises:
            UserError: if a message is another wire's, the prompt is longer than the receiver
                reads, or messages and questions do not go together.
        """
        messages, texts = self._pair(latents, questions)
        ids = self.receiver.prompt.question_ids(texts)
        asked: dict[int, list[int]] = {}
        for index, message in enumerate(messages):
            asked.setdefault(id(message), []).append(index)
        # Messages of like length make little padding.
        groups = sorted(asked.values(), key=lambda group: len(messages[group[0]].values))
        answers = [""] * len(texts)
        for start in range(0, len(groups), batch_size):
            batch = groups[start : start + batch_size]
            source = self.read([messages[group[0]] for group in batch])
            flat = [index for group in batch for index in group]
            self._check_length(source, [ids[index] for index in flat], max_new_tokens)
            rows = lay_out([ids[index] for index in flat], batch)
            given = self.receiver.decode(self.receiver.generate(source, rows, max_new_tokens))
            for index, text in zip(flat, given, strict=True):
                answers[index] = text
        return answers

    @torch.no_grad()
    def generate(
        self,
        latents: Latents | Sequence[Latents],
        prompts: str | Sequence[str] | None = None,
        max_new_tokens: int = 64,
        **settings: Any,
    ) -> list[str]:
        """Writes on from latents and prompts, with `generate` of `transformers`.

        Spread positions and what soft tokens add to keys and values are kept: greedy decoding says
        what `answer` does.

        Args:
            latents: a message for each prompt, or one for all.
            prompts: what stands in the place of the question.
            max_new_tokens: cap on each text.
            **settings: generation arguments of `transformers`: `do_sample`, `temperature`, `top_p`,
                `num_beams`, `num_return_sequences`, `streamer` (of a single prompt),
                `generation_config` and others. What they leave out is as the model's own
                `generation_config` says.

        Returns:
            The texts, those of one prompt side by side.

        Raises:
            UserError: as `answer`; or if the prompt would be read in parts (`prefill_chunk_size`).
        """
        if settings.get("prefill_chunk_size"):
            raise UserError("prefill_chunk_size: a prompt of soft tokens is read in one go")
        prompt = self._soft_prompt(latents, prompts, max_new_tokens)
        settings.setdefault("pad_token_id", self.receiver.pad_id)
        settings.setdefault("eos_token_id", sorted(self.receiver.stop_ids))
        model: Any = self.receiver.model
        with self.deepened(prompt):
            output = model.generate(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=prompt.attention_mask,
                position_ids=prompt.position_ids,
                max_new_tokens=max_new_tokens,
                **settings,
            )
        return self.receiver.decode(getattr(output, "sequences", output).tolist())

    @torch.no_grad()
    def inputs_embeds(
        self, latents: Latents | Sequence[Latents], prompts: str | Sequence[str] | None = None
    ) -> SoftPrompt:
        """Embeddings of whole prompts, for a generation loop of your own.

        They say all for a wire with `wire.adapter.deep_layers: 0`. For others a warning says that
        they do not: read them inside `deepened`.

        Raises:
            UserError: as `answer`.
        """
        prompt = self._soft_prompt(latents, prompts, 0)
        if prompt.deep:
            logger.warning(
                "soft tokens of this wire add to keys and values of %d layers as well, which "
                "inputs_embeds does not carry: run the model inside `with "
                "receiver.deepened(prompt):`",
                len(prompt.deep),
            )
        return prompt

    def deepened(self, prompt: SoftPrompt) -> AbstractContextManager[None]:
        """Lets the receiver's layers read the deep part of prompts for the length of a block.

        A forward pass over whole prompts, or over prompts and what follows them, gets it added; one
        over fewer positions, as each step of cached decoding is, is left as it is.
        """
        return self.receiver.deepened(prompt.deep)

    def read(self, messages: Sequence[Latents]) -> Source:
        """Soft tokens of messages, right-padded to the longest.

        Raises:
            UserError: if a message is another wire's, or its ratio or width is none of this one's.
        """
        about = self._description
        batch = stack_messages(
            messages,
            bytes.fromhex(about.wire_id),
            about.wire.latent_dim,
            about.widths,
            self.receiver.device,
        )
        return soft_tokens(about.wire, self._adapter, batch)

    def _pair(
        self, latents: Latents | Sequence[Latents], questions: str | Sequence[str] | None
    ) -> tuple[list[Latents], list[str]]:
        """A message and a question for each answer."""
        texts = [questions] if isinstance(questions, str) else questions
        in_latents = self._description.wire.source_mode == "prompt"
        if in_latents != (texts is None):
            raise UserError(
                "this wire's latents hold the question already: give none"
                if in_latents
                else "this wire's latents hold the passage alone: give a question"
            )
        messages = [latents] if isinstance(latents, Latents) else list(latents)
        if texts is None:
            return messages, [""] * len(messages)
        if len(messages) == 1:
            messages *= len(texts)
        if len(messages) != len(texts):
            raise UserError(
                f"{len(messages)} messages and {len(texts)} questions do not go together: give a "
                "message for each question, or one for all"
            )
        return messages, list(texts)

    def _check_length(
        self, source: Source, questions: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        """Refuses prompts that reach further than the receiver's positions."""
        spacing = 1.0 if source.spacing is None else source.spacing
        positions = float((source.mask.sum(1) * spacing).max())
        total = (
            len(self.receiver.prompt.head_ids)
            + int(positions)
            + max(map(len, questions))
            + max_new_tokens
        )
        most = self.receiver.model.config.max_position_embeddings
        if total > most:
            raise UserError(
                f"receiver {self.name!r} reads {most} positions, but message, question and answer "
                f"take {total}: encode a shorter text"
            )

    def _soft_prompt(
        self,
        latents: Latents | Sequence[Latents],
        prompts: str | Sequence[str] | None,
        max_new_tokens: int,
    ) -> SoftPrompt:
        messages, texts = self._pair(latents, prompts)
        source = self.read(messages)
        tails = self.receiver.prompt.question_ids(texts)
        self._check_length(source, tails, max_new_tokens)
        rows = [self._row(source.select([index]), tail) for index, tail in enumerate(tails)]
        width = max(len(row.attention_mask) for row in rows)
        padded = [row.padded(width) for row in rows]
        return SoftPrompt(
            torch.stack([row.inputs_embeds for row in padded]),
            torch.stack([row.attention_mask for row in padded]),
            torch.stack([row.position_ids for row in padded]),
            tuple(torch.stack(layer) for layer in zip(*(row.deep for row in padded), strict=True)),
        )

    def _row(self, source: Source, tail: Sequence[int]) -> "_Row":
        """One prompt: head, soft tokens, and what follows them."""
        head_ids, device = self.receiver.prompt.head_ids, self.receiver.device
        head, after = (self.receiver.embed(ids) for ids in (head_ids, tail))
        count = int(source.mask.sum())
        soft = source.embeddings[0, :count].to(head.dtype)
        spacing = torch.ones(len(head) + count, device=device)
        if source.spacing is not None:
            spacing[len(head) :] = source.spacing[0]
        starts = F.pad(spacing.cumsum(0), (1, 0)).long()
        positions = torch.cat([starts[:-1], starts[-1] + torch.arange(len(tail), device=device)])
        around = (0, 0, len(head), len(tail))
        return _Row(
            torch.cat([head, soft, after]),
            torch.ones_like(positions),
            positions,
            tuple(F.pad(added[0, :count], around) for added in source.deep),
        )


@dataclass(frozen=True)
class _Row:
    """One prompt of a `SoftPrompt`, without the first dimension."""

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    deep: tuple[Tensor, ...]

    def padded(self, width: int) -> "_Row":
        missing = width - len(self.attention_mask)
        return _Row(
            F.pad(self.inputs_embeds, (0, 0, missing, 0)),
            F.pad(self.attention_mask, (missing, 0)),
            F.pad(self.position_ids, (missing, 0)),
            tuple(F.pad(added, (0, 0, missing, 0)) for added in self.deep),
        )


def open_receiver(
    location: Path | str,
    name: str,
    device: str = "cpu",
    revision: str | None = None,
    path: Path | str | None = None,
) -> LatentReceiver:
    """Opens a receiver of a wire without the wire's encoder: reads one adapter's weights alone.

    Args:
        location: the wire: a folder, or a hub repository as `owner/name`.
        name: the receiver's name in the wire.
        device: where it runs, for example `cuda`.
        revision: commit, tag or branch of the wire's repository; none is its main branch.
        path: folder or hub repository (`owner/name@commit`) of the receiver's model, if it is not
            where it was in training.

    Raises:
        UserError: if the wire has no such receiver, a file is missing or malformed, or the model is
            not there or another one.
    """
    folder = wire_folder(location, revision)
    description = Description.read(folder)
    facts = description.facts(name)
    adapter = make_adapter(description.wire, facts)
    prefix = f"adapters.{[*description.receivers].index(name)}."
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            weights = {
                key.removeprefix(prefix): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 (not a mapping)
                if key.startswith(prefix)
            }
        adapter.load_state_dict(weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the adapter of {name!r} in the wire {folder} does not load: {error}"
        ) from error
    adapter.eval().requires_grad_(False).to(device)
    frozen = load_frozen(description.wire, description.prompt, name, facts, path, device)
    return LatentReceiver(frozen, adapter, description)


def load_frozen(
    config: WireConfig,
    form: PromptFormat,
    name: str,
    facts: ReceiverFacts,
    path: Path | str | None,
    device: str,
) -> Receiver:
    """Loads a model that a wire was trained with, and checks that it is the one of the training.

    Args:
        config: the wire's section of the experiment.
        form: how the wire's receivers are asked.
        name: the model's name in the wire.
        facts: what the wire knows of it.
        path: folder or hub repository of the model, if it is not where it was in training.
        device: where it runs, for example `cuda`.

    Raises:
        UserError: if the model is not there or another one.
    """
    location, revision = _locate(name, facts, path)
    model = open_model(location, revision, facts.dtype, device)
    tokenizer = open_tokenizer(location, revision)
    template = form.template if config.source_mode == "context" else "{source}"
    prompt = Prompt(tokenizer, template, form.anchor_text)
    receiver = Receiver(name, model, tokenizer, prompt)
    _check_identity(receiver, facts, location)
    return receiver


def _locate(name: str, facts: ReceiverFacts, path: Path | str | None) -> tuple[str, str | None]:
    """Folder, or repository and commit, of a receiver's model."""
    if path is not None:
        location, _, revision = str(path).partition("@")
        return (str(path), None) if Path(path).is_dir() else (location, revision or None)
    if facts.location is not None and facts.revision is not None:
        return facts.location, facts.revision
    for folder in (facts.location, BUNDLED / name):
        if folder is not None and Path(folder).is_dir():
            return str(folder), None
    known = f"it was in {facts.location}" if facts.location else "the wire does not say where it is"
    raise UserError(
        f"the model of receiver {name!r} is not here ({known}): give its folder or hub repository, "
        "`path` in Python, `--receiver-path` on the command line"
    )


def _check_identity(receiver: Receiver, facts: ReceiverFacts, location: str) -> None:
    """Refuses another model than the adapter was trained for."""
    found: dict[str, tuple[object, object]] = {
        "embedding width": (receiver.embedding_dim, facts.embedding_dim),
        "number of layers": (receiver.model.config.num_hidden_layers, facts.num_layers),
        "tokens of the anchor": (receiver.prompt.anchor_ids, facts.anchor_ids),
    }
    # Sums differ a little between devices.
    if not math.isclose(receiver.embedding_rms, facts.embedding_rms, rel_tol=1e-3):
        found["embedding RMS"] = (receiver.embedding_rms, facts.embedding_rms)
    if facts.weights_sha256 and (checksum := weights_checksum(location)):
        found["SHA-256 of the weights"] = (checksum, facts.weights_sha256)
    wrong = [
        f"{what} is {here}, not {then}" for what, (here, then) in found.items() if here != then
    ]
    if wrong:
        raise UserError(
            f"{location} is not the receiver {receiver.name!r} that the wire was trained with: "
            f"{'; '.join(wrong)}"
        )
