"""Answers swapped in their passages."""

import re

import pytest

from latentwire.config import PocketData
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import Example
from latentwire.evaluation.swaps import swap_answers


def example(passage, number, context, question, *answers):
    return Example(f"{passage}-{number}", passage, context, question, list(answers), "test")


ANN = "Ann Lee likes red tea. Her town is Oslo, where 12 tea shops are."
BOB = "Bob Ray likes green milk. His town is Rome."
EXAMPLES = [
    example("a", 0, ANN, "What drink does Ann Lee like?", "red tea"),
    example("a", 1, ANN, "Which town does Ann Lee live in?", "Oslo"),
    example("b", 0, BOB, "What drink does Bob Ray like?", "green milk"),
    example("b", 1, BOB, "Which town does Bob Ray live in?", "Rome"),
    example("b", 2, BOB, "Why does Bob Ray live there?"),
]


def test_answers_give_way_to_those_of_like_questions_and_references_stay():
    swaps = swap_answers(EXAMPLES, seed=1)
    contexts = {own.passage_id: own.context for own in swaps.examples}
    assert contexts == {
        "a": "Ann Lee likes green milk. Her town is Rome, where 12 tea shops are.",
        "b": "Bob Ray likes red tea. His town is Oslo.",
    }
    assert swaps.answers == {
        "a-0": "green milk", "a-1": "Rome", "b-0": "red tea", "b-1": "Oslo"
    }  # fmt: skip
    for own, original in zip(swaps.examples, EXAMPLES, strict=True):
        assert (own.example_id, own.question, own.answers) == (
            original.example_id,
            original.question,
            original.answers,
        )


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("Ann Lee likes tea.", "red wine"),
        ("Ann Lee likes teas.", "tea"),
        ("Ann Lee likes (tea*) and green milk.", "green milk"),
    ],
)
def test_an_answer_stays_where_it_cannot_be_found_or_replaced(context, answer):
    other = example("b", 0, BOB, "What drink does Bob Ray like?", "green milk")
    own = example("a", 0, context, "What drink does Ann Lee like?", answer)
    swaps = swap_answers([own, other], seed=1)
    assert "a-0" not in swaps.answers
    assert swaps.examples[0] == own


def test_an_answer_is_no_pattern():
    own = example("a", 0, "Ann likes (tea*).", "What drink does Ann like?", "(tea*)")
    other = example("b", 0, "Bob likes \\1 milk.", "What drink does Bob like?", "\\1 milk")
    swaps = swap_answers([own, other], seed=1)
    assert swaps.examples[0].context == "Ann likes \\1 milk."
    assert swaps.examples[1].context == "Bob likes (tea*)."


def test_answers_that_overlap_stay():
    own = [
        example("a", 0, ANN, "What drink does Ann Lee like?", "red tea"),
        example("a", 1, ANN, "Which leaf does Ann Lee like?", "tea"),
    ]
    swaps = swap_answers([*own, *EXAMPLES[2:]], seed=1)
    assert swaps.examples[0].context == ANN


def wording(own):
    return re.sub(r"[A-Z]\w+", "", own.question[1:])


def test_nearly_all_pocket_answers_give_way_to_values_of_their_own_relation():
    data = PocketData(train_passages=1, dev_passages=1, test_passages=40)
    examples = [own for article in read_pocket(data).test for own in article]
    swaps = swap_answers(examples, seed=1)
    assert len(swaps.answers) >= 0.9 * len(examples)
    values = {}
    for own in examples:
        values.setdefault(wording(own), set()).add(own.answers[0])
    alike = [
        swaps.answers[own.example_id] in values[wording(own)]
        for own in examples
        if own.example_id in swaps.answers
    ]
    assert sum(alike) >= 0.99 * len(alike)
    for own, original in zip(swaps.examples, examples, strict=True):
        if new := swaps.answers.get(own.example_id):
            assert new in own.context
            assert not re.search(rf"\b{original.answers[0]}\b", own.context)
    assert swap_answers(examples, seed=1) == swaps
    assert swap_answers(examples, seed=2) != swaps
