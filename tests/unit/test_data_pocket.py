"""The pocket corpus: what its passages hold, and that splits share nothing."""

import hashlib
import math
import re
from itertools import islice

import pytest
from tokenizers import ByteLevelBPETokenizer

from latentwire.config import PocketData
from latentwire.data.pocket import (
    HELD_OUT_NAMES,
    RELATIONS,
    full_length_passages,
    is_held_out_name,
    make_passage,
    mixed_passages,
)
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import group_by_passage

SETTINGS = PocketData(seed=5, train_passages=300, dev_passages=4, test_passages=7)


@pytest.fixture(scope="module")
def corpus():
    return read_pocket(SETTINGS)


def test_relations():
    assert len(RELATIONS) >= 8
    for relation in RELATIONS:
        assert len(set(relation.statements)) >= 2
        assert len(set(relation.questions)) >= 2
        assert len(set(relation.values)) == len(relation.values)
    sizes = [len(relation.values) for relation in RELATIONS]
    assert sum(math.log2(size) for size in sizes) / len(sizes) >= 4
    assert sum(size >= 200 for size in sizes) >= 3


def test_full_length_passages_have_four_people_and_fourteen_facts():
    for passage in islice(full_length_passages("a"), 50):
        assert len(passage.people) == 4
        assert len(passage.facts) == 14
        assert {fact.person for fact in passage.facts} == set(passage.people)
        assert len({(fact.person, fact.relation.name) for fact in passage.facts}) == 14
        assert all(fact.statement in passage.context for fact in passage.facts)
        assert all(fact.value in fact.statement for fact in passage.facts)


def test_order_is_random_and_values_are_shared():
    passages = list(islice(full_length_passages("a"), 200))
    first = [passage.facts[0] for passage in passages]
    assert {fact.relation.name for fact in first} == {relation.name for relation in RELATIONS}
    assert {passage.people.index(passage.facts[0].person) for passage in passages} == {0, 1, 2, 3}
    values = [[(fact.relation.name, fact.value) for fact in p.facts] for p in passages]
    assert any(len(set(pairs)) < len(pairs) for pairs in values)


def test_mixed_passages_are_of_every_length():
    passages = list(islice(mixed_passages("a"), 500))
    assert {len(passage.facts) for passage in passages} == set(range(2, 15))
    assert {len(passage.people) for passage in passages} == {1, 2, 3, 4}


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="2 people and 1 relations make 2 to 2 facts, not 3"):
        make_passage(None, 2, 3, num_relations=1)


def test_many_answers_take_several_tokens(corpus):
    tokenizer = ByteLevelBPETokenizer()
    contexts = [article[0].context for article in corpus.train]
    tokenizer.train_from_iterator(contexts, vocab_size=1024, show_progress=False)
    answers = [example.answers[0] for article in corpus.train for example in article]
    lengths = [len(tokenizer.encode(f" {answer}").ids) for answer in answers]
    assert sum(length >= 2 for length in lengths) >= 0.3 * len(lengths)


def test_sizes_and_ids(corpus):
    assert len(corpus.train) == 300
    assert len(corpus.dev) == 4
    assert len(corpus.test) == 7
    example = corpus.test[5][3]
    assert (example.passage_id, example.example_id) == ("test-00005", "test-00005-03")
    examples = [example for article in corpus.test for example in article]
    assert len({example.example_id for example in examples}) == 7 * 14
    assert len(group_by_passage(examples)) == 7


def test_half_of_the_test_passages_have_names_that_no_other_split_has(corpus):
    passages = islice(full_length_passages("names", HELD_OUT_NAMES), 3000)
    held_out = {person for passage in passages for person in passage.people}
    assert all(is_held_out_name(name) for name in held_out)

    def num_held_out(article):
        return len(held_out & set(re.findall(r"\w+", article[0].context)))

    assert [num_held_out(article) for article in corpus.test] == [0] * 4 + [4] * 3
    assert not any(num_held_out(article) for article in [*corpus.train, *corpus.dev])
    tasks = [{example.task for example in article} for article in corpus.test]
    assert tasks == [{"pocket"}] * 4 + [{"pocket_unseen_names"}] * 3


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_a_share_of_the_training_passages_is_of_full_length(share):
    articles = read_pocket(SETTINGS.model_copy(update={"full_length_share": share})).train
    lengths = [len(article) for article in articles]
    start = len(lengths) - int(share * len(lengths))
    assert set(lengths[start:]) <= {14}
    assert sum(length < 14 for length in lengths[:start]) >= 0.9 * start


def test_splits_and_seeds_differ_and_repeat(corpus):
    def contexts(articles):
        return {article[0].context for article in articles}

    assert read_pocket(SETTINGS) == corpus
    other = read_pocket(SETTINGS.model_copy(update={"seed": 6}))
    everything = [*corpus.train, *corpus.dev, *corpus.test, *other.test, *other.train]
    full_length = [article for article in everything if len(article) == 14]
    assert len(contexts(full_length)) == len(full_length)


def test_streams_are_pinned():
    """The bundled receivers were trained on these very words."""
    streams = [
        mixed_passages("a"),
        full_length_passages("a"),
        full_length_passages("a", HELD_OUT_NAMES),
    ]
    text = "\n".join(
        " ".join([passage.context, *(fact.question for fact in passage.facts)])
        for stream in streams
        for passage in islice(stream, 20)
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c71079bc450b5927"
