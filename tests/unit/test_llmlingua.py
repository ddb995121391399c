"""The published prompt compressors, under budgets in receiver tokens."""

import json
import random
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import make_receiver
from transformers import BertConfig, BertForTokenClassification

from latentwire.baselines.classifier import label_passage, make_tokenizer, train_compressor
from latentwire.baselines.compressed import open_compressor
from latentwire.baselines.llmlingua import LLMLingua, LLMLingua2, fit_budget
from latentwire.config import Baselines, Experiment, PocketData
from latentwire.data.pocket import full_length_passages
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import Example, write_examples
from latentwire.errors import UserError
from latentwire.files import save_pretrained
from latentwire.layout import Layout
from latentwire.receivers.loading import open_tokenizer


def passages(count, seed="llmlingua"):
    source = full_length_passages(seed)
    return [next(source) for _ in range(count)]


@pytest.fixture(scope="module")
def receiver():
    return make_receiver("llama")


@pytest.fixture(scope="module")
def model_folder(receiver, tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    save_pretrained(folder, receiver.model, receiver.tokenizer)
    return folder


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = make_tokenizer([passage.context for passage in passages(100)])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=2,
        initializer_range=1.0,
    )
    folder = tmp_path_factory.mktemp("classifier")
    save_pretrained(folder, BertForTokenClassification(config), tokenizer)
    return folder


@pytest.fixture(scope="module")
def llmlingua(model_folder, receiver):
    return LLMLingua(str(model_folder), None, receiver.tokenizer, "cpu")


@pytest.fixture(scope="module")
def llmlingua2(classifier_folder, receiver):
    return LLMLingua2(str(classifier_folder), None, receiver.tokenizer, "cpu")


@pytest.fixture
def token_ids(receiver):
    return lambda text: receiver.prompt.source_ids([text])[0]


@pytest.mark.parametrize("name", ["llmlingua", "llmlingua2"])
def test_short_passages_fill_their_budget_and_never_exceed_it(request, name, token_ids):
    compressor = request.getfixturevalue(name)
    fills = []
    for passage in passages(12, "budgets"):
        text = passage.context
        for ratio in (4, 8, 16):
            budget = len(token_ids(text)) // ratio
            left = fit_budget(partial(compressor.compress, text), token_ids, text, budget)
            assert len(left.ids) <= budget
            assert not left.fell_back
            fills.append(len(left.ids) / budget)
    assert np.mean(fills) >= 0.95


def test_what_is_left_follows_the_order_of_the_text(llmlingua):
    text = passages(1)[0].context
    letters, left = iter(text), llmlingua.compress(text, 0.5)
    assert len(left) < 0.8 * len(text)
    assert all(letter in letters for letter in left)


def test_a_question_changes_what_is_left(llmlingua, token_ids):
    passage = passages(1)[0]
    kept = {
        question: fit_budget(
            lambda rate, question=question: llmlingua.compress(passage.context, rate, question),
            token_ids,
            passage.context,
            30,
        ).ids
        for question in ("", passage.facts[0].question, passage.facts[1].question)
    }
    assert len({tuple(ids) for ids in kept.values()}) == 3


@pytest.mark.parametrize(
    ("kind", "folder"), [(LLMLingua, "model_folder"), (LLMLingua2, "classifier_folder")]
)
def test_remembering_a_text_changes_nothing(request, kind, folder, receiver):
    def opened():
        return kind(str(request.getfixturevalue(folder)), None, receiver.tokenizer, "cpu")

    one, other = (passage.context for passage in passages(2))
    asked = [(one, 0.2), (one, 0.5), (other, 0.5), (one, 0.8)]
    fresh = [opened().compress(text, rate) for text, rate in asked]
    remembering = opened()
    assert [remembering.compress(text, rate) for text, rate in asked] == fresh
    assert len(set(fresh)) == len(asked)


@pytest.mark.parametrize("name", ["llmlingua", "llmlingua2"])
def test_texts_that_were_read_together_are_left_the_same_and_read_once(request, name, monkeypatch):
    compressor = request.getfixturevalue(name)
    texts = ["\u4e00", *(passage.context for passage in passages(3)), "The end."]
    questions = ["", "", passages(3)[1].facts[0].question, "", "Where?"]

    def left():
        return [
            [compressor.compress(text, rate, question) for rate in (0.2, 0.5)]
            for text, question in zip(texts, questions, strict=True)
        ]

    alone = left()
    compressor.read_ahead(texts, questions)
    monkeypatch.setattr(compressor._model, "_model", None)
    assert left() == alone


def test_what_is_left_is_what_the_package_leaves_where_it_works():
    repository = Path(__file__).parents[2]
    bundled = repository / "resources/receivers/llama"
    counter = open_tokenizer(str(bundled), None)
    causal, classifier = (
        kind(str(folder), None, counter, "cpu")
        for kind, folder in (
            (LLMLingua, bundled),
            (LLMLingua2, repository / "tests/goldens/classifier"),
        )
    )
    goldens = json.loads((repository / "tests/goldens/llmlingua.json").read_text())
    assert goldens["transformers"].startswith("4.46")
    for golden in goldens["records"]:
        text, rate = golden["text"], golden["rate"]
        left = {
            "llmlingua": causal.compress(text, rate),
            "llmlingua_question": causal.compress(text, rate, golden["question"]),
            "llmlingua2": classifier.compress(text, rate),
        }
        assert left == {name: golden[name] for name in left}


def test_no_network_and_no_trace_in_global_random_streams(
    monkeypatch, model_folder, classifier_folder, receiver
):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for kind, folder in ((LLMLingua, model_folder), (LLMLingua2, classifier_folder)):
        kind(str(folder), None, receiver.tokenizer, "cpu").compress(CONTEXT, 0.5)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert not torch.backends.cudnn.deterministic


CONTEXT = "Ada was born in Ashford. Bo works for Amber Bank. The pet of Ada is a dog."


def test_text_that_the_classifier_cannot_read_falls_back_to_its_head(llmlingua2, token_ids):
    text = "日本語の文章です。" * 4
    left = fit_budget(partial(llmlingua2.compress, text), token_ids, text, 8)
    assert left.fell_back
    assert left.ids == token_ids(text)[:8]


def test_a_text_within_its_budget_stays_whole(token_ids):
    left = fit_budget(lambda _: "nothing", token_ids, CONTEXT, 1000)
    assert left.ids == token_ids(CONTEXT)


def test_a_budget_of_nothing_is_refused(token_ids):
    with pytest.raises(ValueError, match="at least one is needed"):
        fit_budget(lambda _: "", token_ids, CONTEXT, 0)


@pytest.mark.parametrize("kind", [LLMLingua, LLMLingua2])
def test_a_folder_without_weights_is_told_with_the_fix(kind, tmp_path, receiver):
    with pytest.raises(UserError, match=r"cannot load the compressor [\s\S]* model\.safetensors"):
        kind(str(tmp_path), None, receiver.tokenizer, "cpu")


def test_the_tokenizer_of_the_same_texts_is_the_same():
    texts = [CONTEXT, CONTEXT.lower(), CONTEXT[::-1]]
    vocabularies = [make_tokenizer(texts).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_labels_keep_the_words_of_questions_and_answers_but_function_words():
    example = Example("1", "p", CONTEXT, "Where was Ada born?", ["Ashford"], "all")
    tokenizer = make_tokenizer([CONTEXT] * 20)
    labelled = label_passage(tokenizer, [example])
    kept = [i for i, label in zip(labelled.ids, labelled.labels, strict=True) if label == 1]
    assert tokenizer.decode(kept) == "Ada born Ashford Ada"
    ends = [labelled.labels[0], labelled.labels[-1]]
    assert ends == [-100, -100]


def test_the_classifier_learns_which_words_are_asked_for(tmp_path, receiver):
    experiment = Experiment(
        data=PocketData(train_passages=200, dev_passages=10, test_passages=10),
        baselines=Baselines(steps=60, passages_per_step=16),
    )
    layout = Layout("pocket", tmp_path)
    corpus = read_pocket(experiment.data)
    for split in ("train", "dev"):
        examples = [example for article in getattr(corpus, split) for example in article]
        write_examples(layout.split(split), examples)
    train_compressor(experiment, layout)
    last = json.loads((layout.compressor / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["dev/accuracy"] > last["dev/majority"] + 0.1
    assert not layout.state("compressor").exists()
    compressor = open_compressor(experiment, layout, "llmlingua2", receiver)
    left = compressor.compress(CONTEXT, 0.5)
    assert all(name in left for name in ("Ashford", "Amber Bank", "dog"))
    assert not any(word in left for word in (" was ", " for ", "The "))
