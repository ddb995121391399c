"""LLMLingua and LLMLingua-2, the published prompt compressors, through the package `llmlingua`.

All that the package (0.2.2) needs to run without network, on transformers 5, on short prompts, and
without touching global state is here, and only here.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from llmlingua import PromptCompressor
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.errors import UserError

# Enough to tell rates apart that keep one token more or less of 16,000.
_BISECTION_STEPS = 14
# The package tells the two tokenizers that it knows by these names.
_WORD_PIECE, _SENTENCE_PIECE = "bert-base-multilingual-cased", "xlm-roberta-large"
_LONGEST_CHUNK = 512


@dataclass(frozen=True)
class Compressed:
    """A text made to fit a budget.

    Attributes:
        ids: the receiver's token ids of what is left, never more than the budget.
        fell_back: whether the compressor left nothing at any rate that fits, so that this is the
            head of the text instead.
    """

    ids: list[int]
    fell_back: bool


def fit_budget(
    compress: Callable[[float], str], token_ids: Callable[[str], list[int]], text: str, budget: int
) -> Compressed:
    """The longest text of a compressor within a budget, found by bisection on its rate.

    Args:
        compress: the compressed text at a rate, the share of tokens to keep.
        token_ids: a text's tokens, those that the budget counts.
        text: what is compressed.
        budget: tokens, at least 1.

    Raises:
        ValueError: if the budget is smaller than one token.
    """
    if budget < 1:
        raise ValueError(f"budget: {budget} tokens; at least one is needed")
    whole = token_ids(text)
    if len(whole) <= budget:
        return Compressed(whole, False)
    best: list[int] = []
    low, high = 0.0, 1.0
    for _ in range(_BISECTION_STEPS):
        rate = (low + high) / 2
        ids = token_ids(compress(rate))
        if len(ids) > budget:
            high = rate
            continue
        low = rate
        best = max(best, ids, key=len)
        if len(best) == budget:
            break
    return Compressed(best, False) if best else Compressed(whole[:budget], True)


class LLMLingua:
    """Keeps the tokens that surprise a causal language model (arXiv 2310.05736).

    With a question those that the question makes less surprising, as LongLLMLingua does (arXiv
    2310.06839, section 4.2).

    Args:
        location: folder or hub repository of the causal language model.
        revision: commit of the repository.
        receiver_tokenizer: counts tokens, in the place of the package's download.
        device: where the model runs.

    Raises:
        UserError: if the model cannot be loaded.
    """

    def __init__(
        self,
        location: str,
        revision: str | None,
        receiver_tokenizer: PreTrainedTokenizerBase,
        device: str,
    ) -> None:
        self._compressor = _open(location, revision, receiver_tokenizer, device)
        self._compressor.model = _LegacyCacheModel(self._compressor.model)

    def compress(self, text: str, rate: float, question: str = "") -> str:
        """What is left of a text at a rate, the share of tokens to keep."""
        # Segments of 200 tokens, the package's default, would leave shorter texts as they are.
        length = self._compressor.get_token_length(text, add_special_tokens=True)
        conditioned = {
            "question": question,
            "rank_method": "longllmlingua",
            "condition_in_question": "after_condition",
            "condition_compare": True,
        }
        with _global_state_kept():
            compressed = self._compressor.compress_prompt(
                [text],
                target_token=max(1.0, rate * length),
                iterative_size=length,
                concate_question=False,
                **(conditioned if question else {}),
            )
        return compressed["compressed_prompt"]


class LLMLingua2:
    """Keeps the words that a token classifier says to keep (arXiv 2403.12968).

    Args:
        location: folder or hub repository of the classifier, of BERT's or XLM-RoBERTa's shape,
            with two labels of which 1 keeps.
        revision: commit of the repository.
        receiver_tokenizer: counts tokens, in the place of the package's download.
        device: where the model runs.

    Raises:
        UserError: if the classifier cannot be loaded.
    """

    def __init__(
        self,
        location: str,
        revision: str | None,
        receiver_tokenizer: PreTrainedTokenizerBase,
        device: str,
    ) -> None:
        compressor = _open(location, revision, receiver_tokenizer, device, use_llmlingua2=True)
        family = compressor.model.config.model_type
        compressor.model_name = _WORD_PIECE if family == "bert" else _SENTENCE_PIECE
        positions = compressor.model.config.max_position_embeddings
        compressor.max_seq_len = min(_LONGEST_CHUNK, positions)
        compressor.model = _RememberingClassifier(compressor.model)
        self._compressor = compressor

    def compress(self, text: str, rate: float) -> str:
        """What is left of a text at a rate, the share of tokens to keep."""
        tokenizer = self._compressor.tokenizer
        # The package drops unknown words, and fails where there are no others.
        if set(tokenizer(text)["input_ids"]) <= set(tokenizer.all_special_ids):
            return ""
        with _global_state_kept():
            compressed = self._compressor.compress_prompt_llmlingua2([text], rate=rate)
        return compressed["compressed_prompt"]


class _LegacyCacheModel:
    """Hands a model's cache over as pairs of keys and values, which the package indexes.

    The outcome of a whole text is remembered: a bisection asks for the same one at every rate.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._remembered: dict[tuple[int, ...], SimpleNamespace] = {}

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]] | None,
        use_cache: bool,
    ) -> SimpleNamespace:
        if past_key_values is not None:
            return self._run(input_ids, attention_mask, past_key_values)
        key = tuple(input_ids[0].tolist())
        if key not in self._remembered:
            # Two texts take turns: with and without a question.
            if len(self._remembered) == 2:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = self._run(input_ids, attention_mask, [])
        return self._remembered[key]

    def _run(
        self, input_ids: Tensor, attention_mask: Tensor, pairs: list[tuple[Tensor, Tensor]]
    ) -> SimpleNamespace:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(pairs):
            cache.update(keys, values, layer)
        output = self._model(
            input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
        )
        pairs = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        return SimpleNamespace(logits=output.logits, past_key_values=pairs)


class _RememberingClassifier:
    """Remembers its last outcome: a bisection asks for the same text at every rate."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._last: tuple[Tensor, Any] | None = None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if self._last is None or not torch.equal(self._last[0], input_ids):
            self._last = input_ids, self._model(input_ids=input_ids, attention_mask=attention_mask)
        return self._last[1]


def _open(
    location: str,
    revision: str | None,
    receiver_tokenizer: PreTrainedTokenizerBase,
    device: str,
    **options: Any,
) -> PromptCompressor:
    counter = SimpleNamespace(
        encode=lambda text: receiver_tokenizer.encode(text, add_special_tokens=False)
    )
    # A dictionary of our own: the package's default is shared between compressors, and changed.
    settings = {"trust_remote_code": False, "use_safetensors": True, "revision": revision}
    with (
        patch("llmlingua.prompt_compressor.tiktoken.encoding_for_model", return_value=counter),
        _global_state_kept(),
    ):
        try:
            compressor = PromptCompressor(
                location, device_map=device, model_config=settings, **options
            )
        except Exception as error:  # transformers raises many kinds for the same absence
            raise UserError(
                f"cannot load the compressor {location}: {error}\ngive a folder with config.json, "
                "model.safetensors and tokenizer.json, or a hub repository and its commit; "
                "offline, download it first with `hf download`"
            ) from error
    compressor.model.eval()
    return compressor


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Undoes what the package does to random streams and to settings of the process."""
    streams = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(), patch.dict(os.environ):
        try:
            yield
        finally:
            random.setstate(streams[0])
            np.random.set_state(streams[1])
            cudnn.deterministic, cudnn.benchmark = flags
