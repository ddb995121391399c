"""The stage `evaluate-compressed`: questions answered from text that was shortened by content."""

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from latentwire.baselines.llmlingua import Compressed, LLMLingua, LLMLingua2, fit_budget
from latentwire.baselines.sentences import SentenceSelector
from latentwire.config import QUESTION_AWARE_METHODS, Experiment, Method
from latentwire.data.tables import Example, group_by_passage, read_examples
from latentwire.evaluation.methods import budgets, send_text
from latentwire.evaluation.predict import predict, warm_up
from latentwire.evaluation.predictions import Prediction
from latentwire.evaluation.shards import open_shards
from latentwire.layout import Layout
from latentwire.receivers.loading import DESCRIPTION, load_receiver, named_model_location
from latentwire.receivers.receiver import Receiver

logger = logging.getLogger(__name__)


class Compressor(Protocol):
    """What shortens texts."""

    def read_ahead(self, texts: Sequence[str], questions: Sequence[str]) -> None:
        """Does together what compressing these texts next needs; they are left the same."""

    def compress(self, text: str, rate: float, question: str = "") -> str:
        """What is left of a text at a rate, the share to keep; told a question unless empty."""


def evaluate_compressed(experiment: Experiment, layout: Layout, receiver_name: str) -> None:
    """Evaluates every method of the experiment that compresses text, for one receiver.

    Raises:
        UserError: if data, receiver or a compressor are missing.
    """
    receiver = load_receiver(experiment, layout, receiver_name)
    examples = read_examples(layout.split("test"))
    compressors = {
        method: open_compressor(experiment, layout, method, receiver)
        for method in experiment.evaluation.compressor_methods
    }
    warm_up(experiment, receiver, examples)
    inputs = [layout.receiver(receiver_name) / DESCRIPTION, *_model_files(experiment, layout)]
    stage = f"evaluate_compressed-{receiver_name}"
    num_parts = len(compressors) * len(experiment.wire.target_ratios)
    with open_shards(experiment, layout, stage, inputs, __name__, num_parts) as shards:
        for method, compressor in compressors.items():
            output = layout.predictions(method, receiver_name)
            for ratio in experiment.wire.target_ratios:
                answer = partial(
                    _answers, experiment, receiver, examples, method, compressor, ratio
                )
                shards.answer(method, receiver_name, output, f"{method}-{ratio}", answer)


def _answers(
    experiment: Experiment,
    receiver: Receiver,
    examples: Sequence[Example],
    method: Method,
    compressor: Compressor,
    ratio: float,
) -> list[Prediction]:
    """Answers from texts that one method shortens to one ratio."""
    is_aware = method in QUESTION_AWARE_METHODS
    groups = [[example] for example in examples] if is_aware else group_by_passage(examples)
    contexts = [group[0].context for group in groups]
    questions = [group[0].question if is_aware else "" for group in groups]
    ids = receiver.prompt.source_ids(contexts)
    most, at_once = budgets(ids, ratio), experiment.evaluation.batch_passages
    left, seconds = shorten(compressor, receiver, contexts, questions, most, at_once)
    fell_back = [own.fell_back for own in left]
    texts = receiver.tokenizer.batch_decode([own.ids for own in left])
    if count := sum(fell_back):
        logger.warning(
            "%s, %s at %gx: nothing was left of %d texts of %d; their heads stand in",
            receiver.name,
            method,
            ratio,
            count,
            len(left),
        )
    return predict(
        experiment,
        receiver,
        groups,
        contexts,
        ids,
        partial(send_text, receiver, [own.ids for own in left], texts),
        ratio=ratio,
        encode_seconds=seconds,
        question_aware=is_aware,
        fell_back=fell_back,
    )


def _model_files(experiment: Experiment, layout: Layout) -> list[Path]:
    """What the workflow made of the models that shorten text, if it made any."""
    files = [
        layout.compressor / "model.safetensors",
        layout.receiver(experiment.llmlingua_model) / DESCRIPTION,
    ]
    return [path for path in files if path.exists()]


def open_compressor(
    experiment: Experiment, layout: Layout, method: Method, receiver: Receiver
) -> Compressor:
    """What a method shortens texts with.

    Raises:
        UserError: if the model cannot be loaded.
    """
    if method in (Method.extractive, Method.extractive_question):
        return SentenceSelector()
    tokenizer, device = receiver.tokenizer, experiment.device
    if method == Method.llmlingua2:
        named = experiment.baselines.llmlingua2 or str(layout.compressor)
        location = named_model_location(experiment, layout, named)
        return LLMLingua2(**location, receiver_tokenizer=tokenizer, device=device)
    location = named_model_location(experiment, layout, experiment.llmlingua_model)
    return LLMLingua(**location, receiver_tokenizer=tokenizer, device=device)


def shorten(
    compressor: Compressor,
    receiver: Receiver,
    texts: Sequence[str],
    questions: Sequence[str],
    most: Sequence[int],
    batch_size: int,
) -> tuple[list[Compressed], list[float]]:
    """Each text within its budget in the receiver's tokens, and the seconds that it took.

    These include the search for the rate that fills the budget, and its share of the reading of so
    many texts together.
    """
    compressor.compress(texts[0], 1.0, questions[0])  # warms up
    left, seconds = [], []
    for start in range(0, len(texts), batch_size):
        batch = slice(start, start + batch_size)
        started = time.perf_counter()
        compressor.read_ahead(texts[batch], questions[batch])
        reading = (time.perf_counter() - started) / len(texts[batch])
        for text, question, budget in zip(texts[batch], questions[batch], most[batch], strict=True):
            started = time.perf_counter()
            left.append(
                fit_budget(
                    partial(compressor.compress, text, question=question),
                    lambda shorter: receiver.prompt.source_ids([shorter])[0],
                    text,
                    budget,
                )
            )
            seconds.append(reading + time.perf_counter() - started)
    return left, seconds
