"""The wire: one encoder and an adapter for each receiver.

Shapes: B sources, S tokens, M latents of the longest message, L latent_dim, D embedding width.
"""

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.config import Grouping, PromptFormat
from latentwire.config import Wire as WireConfig
from latentwire.data.source import with_question
from latentwire.errors import UserError
from latentwire.files import whole_file, write_json, write_text
from latentwire.receivers.loading import open_tokenizer
from latentwire.receivers.packing import pad_rows
from latentwire.receivers.receiver import Receiver, Source
from latentwire.receivers.states import token_states
from latentwire.wire.adapter import Adapter
from latentwire.wire.card import read_card
from latentwire.wire.chunks import split_tokens
from latentwire.wire.description import CARD, WEIGHTS, Description, ReceiverFacts, wire_folder
from latentwire.wire.encoder import EncodedSources, Encoder
from latentwire.wire.latent_receiver import LatentReceiver, load_frozen
from latentwire.wire.payload import Latents
from latentwire.wire.pooling import num_groups
from latentwire.wire.reading import (
    LatentBatch,
    latent_widths,
    make_adapter,
    soft_tokens,
    stack_messages,
)
from latentwire.wire.sender_input import SenderInput
from latentwire.wire.sentences import find_sentences

SENTENCE_MARKS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")


logger = logging.getLogger(__name__)


class Wire(nn.Module):
    """Encodes source text into latents, and latents into soft tokens of each receiver.

    Args:
        config: the wire's section of the experiment.
        backbone: the encoder's transformer, without language-model head.
        tokenizer: the encoder's tokenizer; none where the encoder reads states of senders, which
            have their own.
        widths: encoder tokens per latent for each target ratio, chosen so that every receiver
            reaches the ratio.
        receivers: facts of each receiver by name.
        prompt: how receivers are asked.
        max_source_tokens: longest source that the encoder has learned from, in its tokens; none is
            as long as its backbone reads.
        senders: facts of each model whose states the encoder reads, by name; none reads text.

    Attributes:
        card: the text of its model card, if it has one.
    """

    def __init__(
        self,
        config: WireConfig,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        widths: dict[float, float],
        receivers: dict[str, ReceiverFacts],
        prompt: PromptFormat | None = None,
        max_source_tokens: int | None = None,
        senders: dict[str, ReceiverFacts] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.widths = widths
        self.receivers = receivers
        self.senders = senders or {}
        self.prompt = prompt or PromptFormat()
        self.max_source_tokens = max_source_tokens
        self.card: str | None = None
        self.encoder = Encoder(backbone, config.encoder, config.latent_dim)
        self.sender_inputs = nn.ModuleList(
            make_sender_input(config, backbone, facts) for facts in self.senders.values()
        )
        self._opened: dict[str, Receiver] = {}
        self._ends: dict[str | None, Tensor] = {}
        # Names may hold dots, which module names may not.
        self.adapters = nn.ModuleList(make_adapter(config, facts) for facts in receivers.values())

    @property
    def device(self) -> torch.device:
        return self.encoder.project.weight.device

    @cached_property
    def wire_id(self) -> bytes:
        """16 bytes that name the wire: a digest of its encoder, taken when first asked for.

        Adapters do not count: a receiver that is added later reads the messages of before.
        """
        digest = hashlib.sha256()
        for part in (self.encoder, self.sender_inputs):
            for name, value in sorted(part.state_dict().items()):
                digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
        return digest.digest()[:16]

    def sender(self, name: str | None = None, path: Path | str | None = None) -> Receiver:
        """The frozen model whose states the encoder reads, opened when first asked for.

        Args:
            name: the sender; none is the wire's only one.
            path: folder or hub repository (`owner/name@commit`) of its model, if it is not where it
                was in training.

        Raises:
            UserError: if the wire has no such sender, or several and none is named, or the model is
                not there or another one.
        """
        if name is None and len(self.senders) == 1:
            (name,) = self.senders
        if name not in self.senders:
            raise UserError(
                f"this wire reads the states of {[*self.senders]}: name one of them as sender"
                if self.senders
                else "this wire reads text, no states of a sender: name none"
            )
        if name not in self._opened:
            facts = self.senders[name]
            self._opened[name] = load_frozen(
                self.config, self.prompt, name, facts, path, str(self.device)
            )
        return self._opened[name]

    def open_senders(self, senders: Sequence[Receiver]) -> None:
        """Takes models that are loaded already as the wire's senders."""
        self._opened |= {sender.name: sender for sender in senders}

    def source_tokenizer(self, sender: str | None = None) -> PreTrainedTokenizerBase:
        """What splits a source into the tokens that the encoder reads, or its sender."""
        if self.tokenizer is not None and sender is None:
            return self.tokenizer
        return self.sender(sender).tokenizer

    def _sentence_ends(self, sender: str | None) -> Tensor:
        """Tokens `[V]` that end a sentence, where groups heed sentences."""
        if sender not in self._ends:
            tokenizer = self.source_tokenizer(sender)
            ends = torch.zeros(len(tokenizer), dtype=torch.bool)
            if self.config.encoder.grouping != Grouping.even:
                texts = tokenizer.batch_decode([[index] for index in range(len(ends))])
                marks = [text.rstrip(" ").endswith(SENTENCE_MARKS) for text in texts]
                ends |= torch.tensor(marks)
            self._ends[sender] = ends
        return self._ends[sender]

    def add_receivers(self, receivers: dict[str, ReceiverFacts]) -> None:
        """Adds untrained adapters of further receivers; what is there stays as it is."""
        self.adapters.extend(make_adapter(self.config, facts) for facts in receivers.values())
        self.receivers = self.receivers | receivers

    def take_weights(self, other: "Wire") -> None:
        """Copies the encoder of another wire, and its adapters for this one's receivers.

        What reads the states of senders is taken from one that reads the same layers of them, and
        left alone otherwise: the other may read text.
        """
        self.encoder.load_state_dict(other.encoder.state_dict())
        adapters = dict(zip(other.receivers, other.adapters, strict=True))
        for name, adapter in zip(self.receivers, self.adapters, strict=True):
            adapter.load_state_dict(adapters[name].state_dict())
        own, others = self.config.senders, other.config.senders
        if own and others and own.layers == others.layers:
            inputs = dict(zip(other.senders, other.sender_inputs, strict=True))
            for name, sender_input in zip(self.senders, self.sender_inputs, strict=True):
                if name in inputs:
                    sender_input.load_state_dict(inputs[name].state_dict())

    def source_ids(self, sources: Sequence[str], sender: str | None = None) -> list[list[int]]:
        """The encoder's or a sender's token ids of source texts, no special tokens, nothing cut."""
        tokenizer = self.source_tokenizer(sender)
        return tokenizer(list(sources), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def read(
        self,
        source_ids: Sequence[Sequence[int]],
        sender: str | None = None,
        features: Tensor | None = None,
    ) -> EncodedSources:
        """Reads sources once; latents of any ratio are pooled from the outcome.

        Args:
            source_ids: token ids of each source.
            sender: the model whose states of the sources are read, if the wire has several.
            features: what `features` gives for these sources, if it is known already.
        """
        ids, mask = (part.to(self.device) for part in pad_rows(source_ids, 0))
        ends = self._sentence_ends(sender).to(self.device)[ids]
        is_related = self.config.encoder.grouping == Grouping.related
        rarity = self._rarity(sender) if is_related else None
        sentences = find_sentences(ids, mask, ends, rarity)
        if self.senders:
            if features is None:
                features = self.features(source_ids, sender)
            embeddings = self._sender_input(sender)(features)
        else:
            embeddings = self.encoder.embed(ids)
        return self.encoder.read(embeddings, mask, sentences)

    def features(self, source_ids: Sequence[Sequence[int]], sender: str | None = None) -> Tensor:
        """Standardised states `[B, S, K, H]` of a sender that reads these sources, nothing else."""
        return self._sender_input(sender).standardise(self._states(source_ids, sender))

    @torch.no_grad()
    def fit_sender(
        self, source_ids: Sequence[Sequence[int]], sender: str, encoder_ids: Sequence[int]
    ) -> None:
        """Starts a sender's input from a sample of sources.

        Args:
            source_ids: the sender's token ids of the sources.
            sender: its name.
            encoder_ids: of the encoder's tokens, one after the other, those that stand in the
                places of these.
        """
        _, mask = pad_rows(source_ids, 0)
        states = self._states(source_ids, sender)[mask.to(self.device)]
        embeddings = self.encoder.embed(torch.tensor(encoder_ids, device=self.device))
        self._sender_input(sender).fit(states, embeddings)

    @torch.no_grad()
    def count_tokens(self, source_ids: Sequence[Sequence[int]], sender: str | None) -> None:
        """Learns how rare tokens are: their inverse document frequency, as a logarithm.

        Args:
            source_ids: token ids of the sources, as `source_ids` gives them for the sender.
            sender: its name; none is the encoder.
        """
        rarity = self._rarity(sender)
        found = torch.tensor([token for ids in source_ids for token in set(ids)])
        counts = found.bincount(minlength=len(rarity)).to(rarity)
        rarity.copy_(((1 + len(source_ids)) / (1 + counts)).log())

    def _rarity(self, sender: str | None) -> Tensor:
        return self._sender_input(sender).rarity if self.senders else self.encoder.rarity

    def feature_key(self, sender: str) -> str:
        """What the features of a source depend on besides the source, in hexadecimal digits."""
        digest = hashlib.sha256(repr((self.senders[sender], self.config.senders)).encode())
        for value in (self._sender_input(sender).centre, self._sender_input(sender).scale):
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _states(self, source_ids: Sequence[Sequence[int]], sender: str | None) -> Tensor:
        return token_states(self.sender(sender), source_ids, self.config.sender_layers)

    def _sender_input(self, sender: str | None) -> SenderInput:
        index = [*self.senders].index(self.sender(sender).name)
        return cast(SenderInput, self.sender_inputs[index])

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

        Raises:
            UserError: if the wire has no adapter for the receiver.
        """
        return soft_tokens(self.config, self.adapter(receiver), latents)

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        ratio: float,
        questions: Sequence[str] | None = None,
        batch_size: int = 32,
        sender: str | None = None,
    ) -> list[Latents]:
        """Messages of source texts at a target ratio.

        A text that is longer than the encoder's window is read in parts, whose latents follow one
        another in its message; a warning says so, and `num_chunks` of the message.

        Args:
            texts: the texts, which may be of any length.
            ratio: one of the wire's target ratios.
            questions: a question for each text, for a wire that compresses both together
                (`wire.source_mode: prompt`), and for no other.
            batch_size: texts, or parts of texts, that are read together.
            sender: the model that reads the texts, for a wire that reads the states of several.

        Raises:
            UserError: if a text is empty, the ratio is not one of the wire's, or questions or a
                sender are missing or of no use.
        """
        latent_widths(self.widths, [ratio])
        if self.senders or sender is not None:
            sender = self.sender(sender).name
        chunks = self._chunks(self._sources(texts, questions), sender)
        flat = [ids for own in chunks for ids in own]
        parts = [
            message.values
            for start in range(0, len(flat), batch_size)
            for message in self.messages(self.read(flat[start : start + batch_size], sender), ratio)
        ]
        remaining = iter(parts)
        return [
            Latents(torch.cat([next(remaining) for _ in own]), ratio, self.wire_id, len(own))
            for own in chunks
        ]

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
        latents = stack_messages(
            messages, self.wire_id, self.config.latent_dim, self.widths, self.device
        )
        return self.soft_tokens(receiver, latents)

    def receiver(self, name: str, path: Path | str | None = None) -> LatentReceiver:
        """Loads a receiver that the wire was trained with, frozen, on the wire's device.

        Args:
            name: the receiver's name in the wire.
            path: folder or hub repository (`owner/name@commit`) of its model, if it is not where it
                was in training.

        Raises:
            UserError: if the wire has no such receiver, or the model is not there or another one.
        """
        description = self.description()
        adapter = self.adapter(name)
        facts = description.facts(name)
        frozen = load_frozen(self.config, self.prompt, name, facts, path, str(self.device))
        return LatentReceiver(frozen, adapter, description)

    def description(self) -> Description:
        """All but the weights."""
        # Where this machine had the backbone is of no use to others.
        backbone = self.encoder.backbone.config.to_dict()
        backbone.pop("_name_or_path", None)
        return Description(
            wire=self.config,
            backbone=backbone,
            widths=self.widths,
            receivers=self.receivers,
            senders=self.senders,
            prompt=self.prompt,
            max_source_tokens=self.max_source_tokens,
            wire_id=self.wire_id.hex(),
        )

    def save_pretrained(self, directory: Path | str) -> None:
        """Writes weights, configuration, tokenizer and model card; the weights last."""
        self._save(Path(directory), self.description())

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, commit_message: str = "Upload a wire"
    ) -> str:
        """Uploads the wire as `save_pretrained` writes it; the repository is made if needed.

        Where receivers came from folders of this machine, their place is left out: whoever loads
        the wire names it with `receiver(name, path=...)`.

        Returns:
            The address of the commit.

        Raises:
            UserError: if the hub refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), self.description().without_folders())
            try:
                HfApi().create_repo(repo_id, private=private, exist_ok=True)
                commit = HfApi().upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message
                )
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise UserError(
                    f"cannot upload to {repo_id}: {error}\nLog in with `hf auth login` and a token "
                    "that may write; give the repository as owner/name"
                ) from error
        return str(commit.commit_url)

    @classmethod
    def from_pretrained(
        cls, location: Path | str, device: str = "cpu", revision: str | None = None
    ) -> "Wire":
        """Loads a trained wire from safetensors; nothing that comes with it is run.

        Args:
            location: a folder, or a hub repository as `owner/name`.
            device: where it runs, for example `cuda`.
            revision: commit, tag or branch of the repository; none is its main branch.

        Raises:
            UserError: if a file is missing or malformed, or the weights do not fit the
                configuration.
        """
        directory = wire_folder(location, revision)
        description = Description.read(directory)
        wire = cls(
            description.wire,
            _empty_backbone(description, directory),
            None if description.senders else open_tokenizer(str(directory), None),
            description.widths,
            description.receivers,
            description.prompt,
            description.max_source_tokens,
            description.senders,
        )
        try:
            wire.load_state_dict(load_file(directory / WEIGHTS))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"the weights of the wire in {directory} do not load: {error}"
            ) from error
        wire.card = read_card(directory)
        return wire.eval().requires_grad_(False).to(device)

    def _save(self, directory: Path, description: Description) -> None:
        if self.tokenizer is not None:
            _save_tokenizer(self.tokenizer, directory)
        description.write(directory)
        if self.card is not None:
            write_text(directory / CARD, self.card)
        with whole_file(directory / WEIGHTS) as temporary:
            save_file(
                {name: value.contiguous() for name, value in self.state_dict().items()}, temporary
            )

    def _sources(self, texts: Sequence[str], questions: Sequence[str] | None) -> list[str]:
        """What is compressed of each text, checked."""
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts, not a text: give [text]")
        for index, text in enumerate(texts):
            if not text.strip():
                raise UserError(
                    f"cannot encode an empty text (number {index}): give at least one character"
                )
        if (self.config.source_mode == "prompt") != (questions is not None):
            raise UserError(
                "this wire compresses passage and question together: give a question for each text"
                if questions is None
                else "this wire compresses passages alone: put the questions to a receiver"
            )
        if questions is None:
            return list(texts)
        if len(questions) != len(texts):
            raise UserError(f"{len(texts)} texts need as many questions, not {len(questions)}")
        return [with_question(*pair) for pair in zip(texts, questions, strict=True)]

    def _chunks(self, sources: Sequence[str], sender: str | None = None) -> list[list[list[int]]]:
        """Token ids of the parts of each source, of which most have one."""
        windows = [self.max_source_tokens, self.encoder.backbone.config.max_position_embeddings]
        if sender is not None:
            reader = self.sender(sender)
            longest = reader.model.config.max_position_embeddings
            windows.append(longest - len(reader.prompt.head_ids))
        window = min(size for size in windows if size is not None)
        ends = self._sentence_ends(sender)
        chunks = [
            split_tokens(ids, ends[ids].tolist(), window)
            for ids in self.source_ids(sources, sender)
        ]
        for index, own in enumerate(chunks):
            if len(own) > 1:
                logger.warning(
                    "text %d has %d tokens, more than the encoder's window of %d: it is read in "
                    "%d parts, which do not see one another",
                    index,
                    sum(map(len, own)),
                    window,
                    len(own),
                )
        return chunks

    def _widths(self, ratios: Sequence[float]) -> Tensor:
        return latent_widths(self.widths, ratios).to(self.device)

    def adapter(self, receiver: str) -> Adapter:
        names = [*self.receivers]
        if receiver not in names:
            raise UserError(f"no adapter for receiver {receiver!r}; there are {names}")
        return cast(Adapter, self.adapters[names.index(receiver)])


def make_sender_input(
    config: WireConfig, backbone: PreTrainedModel, facts: ReceiverFacts
) -> SenderInput:
    """An untrained input for the states of a sender."""
    return SenderInput(
        len(config.sender_layers),
        facts.embedding_dim,
        backbone.config.hidden_size,
        facts.vocab_size,
    )


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    special_tokens = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    write_text(directory / "tokenizer.json", tokenizer.backend_tokenizer.to_str())
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens},
    )


def _empty_backbone(description: Description, directory: Path) -> PreTrainedModel:
    """The encoder's transformer, its weights still to come."""
    settings = dict(description.backbone)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        return AutoModel.from_config(config, attn_implementation="sdpa").float()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the encoder of the wire in {directory} is of no known architecture: {error}"
        ) from error
