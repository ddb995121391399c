"""Sentences chosen by LexRank, with and without a question."""

import networkx
import numpy as np
import pytest

from latentwire.baselines.sentences import SentenceSelector

TEXT = "A fox ran. The quick fox jumped home. The quick fox jumped. Bread costs money."


@pytest.fixture
def compress():
    return SentenceSelector().compress


def test_sentences_like_many_others_come_first(compress):
    assert compress(TEXT, 4 / 15) == "The quick fox jumped."
    assert compress(TEXT, 9 / 15) == "The quick fox jumped home. The quick fox jumped."


def test_a_question_brings_its_sentence_to_the_front(compress):
    assert compress(TEXT, 3 / 15, "How much money is bread?") == "Bread costs money."
    assert compress(TEXT, 3 / 15, "Who ran?") == "A fox ran."


def test_what_is_left_keeps_the_order_of_the_text_and_the_number_of_words(compress):
    words = TEXT.split()
    for count in range(len(words) + 1):
        left = compress(TEXT, count / len(words)).split()
        assert len(left) == count
        remaining = iter(words)
        assert all(word in remaining for word in left)
    assert compress(TEXT, 1.0) == TEXT


def test_ranks_are_the_stationary_distribution_of_the_damped_walk(compress, monkeypatch):
    graphs = []
    rank = networkx.pagerank
    monkeypatch.setattr(
        networkx, "pagerank", lambda graph, *a, **k: graphs.append(graph) or rank(graph, *a, **k)
    )
    compress(TEXT, 0.5)
    similarity = networkx.to_numpy_array(graphs[0])
    assert np.allclose(np.diag(similarity), 1)
    walk = 0.85 * similarity / similarity.sum(1, keepdims=True) + 0.15 / 4
    values, vectors = np.linalg.eig(walk.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    expected = stationary / stationary.sum()
    assert np.allclose([*rank(graphs[0]).values()], expected, atol=1e-5)


@pytest.mark.parametrize("text", ["", "...", "? !"])
def test_text_without_words_keeps_its_order(compress, text):
    assert compress(text, 1.0) == text
    assert compress(text, 0.0) == ""
