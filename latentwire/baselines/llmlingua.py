"""LLMLingua and LLMLingua-2, the published prompt compressors, through the package `llmlingua`.

All that the package (0.2.2) needs to run without network, on transformers 5, on short prompts, and
without touching global state is here, and only here.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from llmlingua import PromptCompressor
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.receivers.packing import pad_rows

# Enough to tell rates apart that keep one token more or less of 16,000.
_BISECTION_STEPS = 14
# The package tells the two tokenizers that it knows by these names.
_WORD_PIECE, _SENTENCE_PIECE = "bert-base-multilingual-cased", "xlm-roberta-large"
_LONGEST_CHUNK = 512
# Logits of so many, of a vocabulary of 128,000 in bfloat16, take 4 GB.
_POSITIONS_AHEAD = 2**14


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
        self._compressor.model = self._model = _LegacyCacheModel(self._compressor.model)

    def read_ahead(self, texts: Sequence[str], questions: Sequence[str]) -> None:
        """Lets the model read together what is to be compressed next."""
        # The package reads a text by itself and, with a question, behind it.
        read = [
            own
            for text, question in zip(texts, questions, strict=True)
            for own in ((text, f"{question}\n\n{text}") if question else (text,))
        ]
        tokenizer = self._compressor.tokenizer
        self._model.read_ahead(tokenizer(read, add_special_tokens=False)["input_ids"])

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
        compressor.model = self._model = _RememberingClassifier(compressor.model)
        self._compressor = compressor

    def read_ahead(self, texts: Sequence[str], questions: Sequence[str]) -> None:
        """Lets the classifier read together what is to be compressed next."""
        self._model.forget()
        if known := [text for text in texts if self._knows(text)]:
            self._compress(known, 0.5)

    def compress(self, text: str, rate: float, question: str = "") -> str:
        """What is left of a text at a rate, the share of tokens to keep, whatever is asked."""
        return self._compress([text], rate) if self._knows(text) else ""

    def _knows(self, text: str) -> bool:
        """Whether a word of it is known; the package drops others, and fails on nothing."""
        tokenizer = self._compressor.tokenizer
        return not set(tokenizer(text)["input_ids"]) <= set(tokenizer.all_special_ids)

    def _compress(self, texts: list[str], rate: float) -> str:
        with _global_state_kept():
            compressed = self._compressor.compress_prompt_llmlingua2(texts, rate=rate)
        return compressed["compressed_prompt"]


class _LegacyCacheModel:
    """Hands a model's cache over as pairs of keys and values, which the package indexes.

    What it makes of whole texts is remembered: a bisection asks for the same one at every rate.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._remembered: dict[tuple[int, ...], SimpleNamespace] = {}

    def read_ahead(self, texts: Sequence[list[int]]) -> None:
        """Reads texts together, the first of them if they are long, and forgets all others."""
        # Longer ones the package reads in parts.
        most = self._model.config.max_position_embeddings
        known: list[tuple[int, ...]] = []
        for own in dict.fromkeys(tuple(ids) for ids in texts if 0 < len(ids) <= most):
            if (len(known) + 1) * max(map(len, (*known, own))) > _POSITIONS_AHEAD:
                break
            known.append(own)
        self._remembered.clear()
        if not known:
            return
        ids, mask = (part.to(self._model.device) for part in pad_rows(known, 0))
        with torch.no_grad():
            read = self._run(ids, mask.long(), [])
        self._remembered |= {
            own: SimpleNamespace(
                logits=read.logits[row : row + 1, : len(own)],
                past_key_values=[
                    tuple(part[row : row + 1, :, : len(own)] for part in pair)
                    for pair in read.past_key_values
                ],
            )
            for row, own in enumerate(known)
        }

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
            if len(self._remembered) > 1:
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
    """Remembers what it makes of texts: a bisection asks for the same one at every rate.

    The package pads every text to the longest that is allowed, of which nothing is read here.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._remembered: dict[tuple[int, ...], Tensor] = {}

    def forget(self) -> None:
        self._remembered.clear()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        lengths = attention_mask.sum(1).tolist()
        texts = [tuple(ids[:end].tolist()) for ids, end in zip(input_ids, lengths, strict=True)]
        unread = [row for row, text in enumerate(texts) if text not in self._remembered]
        if unread:
            longest = max(lengths[row] for row in unread)
            ids, mask = (part[unread, :longest] for part in (input_ids, attention_mask))
            read = self._model(input_ids=ids, attention_mask=mask).logits
            self._remembered |= {
                texts[row]: logits[: lengths[row]] for row, logits in zip(unread, read, strict=True)
            }
        known = [self._remembered[text] for text in texts]
        around = [(0, 0, 0, input_ids.shape[1] - len(logits)) for logits in known]
        padded = [F.pad(logits, own) for logits, own in zip(known, around, strict=True)]
        return SimpleNamespace(loss=None, logits=torch.stack(padded))


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
