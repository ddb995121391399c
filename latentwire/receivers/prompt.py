"""How a question is put to a receiver: text around the source, tokenised once and the same way
everywhere.

A prompt is `head + source + tail(question)`, and the answer follows. The source is tokenised by
itself, so that soft tokens can take exactly the place of its tokens.
"""

import math
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

_SOURCE_MARK, _QUESTION_MARK = "\ue000", "\ue001"


@dataclass(frozen=True)
class Prompt:
    """Token ids of every part of a prompt, for one receiver's tokenizer.

    Args:
        tokenizer: the receiver's tokenizer. Its chat template, if it has one, wraps the template
            as the user's turn, and the anchor opens the assistant's.
        template: text with `{source}` and, unless the question is inside the source, `{question}`.
        anchor: literal text between the prompt and the answer. White space at its end belongs to
            the first answer token, as tokenizers with word-initial spaces have it.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    anchor: str
    head_ids: tuple[int, ...] = field(init=False)
    _tail: str = field(init=False)
    _answer_space: str = field(init=False)
    _known: dict[str, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = self.template.format(source=_SOURCE_MARK, question=_QUESTION_MARK)
        has_chat_template = self.tokenizer.chat_template is not None
        if has_chat_template:
            turn = [{"role": "user", "content": text}]
            text = str(
                self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            )
        object.__setattr__(self, "_known", {})
        head, tail = text.split(_SOURCE_MARK)
        tail += self.anchor
        head_ids = self.tokenizer.encode(head, add_special_tokens=False)
        if not has_chat_template and self.tokenizer.bos_token_id is not None:
            head_ids = [self.tokenizer.bos_token_id, *head_ids]
        object.__setattr__(self, "head_ids", tuple(head_ids))
        object.__setattr__(self, "_tail", tail.rstrip(" "))
        object.__setattr__(self, "_answer_space", tail[len(tail.rstrip(" ")) :])

    @property
    def anchor_ids(self) -> list[int]:
        """Token ids of the anchor by itself."""
        return self._encode([self.anchor.rstrip(" ")])[0]

    def source_ids(self, sources: list[str]) -> list[list[int]]:
        """Token ids of source texts, no special tokens, nothing cut."""
        return self._encode(sources)

    def question_ids(self, questions: list[str]) -> list[list[int]]:
        """Token ids of all that stands between source and answer, the anchor included."""
        # The chat template's own control tokens must stay tokens, those in a user's text must not.
        before, _, after = self._tail.partition(_QUESTION_MARK)
        if not after:
            return [self.tokenizer.encode(before, add_special_tokens=False)] * len(questions)
        if self.tokenizer.chat_template is None:
            return self._encode_known([before + question + after for question in questions])
        opening = self._encode_known([before + question for question in questions])
        closing = self.tokenizer.encode(after, add_special_tokens=False)
        return [[*ids, *closing] for ids in opening]

    def answer_ids(self, answers: list[str]) -> list[list[int]]:
        """Token ids of answers, each closed by the end-of-sequence token.

        An empty answer is the end-of-sequence token alone.
        """
        eos = self.tokenizer.eos_token_id
        texts = [self._answer_space + answer if answer else "" for answer in answers]
        return [[*ids, eos] for ids in self._encode_known(texts)]

    def _encode_known(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that come again with every source, ratio and method."""
        unknown = [text for text in texts if text not in self._known]
        self._known.update(zip(unknown, self._encode(unknown), strict=True))
        return [self._known[text] for text in texts]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        unique = list(dict.fromkeys(texts))
        ids = self.tokenizer(unique, add_special_tokens=False, split_special_tokens=True)
        known = dict(zip(unique, ids["input_ids"], strict=True))
        return [known[text] for text in texts]


def restatement_request(num_words: float) -> str:
    """Asks for the facts in so many words, or for all if infinite, in the place of a question."""
    return "Restate the facts" + (f" in {num_words} words." if num_words < math.inf else ".")
