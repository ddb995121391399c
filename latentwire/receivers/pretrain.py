"""Making the pocket receivers from nothing: tokenizers, a small Llama and a small Qwen2.

They stand in for the pretrained models of a real experiment, and differ in width, depth,
vocabulary, tokenizer and special tokens.
"""

import itertools
import logging
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
from latentwire.receivers.prompt import Prompt
from latentwire.training.loop import METRICS, Schedule, fit
from latentwire.training.objective import answer_token_index
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.state import Identity, StateDirectory

_TOKENIZER_PASSAGES = 4000
_DEV_PASSAGES = 32
_AIDED_LAYER = 2
_NOWHERE = -100

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
    """Answers to all questions of a passage, and its text, as next-token prediction.

    Three aids together make a small model look a value up by the name of its owner; without them
    it guesses among the people whom a question fits, for thousands of steps. The names in use are
    few at first. A linear probe after the second layer must name the owner, at every value and
    wherever an answer token is predicted. From there heads of the third layer are told where to
    look: at that token in the passage (supervised attention, arXiv 1609.04186).
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
        ids, mask, packed = self._batch(passages)
        columns = self._value_columns(ids, packed)
        with torch.autocast("cpu", torch.bfloat16):
            layers = self._read(ids, mask, packed)
            answer_logits = self._answer_logits(layers[-1], ids, packed)
            rest = _predicts_text(mask, packed)
            rest_logits = self._model.lm_head(layers[-1][:, :-1][rest])
            attention = self._attention_logits(layers[_AIDED_LAYER], mask, packed)
        tokens = torch.cat([ids, packed.ids], dim=1)
        losses = {
            "answer_loss": F.cross_entropy(answer_logits.float(), packed.target_ids),
            "text_loss": F.cross_entropy(rest_logits.float(), tokens[:, 1:][rest]),
            "owner_loss": self._owner_loss(layers[_AIDED_LAYER], columns, packed, passages),
            "lookup_loss": F.cross_entropy(
                attention.flatten(0, 1),
                columns.repeat_interleave(attention.shape[1]),
                ignore_index=_NOWHERE,
            ),
        }
        # A mean over all tokens, in which those that are not answers weigh less.
        weight = settings.text_loss_weight * len(rest_logits) / len(answer_logits)
        loss = (losses["answer_loss"] + weight * losses["text_loss"]) / (1 + weight)
        loss = loss + settings.owner_loss_weight * losses["owner_loss"]
        loss = loss + settings.lookup_loss_weight * losses["lookup_loss"]
        num_tokens = len(rest_logits) + len(answer_logits)
        return {"loss": loss, **losses}, {"examples": len(passages), "tokens": num_tokens}

    @torch.no_grad()
    def dev(self) -> dict[str, float]:
        """Teacher-forced exact match on full-length passages, with names seen and never seen."""
        return {
            f"dev/{kind}/exact_match": self._exact_match(names)
            for kind, names in (("seen_names", NAMES), ("unseen_names", HELD_OUT_NAMES))
        }

    def _exact_match(self, names: Sequence[str]) -> float:
        stream = full_length_passages(f"pretraining/{self._settings.seed}/dev", names)
        ids, mask, packed = self._batch(list(itertools.islice(stream, _DEV_PASSAGES)))
        logits = self._answer_logits(self._read(ids, mask, packed)[-1], ids, packed)
        right = (logits.argmax(-1) == packed.target_ids).float()
        answers = torch.ones(int(packed.target_answers.max()) + 1)
        return answers.scatter_reduce(0, packed.target_answers, right, "amin").mean().item()

    def _read(self, ids: Tensor, mask: Tensor, packed: PackedQuestions) -> tuple[Tensor, ...]:
        """Hidden states `[B, P + Q, D]` of the embeddings and of every layer, the last normed."""
        return self._model.model(
            input_ids=torch.cat([ids, packed.ids], dim=1),
            attention_mask=packed_attention_mask(mask, packed),
            position_ids=packed_positions(mask, packed),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states

    def _answer_logits(self, hidden: Tensor, ids: Tensor, packed: PackedQuestions) -> Tensor:
        columns = ids.shape[1] + packed.target_columns
        return self._model.lm_head(hidden[packed.target_rows, columns])

    def _owner_loss(
        self, hidden: Tensor, columns: Tensor, packed: PackedQuestions, passages: Sequence[Passage]
    ) -> Tensor:
        """Cross-entropy of the last token of the owner's name, at values' ends and at anchors."""
        names = [" " + fact.person for passage in passages for fact in passage.facts]
        encoded = self._tokenizer(names, add_special_tokens=False)["input_ids"]
        owners = torch.tensor([name[-1] for name in encoded])
        num_prefix = hidden.shape[1] - packed.ids.shape[1]
        first = packed.starts_answer
        # An answer's last target, the end of sequence, follows the last token of its value.
        ends = (columns == _NOWHERE).nonzero().squeeze(1)
        values = hidden[packed.target_rows[ends], columns[ends - 1]]
        anchors = hidden[packed.target_rows[first], num_prefix + packed.target_columns[first]]
        states = torch.cat([values, anchors]).float()
        logits = self._owner(F.rms_norm(states, states.shape[-1:]))
        return F.cross_entropy(logits, torch.cat([owners, owners]))

    def _attention_logits(self, hidden: Tensor, mask: Tensor, packed: PackedQuestions) -> Tensor:
        """Attention logits `[T, H, P + Q]` of H heads, where answer tokens are predicted.

        Args:
            hidden: what the heads' layer reads, `[B, P + Q, D]`.
        """
        layer = self._model.model.layers[_AIDED_LAYER]
        size = layer.self_attn.head_dim
        normed = layer.input_layernorm(hidden)
        # Heads lie one after another; where they are grouped, several queries read one key.
        query, key = (
            projection(normed).unflatten(-1, (-1, size)).transpose(1, 2)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        heads = torch.arange(min(self._settings.lookup_heads, query.shape[1]))
        query, key = query[:, heads], key[:, heads * key.shape[1] // query.shape[1]]
        angles = self._model.model.rotary_emb(hidden, packed_positions(mask, packed))
        query, key = apply_rotary_pos_emb(query, key, *angles)
        rows, columns = packed.target_rows, mask.shape[1] + packed.target_columns
        logits = torch.einsum("thd,thkd->thk", query[rows, :, columns], key[rows]).float()
        visible = packed_attention_mask(mask, packed)[rows, :, columns]
        return (logits * size**-0.5).masked_fill(~visible, -torch.inf)

    def _value_columns(self, ids: Tensor, packed: PackedQuestions) -> Tensor:
        """Where the passage holds each answer token, `[T]`; the end of sequence is nowhere."""
        # A statement ends with its value and a full stop, and questions come in its order.
        stops = (ids == self._full_stop).nonzero()[:, 1][packed.target_answers]
        num_tokens = packed.target_answers.bincount()[packed.target_answers]
        columns = stops - (num_tokens - 1) + answer_token_index(packed)
        return columns.masked_fill(columns == stops, _NOWHERE)

    def _batch(self, passages: Sequence[Passage]) -> tuple[Tensor, Tensor, PackedQuestions]:
        prompt = self._prompt
        facts = [fact for passage in passages for fact in passage.facts]
        questions = prompt.question_ids([fact.question for fact in facts])
        answers = prompt.answer_ids([fact.value for fact in facts])
        pairs = zip(questions, answers, strict=True)
        rows = lay_out(pairs, [passage.facts for passage in passages])
        sources = prompt.source_ids([passage.context for passage in passages])
        ids, mask = pad_rows([[*prompt.head_ids, *source] for source in sources], self._pad_id)
        return ids, mask, pack_questions(rows, self._pad_id)


def draw_passages(settings: Pretraining, step: int) -> list[Passage]:
    """The passages of a step, all of one shape; a pure function of seed and step."""
    rng = random.Random(f"pretraining/{settings.seed}/{step}")
    names = names_in_use(settings, step)
    num_people, num_facts, num_relations = draw_shape(rng)
    count = round(settings.passages_per_step * FULL_LENGTH_FACTS / num_facts)
    return [make_passage(rng, num_people, num_facts, num_relations, names) for _ in range(count)]


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
