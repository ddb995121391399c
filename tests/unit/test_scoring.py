import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.text import SQuAD

from latentwire.evaluation.scoring import exact_match, f1, normalise_answer

SQUAD = Path(__file__).parents[3] / "shared" / "data" / "squad"

WORDS = [
    "the",
    "a",
    "An",
    "THE",
    "cat",
    "Cat.",
    "dog",
    "dog's",
    "état",
    "ß",
    "4,096",
    "!",
    "--",
    "«x»",
]
texts = st.one_of(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.text(max_size=20))
references = st.lists(texts, max_size=4)


def torchmetrics_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    scores = SQuAD()(
        [{"id": "0", "prediction_text": prediction}],
        [{"id": "0", "answers": {"text": answers, "answer_start": [0] * len(answers)}}],
    )
    return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100


def v2_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """The v2.0 rule, written from its description and sharing nothing with the module."""

    def words(text: str) -> list[str]:
        kept = "".join(char for char in text.lower() if char not in string.punctuation)
        return re.sub(r"\b(?:the|an?)\b", " ", kept, flags=re.UNICODE).split()

    golds = [words(answer) for answer in answers if words(answer)]
    predicted = words(prediction)
    if not golds:
        return (1.0, 1.0) if not predicted else (0.0, 0.0)
    best = 0.0
    for gold in golds:
        left, overlap = list(gold), 0
        for word in predicted:
            if word in left:
                left.remove(word)
                overlap += 1
        best = max(best, 2 * overlap / (len(gold) + len(predicted)))
    return float(predicted in golds), best


@settings(max_examples=150, deadline=None)
@given(texts, references)
def test_answerable_questions_score_as_torchmetrics(prediction, answers):
    answers = [answer for answer in answers if normalise_answer(answer)] or ["cat"]
    em, f1_score = torchmetrics_scores(prediction, answers)
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(f1_score, abs=1e-6)


@settings(max_examples=500, deadline=None)
@given(texts, references)
def test_every_question_scores_by_the_v2_rule(prediction, answers):
    em, f1_score = v2_scores(prediction, answers)
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(f1_score, abs=1e-12)


@pytest.fixture(scope="module")
def real_answers():
    if not SQUAD.is_dir():
        pytest.skip("the SQuAD files are not beside the repository")
    questions = [
        question
        for path in sorted(SQUAD.glob("**/*.json"))
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    return [[answer["text"] for answer in question["answers"]] for question in questions]


def test_real_answers_score_as_torchmetrics(real_answers):
    answers = [golds for golds in real_answers if golds and all(map(normalise_answer, golds))]
    # Each question is answered by another one, by itself, or by itself and some words more.
    predictions = [
        (answers[place - 1][-1], golds[-1], f"{golds[0]} of the kind")[place % 3]
        for place, golds in enumerate(answers)
    ]
    theirs = SQuAD()(
        [
            {"id": str(place), "prediction_text": prediction}
            for place, prediction in enumerate(predictions)
        ],
        [
            {"id": str(place), "answers": {"text": golds, "answer_start": [0] * len(golds)}}
            for place, golds in enumerate(answers)
        ],
    )
    for name, score in (("exact_match", exact_match), ("f1", f1)):
        ours = sum(map(score, predictions, answers)) / len(answers)
        assert 0.1 < ours < 0.9
        assert ours == pytest.approx(float(theirs[name]) / 100, abs=1e-5)


def test_real_answers_score_by_the_v2_rule(real_answers):
    answers = real_answers
    predictions = [texts[-1] if texts else "" for texts in answers[1:] + answers[:1]]
    own = [texts[-1] if texts else "" for texts in answers]
    for made in (predictions, own):
        for prediction, golds in zip(made, answers, strict=True):
            expected = v2_scores(prediction, golds)
            assert exact_match(prediction, golds) == expected[0]
            assert f1(prediction, golds) == pytest.approx(expected[1], abs=1e-12)
    assert {0.0, 1.0} == {exact_match(p, a) for p, a in zip(predictions, answers, strict=True)}


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1_score"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos", "broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("Denver", [], 0, 0),
        ("", ["Denver"], 0, 0),
        ("an", ["A"], 1, 1),
        ("", ["The", "cat"], 0, 0),
    ],
)
def test_known_scores(prediction, answers, em, f1_score):
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(f1_score)


@pytest.mark.parametrize("score", [exact_match, f1])
def test_the_no_answer_text_counts_as_no_answer(score):
    assert score("Unanswerable.", [], no_answer_text="unanswerable") == 1
    assert score("unanswerable", [], no_answer_text="") == 0
    assert score("unanswerable", ["Paris"], no_answer_text="unanswerable") == 0
    assert score("Paris", ["Paris"], no_answer_text="unanswerable") == 1
    assert score("", [], no_answer_text="unanswerable") == 1
