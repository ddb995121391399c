"""The stage `train-wire`: one encoder and all adapters, through frozen receivers."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from latentwire.config import NOT_SCIENCE, Experiment
from latentwire.data.tables import read_examples, source_text
from latentwire.evaluation.scoring import f1
from latentwire.files import copy_file, discard_partial, file_digest
from latentwire.fingerprint import code_fingerprint
from latentwire.layout import Layout, Split
from latentwire.receivers.checkpointing import checkpoint_layers
from latentwire.receivers.loading import (
    DESCRIPTION,
    latent_reader,
    load_receiver,
    named_model_location,
    open_tokenizer,
    receiver_origin,
)
from latentwire.receivers.packing import PackedQuestions, pad_rows
from latentwire.receivers.receiver import Receiver, Source
from latentwire.receivers.states import check_layers
from latentwire.training.apart import losses_apart
from latentwire.training.batches import BatchOrder
from latentwire.training.features import FeatureCache
from latentwire.training.loop import METRICS, Schedule, fit
from latentwire.training.objective import (
    UNPARTED,
    Teacher,
    Totals,
    alignment_loss,
    alignment_targets,
    answer_loss,
    guard_loss,
    teacher_of,
)
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.passages import (
    QuestionIds,
    TokenisedPassage,
    choose,
    continuation,
    group_sources,
    middle_indices,
    repetition,
    tokenise_passages,
)
from latentwire.training.processes import is_leader, num_processes
from latentwire.training.state import Identity, StateDirectory
from latentwire.wire.card import wire_card
from latentwire.wire.description import WEIGHTS, ReceiverFacts
from latentwire.wire.pooling import num_groups
from latentwire.wire.reading import LatentBatch, receiver_facts
from latentwire.wire.wire import Wire

# Keeps the ratio on unseen passages at or above the target in spite of rounding.
_WIDTH_MARGIN = 1.005
_DEV_PASSAGES_AT_ONCE = 32
_DEV_PASSAGES_ANSWERED = 16
_SOURCES_TO_FIT = 128
REPEAT = "Repeat the text."

logger = logging.getLogger(__name__)


def train_wire(experiment: Experiment, layout: Layout, seed: int) -> None:
    """Trains the experiment's wire, or goes on where an interrupted run stopped.

    Raises:
        UserError: if data or receivers are missing, or a saved state belongs to another run.
    """
    name, directory = experiment.wire.name, layout.wire(experiment.wire.name, seed)
    identity = _identity(experiment, layout, seed)
    with StateDirectory(layout.state(f"{name}-seed{seed}"), identity) as state:
        if not state.is_done(directory):
            _train(experiment, layout, seed, state)
            state.finish(directory)


def _train(experiment: Experiment, layout: Layout, seed: int, state: StateDirectory) -> None:
    torch.manual_seed(seed)
    sharded = experiment.training.shard_receivers and num_processes() > 1
    receivers = [load_receiver(experiment, layout, r.name, sharded) for r in experiment.readers]
    wire = make_wire(experiment, layout, receivers, seed)
    task = WireTask(experiment, layout, wire, receivers, seed)
    settings = experiment.training
    schedule = Schedule(
        num_steps=task.num_steps,
        **settings.model_dump(include=set(Schedule.__dataclass_fields__)),
    )
    name = experiment.wire.name
    logger.info(
        "training wire %s, seed %d: %d steps, widths %s",
        name,
        seed,
        task.num_steps,
        wire.widths,
    )
    metrics = fit(task, schedule, state)
    if not is_leader():
        return
    directory = layout.wire(name, seed)
    discard_partial(directory)
    copy_file(metrics, directory / METRICS)
    wire.card = wire_card(experiment, wire, seed, task.num_steps)
    if experiment.wire.encoder_of is None:
        # Text may have been written at a ratio that no answer was given at.
        wire.widths = {ratio: wire.widths[ratio] for ratio in experiment.wire.target_ratios}
    wire.encoder.merge_lora()
    wire.save_pretrained(directory)


def make_wire(
    experiment: Experiment, layout: Layout, receivers: Sequence[Receiver], seed: int
) -> Wire:
    """A wire to train, started from the backbone or another wire, or with that one's encoder.

    Raises:
        UserError: if the backbone or the other wire cannot be loaded.
    """
    facts = {receiver.name: _facts(experiment, layout, receiver) for receiver in receivers}
    senders = [
        latent_reader(experiment, load_receiver(experiment, layout, name))
        for name in experiment.wire.sender_names
    ]
    if experiment.wire.encoder_of is not None:
        wire = Wire.from_pretrained(layout.wire(experiment.wire.encoder_of, seed))
        wire.add_receivers(facts)
        wire.open_senders(senders)
        return wire.to(experiment.device)
    location = named_model_location(experiment, layout, experiment.wire.encoder.backbone)
    tokenizer = open_tokenizer(**location)
    encoder = experiment.wire.encoder
    if encoder.from_scratch:
        backbone = AutoModel.from_config(
            AutoConfig.from_pretrained(location["location"], revision=location["revision"]),
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
    else:
        backbone = AutoModel.from_pretrained(
            location["location"],
            revision=location["revision"],
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    widths = dict.fromkeys(experiment.wire.target_ratios, 1.0)
    wire = Wire(
        experiment.wire,
        backbone,
        tokenizer,
        widths,
        facts,
        experiment.prompt,
        experiment.length.max_source_tokens,
        {sender.name: _facts(experiment, layout, sender) for sender in senders},
    )
    wire.open_senders(senders)
    if experiment.wire.senders is not None:
        check_layers("wire.senders.layers", experiment.wire.senders.layers, senders)
        _fit_senders(experiment, layout, wire, tokenizer)
    if experiment.wire.start_from is not None:
        wire.take_weights(Wire.from_pretrained(layout.wire(experiment.wire.start_from, seed)))
    if encoder.lora_rank is not None:
        wire.encoder.add_lora(encoder.lora_rank)
    return wire.to(experiment.device)


def _fit_senders(
    experiment: Experiment, layout: Layout, wire: Wire, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Starts what reads the senders' states from the first training sources."""
    mode = experiment.wire.source_mode
    groups = group_sources(read_examples(layout.split("train")), mode)[:_SOURCES_TO_FIT]
    sources = [source_text(group[0], mode) for group in groups]
    ids = tokenizer(sources, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for name in experiment.wire.sender_names:
        places = middle_indices(sources, tokenizer, wire.source_tokenizer(name))
        in_place = [own[index] for own, places in zip(ids, places, strict=True) for index in places]
        wire.fit_sender(wire.source_ids(sources, name), name, in_place)


def _facts(experiment: Experiment, layout: Layout, receiver: Receiver) -> ReceiverFacts:
    """What a wire must know of a receiver or sender."""
    return receiver_facts(
        receiver.model,
        receiver.embedding_rms,
        receiver.prompt.anchor_ids,
        **receiver_origin(experiment, layout, receiver.name),
    )


class WireTask:
    """Answers of frozen receivers that read latents, against gold answers and the full text.

    At first soft tokens learn the receivers' embeddings, one for each token of the source, so that
    receivers read from the start. From then on each step draws a target ratio for every passage of
    the batch, towards which the ratio grows, and all receivers, or one, read the same messages.
    Of several senders each step draws one.
    """

    def __init__(
        self,
        experiment: Experiment,
        layout: Layout,
        wire: Wire,
        receivers: Sequence[Receiver],
        seed: int,
    ) -> None:
        self.module = wire
        self._experiment, self._settings = experiment, experiment.training
        self._layout, self._receivers, self._seed = layout, receivers, seed
        self._latent_readers = {r.name: latent_reader(experiment, r) for r in receivers}
        self._senders: list[str | None] = [*experiment.wire.sender_names] or [None]
        if self._settings.checkpoint_activations:
            checkpoint_layers(wire.encoder.backbone)
            for receiver in receivers:
                receiver.checkpoint_activations()
        self._passages = self._tokenise("train")
        if experiment.wire.encoder_of is None:
            ratios = {*experiment.wire.target_ratios, self._text_ratio}
            splits = (*self._passages.values(), *self._dev_passages.values())
            wire.widths = pooling_widths(splits, sorted(ratios))
            for sender, passages in self._passages.items():
                wire.count_tokens([passage.encoder_ids for passage in passages], sender)
        self._features = self._open_features()
        lengths = [passage.num_tokens for passage in self._passages[self._senders[0]]]
        self.order = BatchOrder(lengths, self._settings.passages_per_step, seed)
        self.num_steps = self._settings.steps or self.order.num_steps(self._settings.epochs or 0)
        self._least_sharpness = {r.name: self._soften(r) for r in receivers}

    def losses(self, step: int, part: Part = WHOLE, /) -> tuple[Losses, Counts]:
        epoch, indices = self.order.batch(step)
        sender = random.Random(f"{self._seed}/{step}/sender").choice(self._senders)
        passages = [self._passages[sender][index] for index in indices]
        tokens = [passage.num_tokens for passage in passages]
        counts = {"examples": len(passages), "tokens": sum(tokens)}
        own = part.own(tokens)
        if own:
            return self._losses(step, epoch, passages, own), counts
        if not self._settings.shard_receivers:
            return {}, counts
        # The others cannot read without this process.
        losses = self._losses(step, epoch, passages, [0])
        return {name: 0 * loss for name, loss in losses.items()}, counts

    def _losses(
        self, step: int, epoch: int, passages: Sequence[TokenisedPassage], own: Sequence[int]
    ) -> Losses:
        settings = self._settings
        if step < settings.alignment_steps:
            return self._alignment(passages, own)
        if step < settings.alignment_steps + settings.text_steps:
            return self._writing(step, passages, own)
        return self._answers(step, epoch, passages, own)

    def growth(self, step: int) -> float:
        """How far the ratio has grown, from 0, a ratio of 1, to 1, the highest target."""
        steps = self._settings.ratio_growth * self.num_steps
        return min(1.0, (step - self._settings.alignment_steps) / steps) if steps else 1.0

    def softness(self, step: int) -> float:
        """How soft receivers attend: 1 while the ratio grows, then falling to 0 at four fifths."""
        grown = self._settings.alignment_steps + self._settings.ratio_growth * self.num_steps
        progress = (step - grown) / max(1.0, 0.8 * self.num_steps - grown)
        return 1 - min(1.0, max(0.0, progress))

    @torch.no_grad()
    def dev(self) -> dict[str, float]:
        """Cross-entropy and relative F1 on dev for every sender, receiver and target ratio.

        F1 is of greedy answers about the first passages, relative to the same receiver's with the
        text.
        """
        measured = {}
        for sender, receiver in product(self._senders, self._receivers):
            text_f1 = self._dev_text_f1[receiver.name]
            pair = receiver.name if sender is None else f"{sender} to {receiver.name}"
            passages = self._dev_passages[sender]
            for ratio in self._experiment.wire.target_ratios:
                name = f"dev/{pair}/{ratio:g}x"
                measured[f"{name}/cross_entropy"] = self._dev_loss(receiver, passages, ratio)
                if text_f1:
                    f1 = self._dev_f1(receiver, passages, ratio)
                    measured[f"{name}/relative_f1"] = f1 / text_f1
        return measured

    def _dev_loss(
        self, receiver: Receiver, all_passages: Sequence[TokenisedPassage], ratio: float
    ) -> float:
        total = num_tokens = 0.0
        for start in range(0, len(all_passages), _DEV_PASSAGES_AT_ONCE):
            passages = all_passages[start : start + _DEV_PASSAGES_AT_ONCE]
            latents = self._encode(passages, [ratio] * len(passages))
            losses = self._read_latents(receiver, latents, passages, "dev", kl=False)
            count = sum(len(a) for p in passages for _, a in p.questions[receiver.name])
            total += losses["cross_entropy"].item() * count
            num_tokens += count
        return total / num_tokens

    def _dev_f1(
        self, receiver: Receiver, passages: Sequence[TokenisedPassage], ratio: float
    ) -> float:
        passages = passages[:_DEV_PASSAGES_ANSWERED]
        latents = self._encode(passages, [ratio] * len(passages))
        with self._autocast():
            source = self.module.soft_tokens(receiver.name, latents)
        reader = self._latent_readers[receiver.name]
        return self._answers_f1(reader, source, [p.questions[receiver.name] for p in passages])

    @cached_property
    @torch.no_grad()
    def _dev_text_f1(self) -> dict[str, float]:
        """F1 of each receiver that reads the text, on the questions of `_dev_f1`."""
        passages = self._dev_passages[self._senders[0]][:_DEV_PASSAGES_ANSWERED]
        return {
            receiver.name: self._answers_f1(
                receiver,
                receiver.text_source([p.text_ids[receiver.name] for p in passages]),
                [p.text_questions[receiver.name] for p in passages],
            )
            for receiver in self._receivers
        }

    def _answers_f1(
        self, receiver: Receiver, source: Source, questions: Sequence[QuestionIds]
    ) -> float:
        rows = [[ids for ids, _ in own] for own in questions]
        given = receiver.decode(
            receiver.generate(source, rows, self._experiment.evaluation.max_new_tokens)
        )
        golds = receiver.decode([answer[:-1] for own in questions for _, answer in own])
        return fmean(f1(text, [gold]) for text, gold in zip(given, golds, strict=True))

    def _strangers(self, passages: Sequence[TokenisedPassage], own: Sequence[int]) -> list[int]:
        """For the guard, one of another passage for each that is read."""
        if not self._settings.guard_weight:
            return []
        others = other_passages([passage.passage_id for passage in passages])
        return [others[index] for index in own] if others else []

    def _alignment(self, all_passages: Sequence[TokenisedPassage], own: Sequence[int]) -> Losses:
        passages = [all_passages[index] for index in own]
        ratios = self._experiment.wire.target_ratios[:1] * len(passages)
        latents = self._encode(passages, ratios, 0.0, self._features_of(passages))
        longest = max(len(passage.encoder_ids) for passage in all_passages)
        encoder_index = self._encoder_index(all_passages)
        losses = {}
        for name, reader in self._latent_readers.items():
            text = reader.text_source([p.source_ids[name] for p in all_passages])
            index, _ = pad_rows(encoder_index[name], longest)
            index = index.to(self._experiment.device)
            targets, found = alignment_targets(text.embeddings.float(), index, longest)
            with self._autocast():
                soft_tokens = self.module.soft_tokens(name, latents).embeddings
            losses[f"{name}/alignment_loss"] = alignment_loss(soft_tokens, targets, found, own)
        return {"loss": torch.stack([*losses.values()]).sum(), **losses}

    def _answers(
        self, step: int, epoch: int, passages: Sequence[TokenisedPassage], own: Sequence[int]
    ) -> Losses:
        """Losses of a step's answers."""
        draw = random.Random(f"{self._seed}/{step}")
        ratios = [draw.choice(self._experiment.wire.target_ratios) for _ in passages]
        return self._reading(step, passages, own, ratios, question_key=f"{self._seed}/{epoch}")

    def _writing(
        self, step: int, passages: Sequence[TokenisedPassage], own: Sequence[int]
    ) -> Losses:
        """Losses of a step in which receivers write text: the pretraining of ARC-Encoder."""
        draw = random.Random(f"{self._seed}/text/{step}")
        tasks = [self._text_task(passage, draw) for passage in passages]
        return self._reading(step, tasks, own, [self._text_ratio] * len(tasks), "", kl=False)

    def _encoder_index(self, passages: Sequence[TokenisedPassage]) -> dict[str, list[list[int]]]:
        """For each receiver, the encoder's token that holds the middle of each of its own."""
        sources = [passage.source for passage in passages]
        tokenizer = self.module.source_tokenizer(passages[0].sender)
        return {
            name: middle_indices(sources, tokenizer, reader.tokenizer)
            for name, reader in self._latent_readers.items()
        }

    def _text_task(self, passage: TokenisedPassage, draw: random.Random) -> TokenisedPassage:
        if draw.random() >= self._settings.repeat_share:
            index = {name: own for name, (own,) in self._encoder_index([passage]).items()}
            task = continuation(passage, draw.uniform(0.25, 0.75), index)
            # Of a passage of a word or two nothing is left to write.
            if all(rest for ((_, rest),) in task.questions.values()):
                return task
        return repetition(passage, *self._requests)

    @cached_property
    def _requests(self) -> tuple[dict[str, list[int]], dict[str, int]]:
        """Each receiver's request to repeat a text, and the token that ends what it writes."""
        readers = self._latent_readers.items()
        return (
            {name: reader.prompt.question_ids([REPEAT])[0] for name, reader in readers},
            {name: reader.tokenizer.eos_token_id for name, reader in readers},
        )

    @property
    def _text_ratio(self) -> float:
        return self._settings.text_ratio or max(self._experiment.wire.target_ratios)

    def _reading(
        self,
        step: int,
        passages: Sequence[TokenisedPassage],
        own: Sequence[int],
        ratios: Sequence[float],
        question_key: str,
        kl: bool = True,
    ) -> Losses:
        """Losses of receivers that read the latents of a step, averaged over several.

        Args:
            step: its number.
            passages: all of the step.
            own: which of them are read here.
            ratios: of all of them.
            question_key: decides which questions are drawn.
            kl: whether receivers of the text teach.
        """
        drawn = random.Random(f"{self._seed}/{step}/receiver").choice(self._receivers)
        readers = self._receivers if self._settings.receivers_per_step == "all" else [drawn]
        strangers = self._strangers(passages, own)
        # Messages that the guard alone needs come last.
        read = [*own, *sorted({*strangers} - {*own})]
        encoded = [passages[index] for index in read]
        latents = self._encode(
            encoded,
            [ratios[index] for index in read],
            self.growth(step),
            self._features_of(encoded),
        )

        def losses_of(receiver: Receiver, values: Tensor) -> Losses:
            return self._read_latents(
                receiver,
                replace(latents, values=values),
                [passages[index] for index in own],
                question_key=question_key,
                kl=kl,
                sharpness=self._least_sharpness[receiver.name] ** self.softness(step),
                strangers=[read.index(index) for index in strangers],
                totals=self._totals(receiver, passages, question_key),
            )

        each = [
            losses_apart(
                partial(losses_of, receiver),
                latents.values,
                [*self.module.adapter(receiver.name).parameters()],
            )
            for receiver in readers
        ]
        return {key: torch.stack([losses[key] for losses in each]).mean() for key in each[0]}

    def _totals(
        self, receiver: Receiver, passages: Sequence[TokenisedPassage], question_key: str
    ) -> Totals:
        most = self._settings.max_questions_per_passage
        questions = (choose(p.questions[receiver.name], most, question_key) for p in passages)
        answers = [answer for own in questions for _, answer in own]
        return Totals.of(answers, self._settings.k_token_depth)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._experiment.device,
            torch.bfloat16,
            enabled=self._settings.precision == "bfloat16",
        )

    def _encode(
        self,
        passages: Sequence[TokenisedPassage],
        ratios: Sequence[float],
        growth: float = 1.0,
        features: Tensor | None = None,
    ) -> LatentBatch:
        with self._autocast():
            sender = passages[0].sender
            sources = self.module.read([p.encoder_ids for p in passages], sender, features)
            return self.module.latents(sources, ratios, growth)

    def _open_features(self) -> dict[str, FeatureCache]:
        """Where the senders' states of training passages are kept."""
        senders, wire = self._experiment.wire.senders, self.module
        if senders is None:
            return {}
        return {
            name: FeatureCache(
                self._layout.features,
                round(senders.cache_gigabytes * 1e9),
                [passage.encoder_ids for passage in self._passages[name]],
                partial(wire.features, sender=name),
                wire.feature_key(name),
            )
            for name in senders.names
        }

    def _features_of(self, passages: Sequence[TokenisedPassage]) -> Tensor | None:
        """Features of training passages, if the wire reads a sender's states."""
        sender = passages[0].sender
        if sender is None:
            return None
        features = self._features[sender].read([passage.index for passage in passages])
        # A passage that is to be continued is a part of what was read.
        parts = [
            own[: len(passage.encoder_ids)] for own, passage in zip(features, passages, strict=True)
        ]
        return pad_sequence(parts, batch_first=True).to(self._experiment.device)

    def _read_latents(
        self,
        receiver: Receiver,
        latents: LatentBatch,
        passages: Sequence[TokenisedPassage],
        question_key: str,
        sharpness: float = 1.0,
        kl: bool = True,
        strangers: Sequence[int] = (),
        totals: Totals = UNPARTED,
    ) -> Losses:
        settings, name = self._settings, receiver.name
        reader, most = self._latent_readers[name], settings.max_questions_per_passage
        packed = reader.pack([choose(p.questions[name], most, question_key) for p in passages])
        with self._autocast():
            soft_tokens = own = self.module.soft_tokens(name, latents)
            if len(own.mask) > len(passages):
                own = soft_tokens.select([*range(len(passages))])
            with reader.softened(sharpness):
                logits = reader.answer_logits(own, packed)
            teacher: Teacher | None = None
            if kl and settings.kl_weight:
                teacher = teacher_of(self._read_text(receiver, passages, question_key)[0], settings)
            losses = answer_loss(logits, teacher, packed, settings, totals)
            if settings.guard_weight:
                losses["guard"] = self._guard(reader, soft_tokens, packed, strangers, totals)
                losses["loss"] = losses["loss"] + settings.guard_weight * losses["guard"]
        return losses

    def _guard(
        self,
        reader: Receiver,
        soft_tokens: Source,
        packed: PackedQuestions,
        strangers: Sequence[int],
        totals: Totals,
    ) -> Tensor:
        """The guard of a batch; zero where all of its sources are of one passage."""
        if not strangers:
            return soft_tokens.embeddings.new_zeros(())
        others = soft_tokens.select(strangers)
        with torch.no_grad():
            nothing = reader.text_source([[] for _ in strangers])
            no_message = reader.answer_logits(nothing, packed)
        logits = reader.answer_logits(others, packed)
        return guard_loss(logits, no_message, packed, self._settings.guard_margin, totals)

    @torch.no_grad()
    def _read_text(
        self, receiver: Receiver, passages: Sequence[TokenisedPassage], question_key: str
    ) -> tuple[Tensor, PackedQuestions]:
        name, most = receiver.name, self._settings.max_questions_per_passage
        packed = receiver.pack(
            [choose(p.text_questions[name], most, question_key) for p in passages]
        )
        source = receiver.text_source([p.text_ids[name] for p in passages])
        return receiver.answer_logits(source, packed), packed

    def _soften(self, receiver: Receiver) -> float:
        """The sharpness of attention at which a receiver of the full text is only so much worse."""
        if not self._settings.softening:
            return 1.0
        passages = self._dev_passages[self._senders[0]][:_DEV_PASSAGES_AT_ONCE]

        def loss(sharpness: float) -> float:
            with receiver.softened(sharpness):
                logits, packed = self._read_text(receiver, passages, "dev")
            return F.cross_entropy(logits, packed.target_ids).item()

        sharpness = least_sharpness(loss, self._settings.softening)
        logger.info("softening the attention of %s to %.3f at first", receiver.name, sharpness)
        return sharpness

    def _tokenise(self, split: Split) -> dict[str | None, list[TokenisedPassage]]:
        """The passages of a split, as each sender reads them; of none where there is no sender."""
        examples = read_examples(self._layout.split(split))
        return {
            sender: tokenise_passages(
                examples,
                self.module,
                self._receivers,
                list(self._latent_readers.values()),
                self._experiment.prompt.no_answer_text,
                sender,
            )
            for sender in self._senders
        }

    @cached_property
    def _dev_passages(self) -> dict[str | None, list[TokenisedPassage]]:
        return self._tokenise("dev")


def other_passages(passage_ids: Sequence[str]) -> list[int] | None:
    """For each item the next one of another passage; none if all are of one."""
    count = len(passage_ids)
    if len(set(passage_ids)) == 1:
        return None
    return [
        next(
            other % count
            for other in range(index + 1, index + count)
            if passage_ids[other % count] != passage_ids[index]
        )
        for index in range(count)
    ]


def pooling_widths(
    splits: Sequence[Sequence[TokenisedPassage]], target_ratios: Sequence[float]
) -> dict[float, float]:
    """Encoder tokens per latent at which every receiver reaches a ratio, in every split.

    Found by trial, as a passage has a whole number of latents.
    """
    return {ratio: _width(splits, ratio * _WIDTH_MARGIN) for ratio in target_ratios}


def _width(splits: Sequence[Sequence[TokenisedPassage]], ratio: float) -> float:
    counts = []
    for passages in splits:
        encoder_tokens = torch.tensor([len(passage.encoder_ids) for passage in passages])
        fewest = min(
            sum(len(passage.source_ids[name]) for passage in passages)
            for name in passages[0].source_ids
        )
        counts.append((encoder_tokens, fewest))
    width = 1.0
    while any(
        fewest < ratio * num_groups(tokens, torch.full(tokens.shape, width)).sum()
        # No text is shorter than one latent.
        and (tokens > width / 2).any()
        for tokens, fewest in counts
    ):
        width *= 1.002
    return width


def least_sharpness(loss: Callable[[float], float], allowed: float) -> float:
    """The smallest factor, to 2 %, at which a loss that falls with it exceeds `loss(1)` by no more.

    Factors below 1/64 are not tried.
    """
    most = loss(1.0) + allowed
    low, high = -6.0, 0.0
    while high - low > 0.03:
        middle = (low + high) / 2
        low, high = (low, middle) if loss(2**middle) <= most else (middle, high)
    return 2**high


def _identity(experiment: Experiment, layout: Layout, seed: int) -> Identity:
    """What must not change between the parts of one run."""
    sections = {"data", "length", "prompt", "receivers", "wire", "training", "threads", "device"}
    settings = experiment.model_dump(mode="json", include=sections, exclude=NOT_SCIENCE)
    names = {receiver.name for receiver in experiment.receivers}
    read = {receiver.name for receiver in experiment.readers}
    read |= {experiment.wire.encoder.backbone} & names
    inputs = [layout.split("train"), layout.split("dev")]
    inputs += [layout.receiver(name) / DESCRIPTION for name in sorted(read)]
    if experiment.wire.parent is not None:
        inputs.append(layout.wire(experiment.wire.parent, seed) / WEIGHTS)
    return Identity(
        {
            "seed": seed,
            "settings": settings,
            "inputs": {str(path.relative_to(layout.root)): file_digest(path) for path in inputs},
        },
        code_fingerprint("latentwire.training.wire"),
        experiment.training.resume_across_code,
    )
