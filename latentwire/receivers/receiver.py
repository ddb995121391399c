"""A frozen causal language model that answers questions about a source, given as text or as soft
tokens.

Shapes: B sources, S source positions, Q packed question positions, T answer tokens, N questions,
D embedding width, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.receivers.checkpointing import checkpoint_layers
from latentwire.receivers.packing import (
    PackedQuestions,
    pack_questions,
    packed_attention_mask,
    packed_positions,
    packed_segments,
    pad_rows,
)
from latentwire.receivers.prompt import Prompt


@dataclass(frozen=True)
class Source:
    """What stands between the prompt's head and tail.

    Attributes:
        embeddings: `[B, S, D]`, in the receiver's embedding space.
        mask: `[B, S]`, true where real; real positions come first.
        spacing: `[B]`, positions from one to the next, at least 1; none is 1, as in a text.
        deep: `[B, S, W]` each, keys and values side by side, added to those of the layers from the
            first on.
    """

    embeddings: Tensor
    mask: Tensor
    spacing: Tensor | None = None
    deep: tuple[Tensor, ...] = ()

    def select(self, indices: Sequence[int]) -> "Source":
        """The sources of these indices."""
        spacing = None if self.spacing is None else self.spacing[indices]
        deep = tuple(added[indices] for added in self.deep)
        return Source(self.embeddings[indices], self.mask[indices], spacing, deep)


class Receiver:
    """A frozen receiver: weights without gradient, in evaluation mode.

    Args:
        name: the receiver's name in the experiment.
        model: a causal language model of `transformers`.
        tokenizer: its tokenizer.
        prompt: how questions are put to it.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.prompt = prompt
        self._embed = cast(nn.Embedding, model.get_input_embeddings())
        eos = model.generation_config.eos_token_id if model.generation_config else None
        # Attention modules of transformers multiply their logits by this attribute.
        self._attentions: list[Any] = [
            module
            for module in model.modules()
            if isinstance(getattr(module, "scaling", None), float)
        ]
        self._ending = ending_mlps(model.model.layers)
        self._projections = key_value_projections(model.model.layers)
        self.stop_ids = {tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or [])}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def embedding_dim(self) -> int:
        return self._embed.weight.shape[1]

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the entries of the embedding matrix."""
        return self._embed.weight.float().square().mean().sqrt().item()

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings `[T, D]` of token ids."""
        return self._embed(torch.tensor(ids, dtype=torch.long, device=self.device))

    def text_source(self, source_ids: Sequence[Sequence[int]]) -> Source:
        """Embeds source tokens, right-padded."""
        ids, mask = pad_rows(source_ids, self.pad_id)
        return Source(self._embed(ids.to(self.device)), mask.to(self.device))

    def pack(
        self, rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]]
    ) -> PackedQuestions:
        """Packs `(question ids, answer ids)` pairs, one row per source."""
        return pack_questions(rows, self.pad_id).to(self.device)

    def answer_logits(self, source: Source, packed: PackedQuestions) -> Tensor:
        """Logits `[T, V]` at the positions that predict each answer token, and only there."""
        hidden, _ = self._read(source, packed)
        return self.model.lm_head(hidden).float()

    @contextmanager
    def softened(self, sharpness: float) -> Iterator[None]:
        """Multiplies the model's attention logits by a factor for the length of a block.

        Raises:
            UserError: if the model's attention has no scaling that could be changed.
        """
        if sharpness != 1 and not self._attentions:
            raise UserError(
                f"the attention of receiver {self.name!r} cannot be softened; set "
                "training.softening to 0"
            )
        with _set([(own, "scaling", sharpness * own.scaling) for own in self._attentions]):
            yield

    @contextmanager
    def deepened(self, deep: Sequence[Tensor]) -> Iterator[None]:
        """Adds to the keys and values of layers for the length of a block.

        A forward pass over whole prompts, or over prompts and what follows them, gets it added; one
        over fewer positions, as each step of cached decoding is, is left as it is.

        Args:
            deep: `[B, P, W]` each, of the layers from the first on: what prompts of P positions add
                to keys and values, side by side, before these are turned by their positions.
        """
        replaced = []
        for projections, both in zip(self._projections[: len(deep)], deep, strict=True):
            parts = both.split([projection.out_features for projection in projections], dim=-1)
            for projection, added in zip(projections, parts, strict=True):
                adding = partial(_add_to_output, added, projection.forward)
                replaced.append((projection, "forward", adding))
        with _set(replaced):
            yield

    def checkpoint_activations(self) -> None:
        """Lets backward passes compute again what happens within the model's layers."""
        checkpoint_layers(self.model, self._now_and_again)

    def _now_and_again(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of a layer and of its repetition, which takes place when blocks have ended."""
        now = [(own, "scaling", own.scaling) for own in self._attentions]
        changed = itertools.chain(self._ending, *self._projections)
        now += [(module, "forward", module.forward) for module in changed]
        return nullcontext(), _set(now)

    @torch.no_grad()
    def generate(
        self,
        source: Source,
        questions: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Answers the questions of each source greedily.

        All questions of a source are decoded side by side over one shared prefix; each sees what it
        would see alone.

        Args:
            source: what the questions are about.
            questions: token ids of the questions of each source.
            max_new_tokens: the same cap for every answer.

        Returns:
            Token ids of the N answers in order, without the end-of-sequence token.
        """
        return [
            answer.without_end for answer in self.read(source, questions).generate(max_new_tokens)
        ]

    @torch.no_grad()
    def read(self, source: Source, questions: Sequence[Sequence[Sequence[int]]]) -> "Reading":
        """Reads sources, and token ids of the questions of each, to answer and to score."""
        # An answer of one token takes no position: only the questions are packed.
        packed = self.pack([[(ids, [self.pad_id]) for ids in row] for row in questions])
        hidden, cache = self._read(source, packed, use_cache=True)
        mask = self._prefix_mask(source)
        rows, columns = packed.target_rows, packed.target_columns
        positions = packed_positions(self._prefix_spacing(source), packed)
        return Reading(
            self,
            cache,
            packed_segments(mask, packed),
            rows,
            packed.segments[rows, columns],
            positions[rows, mask.shape[1] + columns],
            self.model.lm_head(hidden),
        )

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Answer texts, outer white space removed."""
        texts = self.tokenizer.batch_decode(
            [list(ids) for ids in answers], skip_special_tokens=True
        )
        return [text.strip() for text in texts]

    def _prefix_mask(self, source: Source) -> Tensor:
        head = source.mask.new_ones(len(source.mask), len(self.prompt.head_ids))
        return torch.cat([head, source.mask], dim=1)

    def _prefix_spacing(self, source: Source) -> Tensor:
        mask = self._prefix_mask(source)
        if source.spacing is None:
            return mask
        return torch.cat(
            [
                mask[:, : len(self.prompt.head_ids)],
                source.mask * source.spacing[:, None],
            ],
            dim=1,
        )

    def _read(
        self,
        source: Source,
        packed: PackedQuestions,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Runs the model over prefix and questions.

        Returns:
            Hidden states `[T, D]` at the positions that predict, alone, and the cache.
        """
        head_ids = torch.tensor(self.prompt.head_ids, dtype=torch.long, device=self.device)
        head = self._embed(head_ids).expand(len(source.mask), -1, -1)
        source_embeddings = source.embeddings.to(head.dtype)
        mask = self._prefix_mask(source)
        places = packed.target_rows, mask.shape[1] + packed.target_columns
        # Behind the last attention positions meet no more, and the others are read by nobody.
        ending = [
            (mlp, "forward", partial(_apply_at, *places, mlp.forward)) for mlp in self._ending
        ]
        behind_head = (0, 0, len(self.prompt.head_ids), 0)
        deep = [F.pad(added, behind_head) for added in source.deep]
        with self.deepened(deep), _set(ending):
            output = self.model.model(
                inputs_embeds=torch.cat([head, source_embeddings, self._embed(packed.ids)], dim=1),
                attention_mask=_attention_bias(packed_attention_mask(mask, packed), head.dtype),
                position_ids=packed_positions(self._prefix_spacing(source), packed),
                use_cache=use_cache,
            )
        return output.last_hidden_state[places], output.past_key_values


@dataclass
class Generated:
    """A greedy answer.

    Attributes:
        ids: its tokens, the one that ends it among them.
        nll: -log p of each, in nats.
        has_ended: whether it ends by itself; it was cut otherwise.
    """

    ids: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    has_ended: bool = False

    @property
    def without_end(self) -> list[int]:
        """Its tokens but for the one that ends it."""
        return self.ids[:-1] if self.has_ended else self.ids


@dataclass(frozen=True)
class Reading:
    """Sources and N questions that a receiver has read, up to where the answers begin.

    Attributes:
        receiver: the receiver.
        cache: its keys and values.
        seen: `[B, P + Q]` what they belong to: -2 a source, or else the number of a question.
        rows: `[N]` the source of each question.
        numbers: `[N]` its number among those of the source.
        positions: `[N]` the position of its last token.
        logits: `[N, V]` there.
    """

    receiver: Receiver
    cache: Any
    seen: Tensor
    rows: Tensor
    numbers: Tensor
    positions: Tensor
    logits: Tensor

    @torch.no_grad()
    def generate(self, max_new_tokens: int) -> list[Generated]:
        """Greedy answers of so many tokens at most, the one that ends an answer among them."""
        stop_ids, seen = self.receiver.stop_ids, self.seen
        answers = [Generated() for _ in range(len(self.rows))]
        running, logits = torch.arange(len(answers)), self.logits
        for step in range(max_new_tokens):
            next_ids = logits.argmax(-1)
            nll = F.cross_entropy(logits.float(), next_ids, reduction="none")
            for index, token, own in zip(
                running.tolist(), next_ids.tolist(), nll.tolist(), strict=True
            ):
                answers[index].ids.append(token)
                answers[index].nll.append(own)
                answers[index].has_ended = token in stop_ids
            goes_on = [not answers[index].has_ended for index in running.tolist()]
            running, next_ids = running[goes_on], next_ids[goes_on]
            if not len(running) or step + 1 == max_new_tokens:
                break
            # A block of columns for those questions of each row that are still being answered. A
            # column sees the prefix and what carries its own question's number.
            rows, numbers = self.rows[running], self.numbers[running]
            columns = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
            block = len(seen), int(columns.max()) + 1
            ids, positions = rows.new_full(block, self.receiver.pad_id), rows.new_zeros(block)
            segments = rows.new_full(block, -1)
            ids[rows, columns] = next_ids
            positions[rows, columns] = self.positions[running] + step + 1
            segments[rows, columns] = numbers
            seen = torch.cat([seen, segments], dim=1)
            visible = (seen[:, None] == -2) | (seen[:, None] == segments[:, :, None])
            hidden = self._read_on(ids, visible, positions)
            logits = self.receiver.model.lm_head(hidden[rows, columns])
        self._forget(seen.shape[1] - self.seen.shape[1])
        return answers

    @torch.no_grad()
    def answer_logits(self, answers: Sequence[Sequence[int]]) -> tuple[Tensor, PackedQuestions]:
        """Logits `[T, V]` that predict each token of the N answers given, and these, packed.

        An answer without tokens is none.
        """
        laid_out: list[list[tuple[list[int], Sequence[int]]]] = [[] for _ in self.seen]
        for row, answer in zip(self.rows.tolist(), answers, strict=True):
            laid_out[row].append(([], answer))
        packed = self.receiver.pack(laid_out)
        logits = self.logits[packed.target_answers].float()
        # The question's end predicts the first token of an answer, the token before any other.
        later = ~packed.starts_answer
        if later.any():
            segments, length = packed.segments, packed.ids.shape[1]
            seen = torch.cat([self.seen, segments], dim=1)
            visible = (seen[:, None] == -2) | (seen[:, None] == segments[:, :, None])
            visible &= torch.ones_like(visible).tril(seen.shape[1] - length)
            ends = self.positions.new_zeros(len(seen), int(self.numbers.max()) + 1)
            ends[self.rows, self.numbers] = self.positions
            starts = ends.gather(1, segments.clamp(min=0)) + 1
            hidden = self._read_on(packed.ids, visible, starts + packed.offsets)
            self._forget(length)
            places = packed.target_rows[later], packed.target_columns[later]
            logits[later] = self.receiver.model.lm_head(hidden[places]).float()
        return logits, packed

    def _read_on(self, ids: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Hidden states of more tokens, whose keys and values the cache takes."""
        return self.receiver.model.model(
            inputs_embeds=self.receiver._embed(ids),
            attention_mask=_attention_bias(visible[:, None], self.logits.dtype),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _forget(self, count: int) -> None:
        """Drops the keys and values that were added last."""
        if count:
            self.cache.crop(-count)


def ending_mlps(layers: nn.ModuleList) -> list[Any]:
    """The MLP that ends a receiver's layers; none if the last one has it by another name."""
    mlp = getattr(layers[-1], "mlp", None)
    return [] if mlp is None else [mlp]


def key_value_projections(layers: nn.ModuleList) -> list[tuple[nn.Linear, nn.Linear]]:
    """What makes keys and values, layer by layer; none if a model does not have them apart."""
    attentions: list[Any] = [getattr(layer, "self_attn", None) for layer in layers]
    if not all(hasattr(own, "k_proj") and hasattr(own, "v_proj") for own in attentions):
        return []
    return [(own.k_proj, own.v_proj) for own in attentions]


def key_value_dim(layers: nn.ModuleList) -> int:
    """Width W of a layer's keys and values, side by side; 0 if not apart, or not all the same."""
    widths = {sum(own.out_features for own in pair) for pair in key_value_projections(layers)}
    return widths.pop() if len(widths) == 1 else 0


def _attention_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its logits; else every layer would make it of the mask anew."""
    return visible.new_zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)


@contextmanager
def _set(values: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets attributes of objects for the length of a block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    for owner, name, value in values:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _apply_at(
    rows: Tensor,
    columns: Tensor,
    forward: Callable[..., Any],
    hidden: Tensor,
    *more: Any,
    **named: Any,
) -> Any:
    """What a module that works position by position gives at some of them; zero elsewhere."""
    # Some experts want to know more than the hidden states, or tell more.
    output = None if more or named else forward(hidden[rows, columns][None])
    if not isinstance(output, Tensor):
        return forward(hidden, *more, **named)
    return output.new_zeros(hidden.shape).index_put((rows, columns), output[0])


def _add_to_output(added: Tensor, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    output = forward(hidden)
    behind = output.shape[1] - added.shape[1]
    if behind < 0:
        return output
    # Beams and further samples of a prompt stand side by side.
    copies = added[:, None].expand(-1, len(output) // len(added), -1, -1).flatten(0, 1)
    return output + F.pad(copies, (0, 0, 0, behind)).to(output.dtype)
