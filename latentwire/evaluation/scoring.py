"""Exact match and F1 of an answer, as the official SQuAD v2.0 evaluation script computes them.

On answerable questions this is the v1.1 script too. An unanswerable question has no references; its
gold is then the empty string, which only an empty prediction meets. References that hold nothing
but articles and punctuation are dropped, and a question with no other references counts as
unanswerable.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, answers: Sequence[str], no_answer_text: str = "") -> float:
    """1 if the normalised prediction equals any normalised reference, else 0.

    Args:
        prediction: what the receiver answered.
        answers: the references; none for an unanswerable question.
        no_answer_text: the text by which a receiver says that a question has no answer; a
            prediction equal to it, after normalisation, counts as the empty string.
    """
    predicted = _normalise_prediction(prediction, no_answer_text)
    return float(predicted in _normalise_references(answers))


def f1(prediction: str, answers: Sequence[str], no_answer_text: str = "") -> float:
    """Harmonic mean of word precision and recall, 0 to 1, against the reference that suits best.

    The arguments are those of `exact_match`.
    """
    predicted = _normalise_prediction(prediction, no_answer_text)
    return max(_word_f1(predicted, reference) for reference in _normalise_references(answers))


# Each answer is compared more than once, and many are the same.
@lru_cache(maxsize=1 << 16)
def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and superfluous white space."""
    without_punctuation = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def _normalise_prediction(prediction: str, no_answer_text: str) -> str:
    predicted = normalise_answer(prediction)
    return "" if predicted == normalise_answer(no_answer_text) else predicted


def _normalise_references(answers: Sequence[str]) -> list[str]:
    normalised = [normalise_answer(answer) for answer in answers]
    return [reference for reference in normalised if reference] or [""]


def _word_f1(predicted: str, reference: str) -> float:
    predicted_words, reference_words = predicted.split(), reference.split()
    if not predicted_words or not reference_words:
        return float(predicted_words == reference_words)
    num_shared = (Counter(predicted_words) & Counter(reference_words)).total()
    if num_shared == 0:
        return 0.0
    precision = num_shared / len(predicted_words)
    recall = num_shared / len(reference_words)
    return 2 * precision * recall / (precision + recall)
