"""The stage `train-compressor`: a small token classifier for LLMLingua-2, in the way of its paper.

The published one learned which words GPT-4 keeps of meeting transcripts (arXiv 2403.12968, section
3). Here a word of a passage is worth keeping if a question about the passage or its answer holds
it, and it is no function word.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from latentwire.config import Experiment
from latentwire.data.tables import Example, group_by_passage, read_examples
from latentwire.files import copy_file, discard_partial, file_digest, save_pretrained
from latentwire.fingerprint import code_fingerprint
from latentwire.layout import Layout, Split
from latentwire.receivers.packing import pad_rows
from latentwire.training.batches import BatchOrder
from latentwire.training.loop import METRICS, Schedule, fit
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.state import Identity, StateDirectory

_VOCABULARY = 2048
_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_CONTINUES = "##"
# The longest chunk that the package hands to a classifier.
_POSITIONS = 512
_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
_SEED = 1
_WORD = re.compile(r"\w+")
_UNLABELLED = -100

logger = logging.getLogger(__name__)


def train_compressor(experiment: Experiment, layout: Layout) -> None:
    """Trains tokenizer and classifier on the training questions, or goes on where it stopped.

    Raises:
        UserError: if the data are missing, or a saved state belongs to another run.
    """
    with StateDirectory(layout.state("compressor"), _identity(experiment, layout)) as state:
        if not state.is_done(layout.compressor):
            _train(experiment, layout, state)
            state.finish(layout.compressor)


def _train(experiment: Experiment, layout: Layout, state: StateDirectory) -> None:
    torch.manual_seed(_SEED)
    task = KeepWordsTask(experiment, layout)
    settings = experiment.baselines
    schedule = Schedule(
        num_steps=settings.steps,
        warmup_steps=settings.steps // 10,
        matrix_learning_rate=3e-3,
        other_learning_rate=1e-3,
        dev_every_steps=settings.steps,
        checkpoint_interval_seconds=experiment.training.checkpoint_interval_seconds,
    )
    metrics = fit(task, schedule, state)
    discard_partial(layout.compressor)
    copy_file(metrics, layout.compressor / METRICS)
    save_pretrained(layout.compressor, task.module, task.tokenizer)


def _identity(experiment: Experiment, layout: Layout) -> Identity:
    sections = {"data", "baselines", "threads", "device"}
    inputs = [layout.split("train"), layout.split("dev")]
    return Identity(
        {
            "settings": experiment.model_dump(mode="json", include=sections),
            "inputs": {path.name: file_digest(path) for path in inputs},
        },
        code_fingerprint("latentwire.baselines.classifier"),
        experiment.training.resume_across_code,
    )


@dataclass(frozen=True)
class LabelledPassage:
    """A passage's token ids, and for each whether to keep it: 1, 0, or -100 between words."""

    ids: list[int]
    labels: list[int]


class KeepWordsTask:
    """Cross-entropy of keeping each token that belongs to a word."""

    def __init__(self, experiment: Experiment, layout: Layout) -> None:
        self._device = torch.device(experiment.device)
        groups = {split: _read(layout, split) for split in ("train", "dev")}
        self.tokenizer = make_tokenizer([group[0].context for group in groups["train"]])
        config = BertConfig(
            **_SIZES,
            vocab_size=len(self.tokenizer),
            max_position_embeddings=_POSITIONS,
            pad_token_id=self.tokenizer.pad_token_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.module = BertForTokenClassification(config)
        nn.Module.to(self.module, device=self._device)
        self._passages, self._dev = (
            [label_passage(self.tokenizer, group) for group in own] for own in groups.values()
        )
        lengths = [len(passage.ids) for passage in self._passages]
        self._order = BatchOrder(lengths, experiment.baselines.passages_per_step, _SEED)

    def losses(self, step: int, _: Part = WHOLE, /) -> tuple[Losses, Counts]:
        indices = self._order.batch(step)[1]
        passages = [self._passages[index] for index in indices]
        logits, labels = self._read(passages)
        loss = F.cross_entropy(logits, labels, ignore_index=_UNLABELLED)
        tokens = sum(len(passage.ids) for passage in passages)
        return {"loss": loss}, {"examples": len(passages), "tokens": tokens}

    @torch.no_grad()
    def dev(self) -> dict[str, float]:
        """Share of tokens labelled rightly, and that of the more frequent label."""
        logits, labels = self._read(self._dev)
        logits, labels = logits[labels != _UNLABELLED], labels[labels != _UNLABELLED]
        kept = labels.float().mean().item()
        accuracy = (logits.argmax(-1) == labels).float().mean().item()
        return {"dev/accuracy": accuracy, "dev/majority": max(kept, 1 - kept)}

    def _read(self, passages: Sequence[LabelledPassage]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_rows([p.ids for p in passages], self.tokenizer.pad_token_id)
        labels, _ = pad_rows([p.labels for p in passages], _UNLABELLED)
        logits = self.module(ids.to(self._device), mask.to(self._device)).logits
        return logits.flatten(0, 1), labels.flatten().to(self._device)


def label_passage(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> LabelledPassage:
    """Labels the tokens of one passage by the words of its questions and answers."""
    asked = " ".join(text for example in examples for text in (example.question, *example.answers))
    wanted = {word.lower() for word in _WORD.findall(asked)} - ENGLISH_STOP_WORDS
    context = examples[0].context
    labels = [_UNLABELLED] * len(context)
    for word in _WORD.finditer(context):
        kept = int(word.group().lower() in wanted)
        labels[word.start() : word.end()] = [kept] * len(word.group())
    encoded = tokenizer(
        context, return_offsets_mapping=True, truncation=True, max_length=_POSITIONS
    )
    return LabelledPassage(
        encoded["input_ids"],
        [labels[start] if end > start else _UNLABELLED for start, end in encoded["offset_mapping"]],
    )


def make_tokenizer(contexts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Trains a cased WordPiece tokenizer, the same one for the same texts."""
    special, pre_tokenizer = list(_SPECIAL_TOKENS.values()), pre_tokenizers.BertPreTokenizer()
    trained = Tokenizer(models.WordPiece(unk_token=_SPECIAL_TOKENS["unk_token"]))
    trained.pre_tokenizer = pre_tokenizer
    # The trainer numbers characters that continue a word in an order of its own, another each time;
    # those that it is given come first and keep theirs.
    continuing = [f"{_CONTINUES}{character}" for character in sorted({*"".join(contexts)})]
    trained.train_from_iterator(
        contexts,
        trainers.WordPieceTrainer(
            vocab_size=_VOCABULARY, special_tokens=special + continuing, show_progress=False
        ),
    )
    tokenizer = Tokenizer(
        models.WordPiece(trained.get_vocab(), unk_token=_SPECIAL_TOKENS["unk_token"])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.WordPiece()
    opening, closing = _SPECIAL_TOKENS["cls_token"], _SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.BertProcessing(
        (closing, special.index(closing)), (opening, special.index(opening))
    )
    settings: dict[str, Any] = {**_SPECIAL_TOKENS, "model_max_length": _POSITIONS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def _read(layout: Layout, split: Split) -> list[list[Example]]:
    return group_by_passage(read_examples(layout.split(split)))
