"""Wires that read the hidden states of senders."""

import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch
from samples import make_receiver
from tiny import EXPERIMENT, prepare_tiny

from latentwire.config import Experiment, Variant
from latentwire.errors import UserError
from latentwire.evaluation.evaluate import evaluate_wire
from latentwire.evaluation.predictions import read_predictions
from latentwire.receivers.loading import load_receiver
from latentwire.receivers.states import token_states
from latentwire.training import features
from latentwire.training.features import FeatureCache
from latentwire.training.wire import WireTask, make_wire, train_wire
from latentwire.wire.latent_receiver import open_receiver
from latentwire.wire.sender_input import SenderInput
from latentwire.wire.wire import Wire

TEXTS = ["Ada has a cat. Bo has a dog.", "Cleo lives in Rome."]


def telepathy(
    method: str,
    senders: list[str],
    setting: str = "blind",
    changes: dict | None = None,
    layer: int = 1,
) -> Experiment:
    name = f"telepathy-{'-'.join(senders)}-layer{layer}-{setting}"
    wire = {
        "receivers": ["llama", "qwen"],
        "senders": {"names": senders, "layers": [layer]},
        "source_mode": "prompt" if setting == "informed" else "context",
        **(changes or {}),
    }
    variants = [Variant(name=name, method=method, wire=wire)]
    whole = Experiment.model_validate(EXPERIMENT.model_dump() | {"variants": variants})
    return whole.of_wire(name)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("results"))


def test_a_wire_starts_from_how_another_reads_the_same_states(layout):
    def make(*arguments, **options):
        experiment = telepathy(*arguments, **options)
        receivers = [load_receiver(experiment, layout, r.name) for r in experiment.readers]
        return make_wire(experiment, layout, receivers, 1)

    def reading(wire, sender):
        inputs = dict(zip(wire.senders, wire.sender_inputs, strict=True))
        return inputs[sender].project.weight

    hub = make("telepathy_hub", ["llama", "qwen"])
    for parameter in hub.parameters():
        parameter.data += 0.1
    for layer, is_taken in ((1, True), (0, False)):
        informed = make("telepathy_informed", ["qwen"], "informed", layer=layer)
        fitted = reading(informed, "qwen").clone()
        informed.take_weights(hub)
        assert torch.equal(reading(informed, "qwen"), reading(hub, "qwen") if is_taken else fitted)
        assert torch.equal(informed.encoder.project.weight, hub.encoder.project.weight)


def test_states_are_those_of_the_layers_and_of_nothing_behind_the_source():
    sender = make_receiver("llama")
    # In float32 rounding alone reaches the bound on some processors.
    sender.model.double()
    ids = sender.prompt.source_ids(TEXTS)
    row = torch.tensor([[*sender.prompt.head_ids, *ids[1]]])
    with torch.no_grad():
        whole = sender.model.model(input_ids=row, output_hidden_states=True).hidden_states
    # transformers leaves hooks of its own.
    hooks = [len(layer._forward_hooks) for layer in sender.model.model.layers]
    states = token_states(sender, ids, [0, 1])
    head = len(sender.prompt.head_ids)
    for place, layer in enumerate([0, 1]):
        expected = whole[layer][0, head:].to(states.dtype)
        torch.testing.assert_close(states[1, : len(ids[1]), place], expected)
    assert not states[1, len(ids[1]) :].any()
    # What is noted leaves the model as it was.
    assert sender.model.config.num_hidden_layers == len(sender.model.model.layers)
    assert hooks == [len(layer._forward_hooks) for layer in sender.model.model.layers]


def test_a_massive_channel_and_a_massive_token_leave_the_other_features_alone():
    torch.manual_seed(1)
    states = torch.randn(400, 1, 16) * torch.linspace(0.1, 3, 16)
    embeddings = torch.randn(400, 8)
    massive = states.clone()
    massive[:, :, 3] *= 1000
    plain, grown, spiked = (SenderInput(1, 16, 8, 4) for _ in range(3))
    plain.fit(states, embeddings)
    grown.fit(massive, embeddings)
    expected = plain.standardise(states)
    torch.testing.assert_close(grown.standardise(massive), expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(grown(expected), plain(expected), atol=1e-2, rtol=1e-2)
    massive = states.clone()
    massive[::100, :, 3] = 1e6
    spiked.fit(massive, embeddings)
    rest = torch.arange(400) % 100 != 0
    torch.testing.assert_close(
        spiked.standardise(massive)[rest], expected[rest], atol=0.15, rtol=0.1
    )
    assert spiked.standardise(massive).isfinite().all()


def test_a_sender_input_starts_as_the_linear_map_to_the_embeddings():
    torch.manual_seed(1)
    states = torch.randn(300, 1, 12)
    embeddings = states[:, 0] @ torch.randn(12, 5) + 2
    own = SenderInput(1, 12, 5, 4)
    own.fit(states, embeddings)
    torch.testing.assert_close(own(own.standardise(states[None]))[0], embeddings, atol=0.1, rtol=0)


def test_what_no_layer_tells_alone_is_read_from_several():
    torch.manual_seed(1)
    first, second = torch.randn(2, 300, 6)
    states = torch.stack([first, second], dim=1)
    embeddings = torch.cat([first, second], dim=1) @ torch.randn(12, 5)
    own = SenderInput(2, 6, 5, 4)
    own.fit(states, embeddings)
    torch.testing.assert_close(own(own.standardise(states[None]))[0], embeddings, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("method", "senders", "setting"),
    [
        ("telepathy", ["qwen"], "blind"),
        ("telepathy_hub", ["llama", "qwen"], "blind"),
        ("telepathy_informed", ["llama"], "informed"),
    ],
)
def test_a_wire_is_trained_from_senders_and_asked_from_each(layout, method, senders, setting):
    experiment = telepathy(method, senders, setting)
    name = experiment.wire.name
    train_wire(experiment, layout, 1)
    evaluate_wire(experiment, layout, 1)
    for receiver in ("llama", "qwen"):
        rows = read_predictions(layout.predictions(method, receiver, name, 1))
        assert set(rows["sender"].to_pylist()) == set(senders)
        assert len(rows) % len(senders) == 0
        assert set(rows["question_aware"].to_pylist()) == {setting == "informed"}
    wire = Wire.from_pretrained(layout.wire(name, 1))
    asked = {"questions": ["Who?"] * 2} if setting == "informed" else {}
    messages = [wire.encode(TEXTS, 4, sender=sender, **asked) for sender in senders]
    if len(senders) > 1:
        assert not torch.equal(messages[0][0].values, messages[1][0].values)
        with pytest.raises(UserError, match=r"\['llama', 'qwen'\]: name one"):
            wire.encode(TEXTS, 4)
    # A receiver reads what any sender's message says, without encoder, sender or text.
    reader = open_receiver(layout.wire(name, 1), "llama")
    for message in messages:
        reader.answer(message, None if asked else ["Who?", "Who?"])


def test_a_receiver_never_sees_the_passage(layout, monkeypatch):
    """Nothing that a receiver reads depends on the text but through the message."""
    experiment = telepathy("telepathy", ["qwen"])
    train_wire(experiment, layout, 1)
    wire = Wire.from_pretrained(layout.wire(experiment.wire.name, 1))
    reader = wire.receiver("llama")
    (message,) = wire.encode(TEXTS[:1], 4)
    expected = reader.answer(message, ["Who?"])
    monkeypatch.setattr(Wire, "encode", None)
    monkeypatch.setattr(wire.sender("qwen").model, "forward", None)
    assert reader.answer(message, ["Who?"]) == expected
    num_read = reader.inputs_embeds(message, ["Who?"]).inputs_embeds.shape[1]
    prompt = reader.receiver.prompt
    own = len(prompt.head_ids) + len(prompt.question_ids(["Who?"])[0])
    assert num_read == own + len(message.values)


def test_the_senders_weights_stay_and_are_not_saved(layout):
    experiment = telepathy("telepathy", ["qwen"])
    wire = make_wire(experiment, layout, [], 1)
    assert not any("lm_head" in key for key in wire.state_dict())
    assert wire.sender().model.training is False
    assert not any(weight.requires_grad for weight in wire.sender().model.parameters())


def test_training_reads_the_same_features_with_a_cache_and_without(layout):
    kept, anew = (
        telepathy(
            "telepathy",
            ["qwen"],
            changes={"senders": {"names": ["qwen"], "layers": [1], **more}},
        )
        for more in ({"cache_gigabytes": 1}, {})
    )
    losses = []
    for experiment in (kept, anew):
        torch.manual_seed(1)
        receivers = [make_receiver("llama")]
        wire = make_wire(experiment, layout, receivers, 1)
        task = WireTask(experiment, layout, wire, receivers, 1)
        losses.append([task.losses(step)[0]["loss"].item() for step in range(3)])
    assert losses[0] == losses[1]
    assert list(layout.features.glob("*.safetensors"))


SOURCES = [[1, 2, 3], [4], [5, 6], [7, 8], [9]]
FEATURE_BYTES = 2 * 3 * 4


def compute(sources, calls=None):
    if calls is not None:
        calls.append(sources)
    ids = torch.tensor(sources, dtype=torch.float16)
    return ids[:, :, None, None].expand(-1, -1, 3, 4).contiguous()


def make_cache(folder: Path, max_bytes: int = 10**6, key: str = "k", calls=None) -> FeatureCache:
    return FeatureCache(folder, max_bytes, SOURCES, partial(compute, calls=calls), key)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "SOURCES_PER_SHARD", 2)


def assert_right(cache: FeatureCache) -> None:
    order = [4, 0, 3, 1, 2]
    for index, own in zip(order, cache.read(order), strict=True):
        assert torch.equal(own, compute([SOURCES[index]])[0])


@pytest.mark.usefixtures("small_shards")
def test_features_are_computed_once(tmp_path):
    assert_right(make_cache(tmp_path))
    calls = []
    assert_right(make_cache(tmp_path, calls=calls))
    assert not calls


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-3], lambda raw: raw[:-1] + b"\x01", lambda raw: b""]
)
def test_a_damaged_shard_is_computed_again(tmp_path, damage, caplog):
    assert_right(make_cache(tmp_path))
    path = max(tmp_path.glob("*.safetensors"))
    path.write_bytes(damage(path.read_bytes()))
    assert_right(make_cache(tmp_path))
    assert "is damaged" in caplog.text
    calls = []
    assert_right(make_cache(tmp_path, calls=calls))
    assert not calls


@pytest.mark.usefixtures("small_shards")
def test_the_bound_holds_and_others_make_way(tmp_path):
    def used() -> int:
        return sum(path.stat().st_size for path in tmp_path.iterdir())

    assert_right(make_cache(tmp_path))
    whole = used()
    most = whole + whole // 2
    assert_right(make_cache(tmp_path, most, "other"))
    assert used() <= most
    calls = []
    assert_right(make_cache(tmp_path, most, "other", calls))
    assert not calls
    # A list that does not fit keeps what fits, and is right all the same.
    assert_right(make_cache(tmp_path, whole // 2, "third"))
    assert used() <= whole // 2
    assert_right(make_cache(tmp_path / "none", 0))
    assert not (tmp_path / "none").exists()


def _fill(folder: Path, key: str, most: int) -> None:
    features.SOURCES_PER_SHARD = 2
    assert_right(make_cache(folder, most, key))


def test_two_writers_leave_whole_shards_below_the_bound(tmp_path):
    context = multiprocessing.get_context("fork")
    most = 2500
    writers = [
        context.Process(target=_fill, args=(tmp_path, key, most)) for key in ("a", "a", "b", "b")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"senders": {"names": ["gpt"], "layers": [1]}}, "'gpt' is no receiver"),
        ({"senders": {"names": ["qwen"], "layers": [1, 1]}}, "occurs twice"),
        ({"senders": {"names": ["qwen", "llama"], "layers": [1]}}, "give 'telepathy_hub'"),
        ({"source_mode": "prompt"}, "give 'telepathy_informed'"),
        ({"senders": {"names": ["qwen"], "layers": [0]}}, "telepathy-qwen-layer0-blind"),
        ({"senders": None}, "needs wire.senders"),
    ],
)
def test_senders_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        telepathy("telepathy", ["qwen"], changes=change)


def test_a_layer_that_a_sender_lacks_is_refused(layout):
    experiment = telepathy("telepathy", ["qwen"])
    senders = experiment.wire.senders.model_copy(update={"layers": [9]})
    wire = experiment.wire.model_copy(update={"senders": senders})
    with pytest.raises(UserError, match=r"wire.senders.layers: 9 is no layer of 'qwen'"):
        make_wire(experiment.model_copy(update={"wire": wire}), layout, [], 1)
