"""The linear probe: a planted signal is found, without ever holding all states."""

import json
import tracemalloc

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from samples import make_receiver

from latentwire.baselines.probe import LinearProbe, probe
from latentwire.config import Experiment, HubProbe, PocketData, PocketProbe
from latentwire.data.classification import read_classification
from latentwire.data.hub_source import load_at_revision
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import Example, write_examples
from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.receivers.build import build_receiver
from latentwire.receivers.states import pooled_states


def planted(num_states, width, strength, seed=0):
    """Gaussian states whose mean along one direction tells three labels apart."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(7).standard_normal(width)
    labels = rng.integers(3, size=num_states)
    states = rng.standard_normal((num_states, width))
    states += strength * np.outer(labels - 1, direction / np.linalg.norm(direction))
    return states.astype(np.float32), np.array(["low", "middle", "high"])[labels]


def test_a_planted_signal_is_found_and_shuffled_labels_are_not():
    states, labels = planted(3000, 64, strength=6)
    groups = [str(number // 2) for number in range(len(labels))]
    own = LinearProbe(components=16, folds=3, seed=1).fit(states, labels, groups)
    new_states, new_labels = planted(1000, 64, strength=6, seed=1)
    assert (own.predict(new_states) == new_labels).mean() > 0.95
    shuffled = np.random.default_rng(1).permutation(labels)
    control = LinearProbe(components=16, folds=3, seed=1).fit(states, shuffled, groups)
    assert (control.predict(new_states) == new_labels).mean() < 0.45


def test_states_are_read_batch_by_batch(tmp_path):
    states, labels = planted(20_000, 256, strength=6)
    np.save(tmp_path / "states.npy", states)
    whole = states.nbytes
    del states
    mapped = np.load(tmp_path / "states.npy", mmap_mode="r")
    tracemalloc.start()
    groups = [str(number) for number in range(len(labels))]
    own = LinearProbe(components=8, folds=2, seed=1).fit(mapped, labels, groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert own.predict(mapped[:9]).shape == (9,)
    assert peak < 0.9 * whole


def test_states_are_those_of_the_prompt_alone():
    sender = make_receiver("llama")
    examples = [
        Example("1", "a", "Ada keeps a dog.", "What pet does Ada keep?", ["dog"], "t"),
        Example("2", "b", "Bo, who was born in Ashford, keeps a cat.", "Which?", ["cat"], "t"),
    ]
    together = pooled_states(sender, examples, [0, 2])
    for place, example in enumerate(examples):
        (source,) = sender.prompt.source_ids([example.context])
        (question,) = sender.prompt.question_ids([example.question])
        head = list(sender.prompt.head_ids)
        output = sender.model.model(
            torch.tensor([[*head, *source, *question]]), output_hidden_states=True
        )
        for layer in (0, 2):
            hidden = output.hidden_states[layer][0]
            expected = hidden[len(head) : len(head) + len(source)].mean(0)
            torch.testing.assert_close(together[layer, "last"][place], hidden[-1])
            torch.testing.assert_close(together[layer, "mean"][place], expected)


def write_splits(layout, data):
    corpus = read_pocket(data)
    for split, articles in (("train", corpus.train), ("dev", corpus.dev), ("test", corpus.test)):
        write_examples(layout.split(split), [own for article in articles for own in article])


def test_a_pocket_view_holds_one_attribute(tmp_path):
    layout = Layout("view", tmp_path)
    write_splits(layout, PocketData(train_passages=60, dev_passages=4, test_passages=6))
    settings = PocketProbe(attribute="instrument", max_train_examples=20)
    splits = read_classification(settings, layout)
    assert len(splits["train"]) == 20
    for example in (own for examples in splits.values() for own in examples):
        assert "instrument" in example.question or "music" in example.question
        assert example.answers[0] in example.context


def test_a_single_label_in_training_is_refused(tmp_path):
    layout = Layout("view", tmp_path)
    write_splits(layout, PocketData(train_passages=60, dev_passages=4, test_passages=6))
    with pytest.raises(UserError, match=r"probe\.max_train_examples: too few for two labels"):
        read_classification(PocketProbe(max_train_examples=1), layout)


def test_a_bundled_receiver_holds_the_answer_where_it_answers(tmp_path):
    data = PocketData(train_passages=300, dev_passages=10, test_passages=10)
    settings = PocketProbe(layers=[0, 4], components=64)
    experiment = Experiment(experiment="probe", data=data, probe=settings)
    layout = Layout("probe", tmp_path)
    build_receiver(experiment, layout, "llama")
    write_splits(layout, data)
    probe(experiment, layout, "llama")
    rows = pq.read_table(layout.probe("llama")).to_pylist()
    accuracy = {
        name: np.mean([row[name] == row["label"] for row in rows])
        for name in ("linear_probe", "shuffled_labels", "majority", "sender_label")
    }
    assert accuracy["linear_probe"] > 0.7
    assert accuracy["sender_label"] > 0.9
    assert max(accuracy["shuffled_labels"], accuracy["majority"]) < 0.4
    record = json.loads(layout.probe("llama").with_suffix(".json").read_text())
    assert record["chosen"] == {"layer": 4, "pooling": "last"}
    assert [(own["layer"], own["pooling"]) for own in record["tried"]] == [
        (0, "mean"),
        (4, "last"),
        (4, "mean"),
    ]
    assert record["label_bytes"] == 1
    assert not [path for path in layout.probe("llama").parent.iterdir() if path.is_dir()]
    wrong = experiment.model_copy(update={"probe": PocketProbe(layers=[5])})
    with pytest.raises(UserError, match=r"probe\.layers: 5 is no layer of 'llama'.*to 4"):
        probe(wrong, layout, "llama")


def test_a_dataset_of_the_hub_becomes_examples(tmp_path, monkeypatch):
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )

    def split(count):
        rows = {
            "sentence": [f"text {n}" for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        return datasets.Dataset.from_dict(rows, features)

    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.DatasetDict(train=split(40), validation=split(6), test=split(3))

    monkeypatch.setattr(datasets, "load_dataset", load)
    settings = HubProbe(dataset="sst2", revision="0" * 40, max_train_examples=30)
    splits = read_classification(settings, Layout("hub", tmp_path))
    assert asked == [(("stanfordnlp/sst2", None), {"revision": "0" * 40})]
    assert {split: len(own) for split, own in splits.items()} == {
        "train": 30,
        "dev": 4,
        "test": 6,
    }
    assert [own.answers for own in splits["test"][:2]] == [["negative"], ["positive"]]
    assert not {e.context for e in splits["train"]} & {e.context for e in splits["dev"]}


def test_an_unreachable_dataset_says_how_to_get_it(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"probe: cannot load fancyzhx/ag_news(.|\n)*HF_HOME"):
        load_at_revision("fancyzhx/ag_news", None, "0" * 40, "probe")
