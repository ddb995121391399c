"""Making the pocket receivers from nothing: tokenizers, a small Llama and a small Qwen2.

They stand in for the pretrained models of a real experiment, and differ in width, depth,
vocabulary, tokenizer and special tokens.
"""

import itertools
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from latentwire.config import Experiment, Pretraining
from latentwire.data.pocket import (
    FULL_LENGTH_FACTS,
    HELD_OUT_NAMES,
    MAX_PEOPLE,
    NAMES,
    Passage,
    draw_shape,
    full_length_passages,
    make_passage,
    mixed_passages,
)
from latentwire.errors import UserError
from latentwire.files import copy_file, discard_partial, save_pretrained
from latentwire.fingerprint import code_fingerprint
from latentwire.layout import Layout
from latentwire.receivers.packing import (
    PackedQuestions,
    lay_out,
    pack_questions,
    packed_attention_mask,
    packed_positions,
    packed_segments,
    pad_rows,
)
from latentwire.receivers.prompt import Prompt, restatement_request
from latentwire.training.loop import METRICS, Schedule, fit
from latentwire.training.objective import answer_token_index
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.state import Identity, StateDirectory

_TOKENIZER_PASSAGES = 4000
_DEV_PASSAGES = 32
_AIDED_LAYER = 2
_NOWHERE = -100
_RESTATED_WHOLE = 0.75

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Architecture and tokenizer of one pocket receiver."""

    vocabulary: int
    special_tokens: dict[str, str]
    digit_pairs: bool
    config: Callable[..., PreTrainedConfig]
    sizes: dict[str, Any]

    def build(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        """A model with random weights."""
        config = self.config(
            **self.sizes,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return AutoModelForCausalLM.from_config(config)


RECIPES = {
    "llama": Recipe(
        vocabulary=1152,
        special_tokens={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        digit_pairs=False,
        config=LlamaConfig,
        sizes={
            "hidden_size": 160,
            "intermediate_size": 432,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
    ),
    "qwen": Recipe(
        vocabulary=1280,
        special_tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        digit_pairs=True,
        config=Qwen2Config,
        sizes={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
        },
    ),
    "gemma": Recipe(
        vocabulary=1024,
        special_tokens={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        digit_pairs=True,
        config=GemmaConfig,
        sizes={
            "hidden_size": 176,
            "intermediate_size": 448,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 44,
        },
    ),
}


def pretrain_receiver(
    experiment: Experiment, layout: Layout, name: str, describe: Callable[[], None]
) -> None:
    """Trains a tokenizer and a model on the pocket corpus and writes them to the receiver's folder.

    Args:
        describe: completes the folder; only then the state of the training goes.

    Raises:
        UserError: if there is no recipe of that name, or a saved state belongs to another run.
    """
    if name not in RECIPES:
        raise UserError(
            f"receivers: {name!r} cannot be pretrained; there are recipes for {sorted(RECIPES)}"
        )
    settings = experiment.pretraining
    identity = Identity(
        {
            "name": name,
            "settings": settings.model_dump(mode="json"),
            "prompt": experiment.prompt.model_dump(mode="json"),
            "threads": experiment.threads,
        },
        code_fingerprint("latentwire.receivers.pretrain"),
        experiment.training.resume_across_code,
    )
    with StateDirectory(layout.state(f"receiver-{name}"), identity) as state:
        if not state.is_done(layout.receiver(name)):
            _pretrain(experiment, layout, name, state)
            describe()
            state.finish(layout.receiver(name))


def _pretrain(experiment: Experiment, layout: Layout, name: str, state: StateDirectory) -> None:
    settings = experiment.pretraining
    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer(RECIPES[name], experiment, settings.seed)
    model = RECIPES[name].build(tokenizer)
    task = PretrainingTask(experiment, model, tokenizer)
    schedule = Schedule(
        num_steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        matrix_learning_rate=settings.matrix_learning_rate,
        other_learning_rate=settings.other_learning_rate,
        checkpoint_interval_seconds=experiment.training.checkpoint_interval_seconds,
    )
    logger.info("pretraining %s: %d parameters", name, model.num_parameters())
    metrics = fit(task, schedule, state)
    directory = layout.receiver(name)
    discard_partial(directory)
    copy_file(metrics, directory / METRICS)
    save_pretrained(directory, model.bfloat16(), tokenizer)


def make_tokenizer(recipe: Recipe, experiment: Experiment, seed: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer, so that any UTF-8 text round-trips."""
    # transformers parts all digits when it loads the tokenizer of a Qwen2 model, whatever the file
    # says; only added tokens pass.
    pairs = [f"{number:02}" for number in range(100)] if recipe.digit_pairs else []
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.digit_pairs else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    passages = itertools.islice(mixed_passages(f"tokenizer/{seed}"), _TOKENIZER_PASSAGES)
    tokenizer.train_from_iterator(
        (_document(passage, experiment) for passage in passages),
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary - len(pairs),
            special_tokens=list(recipe.special_tokens.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(pairs)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **recipe.special_tokens)


def _document(passage: Passage, experiment: Experiment) -> str:
    prompt = experiment.prompt
    return "\n".join(
        prompt.template.format(source=passage.context, question=fact.question)
        + prompt.anchor_text
        + fact.value
        for fact in passage.facts
    )


class PretrainingTask:
    """Answers to all questions of a passage, its text, and restatements, as next-token prediction.

    Three aids together make a small model look a value up by the name of its owner; without them
    it guesses among the people whom a question fits, for thousands of steps. The names in use are
    few at first. A linear probe after the second layer must name the owner, at every value and
    wherever an answer token is predicted. From there the heads of the third layer are told where to
    look: at that token in the passage (supervised attention, arXiv 1609.04186). Were it one head,
    a soft token could hardly hold more than one fact for it.
    """

    def __init__(
        self, experiment: Experiment, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self._model = model.train()
        self._owner = nn.Linear(model.config.hidden_size, len(tokenizer), bias=False)
        self.module = nn.ModuleDict({"model": model, "owner": self._owner})
        self._settings = experiment.pretraining
        prompt = experiment.prompt
        self._prompt = Prompt(tokenizer, prompt.template, prompt.anchor_text)
        self._tokenizer, self._pad_id = tokenizer, tokenizer.pad_token_id
        self._full_stop = tokenizer.encode("x.", add_special_tokens=False)[-1]

    def losses(self, step: int, _: Part = WHOLE, /) -> tuple[Losses, Counts]:
        settings = self._settings
        passages = draw_passages(settings, step)
        batch = self._batch(passages, draw_restatements(settings, step, passages))
        mask, packed = batch.mask, batch.packed
        with torch.autocast("cpu", torch.bfloat16):
            layers = self._read(batch)
            answer_logits = self._answer_logits(layers[-1], batch)
            rest = _predicts_text(mask, packed)
            rest_logits = self._model.lm_head(layers[-1][:, :-1][rest])
            attention = self._attention_logits(layers[_AIDED_LAYER], batch)
        tokens = torch.cat([batch.ids, packed.ids], dim=1)
        answer_losses = F.cross_entropy(answer_logits.float(), packed.target_ids, reduction="none")
        columns = self._value_columns(batch)
        lookup_losses = F.cross_entropy(
            attention.transpose(1, 2),
            columns[:, None].expand(attention.shape[:2]),
            reduction="none",
            ignore_index=_NOWHERE,
        ).mean(1)
        restates = batch.restates[packed.target_answers]
        held = columns != _NOWHERE
        losses = {
            "answer_loss": answer_losses[~restates].mean(),
            "text_loss": F.cross_entropy(rest_logits.float(), tokens[:, 1:][rest]),
            "owner_loss": self._owner_loss(layers[_AIDED_LAYER], columns, batch, passages),
            "lookup_loss": lookup_losses[held & ~restates].mean(),
        }
        # A mean over all tokens, in which those that are not answers weigh less.
        weight = settings.text_loss_weight * len(rest_logits) / (~restates).sum()
        loss = (losses["answer_loss"] + weight * losses["text_loss"]) / (1 + weight)
        loss = loss + settings.owner_loss_weight * losses["owner_loss"]
        loss = loss + settings.lookup_loss_weight * losses["lookup_loss"]
        if restates.any():
            losses["restatement_loss"] = answer_losses[restates].mean()
            copied = losses["restatement_loss"] + lookup_losses[held & restates].mean()
            loss = loss + settings.restatement_loss_weight * copied
        num_tokens = len(rest_logits) + len(answer_logits)
        return {"loss": loss, **losses}, {"examples": len(passages), "tokens": num_tokens}

    @torch.no_grad()
    def dev(self) -> dict[str, float]:
        """Teacher-forced exact match on full-length passages, with names seen and never seen."""
        measured = {}
        for kind, names in (("seen_names", NAMES), ("unseen_names", HELD_OUT_NAMES)):
            stream = full_length_passages(f"pretraining/{self._settings.seed}/dev", names)
            passages = list(itertools.islice(stream, _DEV_PASSAGES))
            batch = self._batch(passages, [math.inf] * len(passages))
            right = self._are_right(batch)
            measured[f"dev/{kind}/exact_match"] = right[~batch.restates].mean().item()
            measured[f"dev/{kind}/restated"] = right[batch.restates].mean().item()
        return measured

    def _are_right(self, batch: "_Batch") -> Tensor:
        """`[N]`, 1 where each token of an answer is the likeliest, 0 elsewhere."""
        packed = batch.packed
        logits = self._answer_logits(self._read(batch)[-1], batch)
        right = (logits.argmax(-1) == packed.target_ids).float()
        return torch.ones(len(batch.restates)).scatter_reduce(
            0, packed.target_answers, right, "amin"
        )

    def _read(self, batch: "_Batch") -> tuple[Tensor, ...]:
        """Hidden states `[B, P + Q, D]` of the embeddings and of every layer, the last normed."""
        return self._model.model(
            input_ids=torch.cat([batch.ids, batch.packed.ids], dim=1),
            attention_mask=packed_attention_mask(batch.mask, batch.packed),
            position_ids=packed_positions(batch.mask, batch.packed),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states

    def _answer_logits(self, hidden: Tensor, batch: "_Batch") -> Tensor:
        columns = batch.ids.shape[1] + batch.packed.target_columns
        return self._model.lm_head(hidden[batch.packed.target_rows, columns])

    def _owner_loss(
        self, hidden: Tensor, columns: Tensor, batch: "_Batch", passages: Sequence[Passage]
    ) -> Tensor:
        """Cross-entropy of the last token of the owner's name, at values' ends and at anchors."""
        packed = batch.packed
        names = [" " + fact.person for passage in passages for fact in passage.facts]
        encoded = self._tokenizer(names, add_special_tokens=False)["input_ids"]
        owners = torch.tensor([name[-1] for name in encoded])
        num_prefix = hidden.shape[1] - packed.ids.shape[1]
        first = packed.starts_answer.nonzero().squeeze(1)[~batch.restates]
        last = first + packed.target_answers.bincount()[~batch.restates] - 1
        # An answer's last target, the end of sequence, follows the last token of its value.
        values = hidden[packed.target_rows[last], columns[last - 1]]
        anchors = hidden[packed.target_rows[first], num_prefix + packed.target_columns[first]]
        states = torch.cat([values, anchors]).float()
        logits = self._owner(F.rms_norm(states, states.shape[-1:]))
        return F.cross_entropy(logits, torch.cat([owners, owners]))

    def _attention_logits(self, hidden: Tensor, batch: "_Batch") -> Tensor:
        """Attention logits `[T, H, P + Q]` of a layer's heads, where answer tokens are predicted.

        Args:
            hidden: what the layer reads, `[B, P + Q, D]`.
        """
        mask, packed = batch.mask, batch.packed
        layer = self._model.model.layers[_AIDED_LAYER]
        size = layer.self_attn.head_dim
        normed = layer.input_layernorm(hidden)
        # Heads lie one after another; where they are grouped, several queries read one key.
        query, key = (
            projection(normed).unflatten(-1, (-1, size)).transpose(1, 2)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        angles = self._model.model.rotary_emb(hidden, packed_positions(mask, packed))
        query, key = apply_rotary_pos_emb(query, key, *angles)
        rows, columns = packed.target_rows, mask.shape[1] + packed.target_columns
        logits = torch.einsum("thd,thkd->thk", query[rows, :, columns], key[rows]).float()
        visible = packed_attention_mask(mask, packed)[rows, 0, columns]
        return (logits * size**-0.5).masked_fill(~visible[:, None], -torch.inf)

    def _value_columns(self, batch: "_Batch") -> Tensor:
        """Where the passage holds each answer token, `[T]`; the end of sequence is nowhere."""
        ids, packed = batch.ids, batch.packed
        # A statement ends with its value and a full stop, which a restatement has as well.
        stops = (ids == self._full_stop).nonzero()[:, 1][batch.last_facts]
        behind = (stops + batch.restates.long())[packed.target_answers]
        num_tokens = packed.target_answers.bincount()[packed.target_answers]
        columns = behind - (num_tokens - 1) + answer_token_index(packed)
        # The first word of a restatement follows a space, and may have more tokens than it had.
        start = len(self._prompt.head_ids)
        return columns.clamp(min=start).masked_fill(columns == behind, _NOWHERE)

    def _batch(self, passages: Sequence[Passage], num_words: Sequence[float]) -> "_Batch":
        """Passages with all their questions, and each restated in so many words, if any."""
        prompt = self._prompt
        asked: list[list[tuple[str, str]]] = []
        restates: list[bool] = []
        last_facts: list[int] = []
        num_facts = 0
        for passage, words in zip(passages, num_words, strict=True):
            asked.append([(fact.question, fact.value) for fact in passage.facts])
            restates += [False] * len(passage.facts)
            last_facts += range(num_facts, num_facts + len(passage.facts))
            if words:
                stated = [fact.statement for fact in passage.restated(words)]
                asked[-1].append((restatement_request(words), " ".join(stated)))
                restates.append(True)
                last_facts.append(num_facts + len(stated) - 1)
            num_facts += len(passage.facts)
        questions, answers = zip(*itertools.chain.from_iterable(asked), strict=True)
        pairs = zip(
            prompt.question_ids(list(questions)), prompt.answer_ids(list(answers)), strict=True
        )
        packed = pack_questions(lay_out(pairs, asked), self._pad_id)
        sources = prompt.source_ids([passage.context for passage in passages])
        ids, mask = pad_rows([[*prompt.head_ids, *source] for source in sources], self._pad_id)
        return _Batch(ids, mask, packed, torch.tensor(restates), torch.tensor(last_facts))


@dataclass(frozen=True)
class _Batch:
    """B passages of P tokens and N answers about them.

    Attributes:
        ids, mask: `[B, P]` the passages.
        packed: the questions and answers.
        restates: `[N]` whether an answer restates its passage.
        last_facts: `[N]` the fact that an answer ends with, counted over all passages.
    """

    ids: Tensor
    mask: Tensor
    packed: PackedQuestions
    restates: Tensor
    last_facts: Tensor


def draw_passages(settings: Pretraining, step: int) -> list[Passage]:
    """The passages of a step, all of one shape; a pure function of seed and step."""
    rng = random.Random(f"pretraining/{settings.seed}/{step}")
    names = names_in_use(settings, step)
    num_people, num_facts, num_relations = draw_shape(rng)
    count = round(settings.passages_per_step * FULL_LENGTH_FACTS / num_facts)
    return [make_passage(rng, num_people, num_facts, num_relations, names) for _ in range(count)]


def draw_restatements(settings: Pretraining, step: int, passages: Sequence[Passage]) -> list[float]:
    """In how many words each passage of a step is restated: all that it has, fewer, or none.

    Most are asked for without a number: whoever takes one for smaller than it is stops early.
    """
    rng = random.Random(f"pretraining/{settings.seed}/{step}/restated")
    drawn: list[float] = []
    for passage in passages:
        fewer = rng.randint(1, len(passage.context.split()))
        words = math.inf if rng.random() < _RESTATED_WHOLE else fewer
        drawn.append(words if rng.random() < settings.restated_share else 0)
    return drawn


def names_in_use(settings: Pretraining, step: int) -> list[str]:
    """A few names at first; they double until all training names are in use."""
    growing = max(0, step - settings.names_grow_after_steps)
    doublings = min(growing / settings.names_double_every_steps, 64)
    return _names(settings.seed)[: max(MAX_PEOPLE, int(settings.first_names * 2**doublings))]


@cache
def _names(seed: int) -> list[str]:
    return random.Random(f"names/{seed}").sample(NAMES, len(NAMES))


def _predicts_text(mask: Tensor, packed: PackedQuestions) -> Tensor:
    """`[B, P + Q - 1]`, true where the next token belongs to passage or question."""
    segments = packed_segments(mask, packed)
    predicts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != -1)
    is_answer = torch.zeros_like(segments, dtype=torch.bool)
    is_answer[packed.target_rows, mask.shape[1] + packed.target_columns] = True
    return predicts & ~is_answer[:, :-1]
