"""Whole sentences chosen by how central they are to a text, or to a question about it: LexRank."""

from collections.abc import Sequence
from functools import lru_cache

import networkx
import numpy as np
from nltk.tokenize import PunktSentenceTokenizer
from sklearn.feature_extraction.text import TfidfVectorizer

# Share of a random walk's steps that follow similar sentences, in place of the given preference:
# as in the papers, most of them without a question, few with one.
_WALK, _WALK_WITH_QUESTION = 0.85, 0.1


class SentenceSelector:
    """Keeps the sentences that a random walk over similar sentences visits most.

    LexRank (Erkan and Radev 2004, arXiv 1109.2128): similarity is the cosine of TF-IDF vectors.
    With a question the walk prefers sentences that are similar to it (Otterbacher, Erkan and Radev,
    "Using Random Walks for Question-focused Sentence Retrieval", HLT/EMNLP 2005).
    """

    def __init__(self) -> None:
        # A bisection asks for the same text at every rate.
        self._rank = lru_cache(maxsize=1)(_rank)

    def read_ahead(self, texts: Sequence[str], questions: Sequence[str]) -> None:
        """Nothing: no model reads."""

    def compress(self, text: str, rate: float, question: str = "") -> str:
        """The first sentences by rank, in the order of the text, as many words as the rate allows.

        The last of them is cut to its first words, so that the budget is used.
        """
        sentences, order = self._rank(text, question)
        left = round(rate * len(text.split()))
        kept = [""] * len(sentences)
        for index in order:
            words = sentences[index].split()[:left]
            left -= len(words)
            kept[index] = " ".join(words)
        return " ".join(filter(None, kept))


def _rank(text: str, question: str) -> tuple[list[str], list[int]]:
    """The sentences of a text, and their indices from the highest rank to the lowest."""
    sentences = PunktSentenceTokenizer().tokenize(text)
    try:
        vectors = TfidfVectorizer().fit(sentences)
    except ValueError:
        # Not one word to compare: the order of the text is all there is.
        return sentences, list(range(len(sentences)))
    similarity = (vectors.transform(sentences) @ vectors.transform(sentences).T).toarray()
    relevance = (vectors.transform(sentences) @ vectors.transform([question]).T).toarray()[:, 0]
    graph = networkx.from_numpy_array(similarity)
    if relevance.any():
        preference = dict(enumerate(relevance))
        ranks = networkx.pagerank(graph, _WALK_WITH_QUESTION, personalization=preference)
    else:
        ranks = networkx.pagerank(graph, _WALK)
    scores = np.array([ranks[index] for index in range(len(sentences))])
    return sentences, np.argsort(-scores, kind="stable").tolist()
