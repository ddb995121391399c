"""What `plan` says of a training, against numbers worked out by hand and against real trainings."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from latentwire import cli
from latentwire.config import Experiment, PocketData, Receiver, Training
from latentwire.config import Wire as WireConfig
from latentwire.configuration import load_experiment
from latentwire.data.prepare import prepare
from latentwire.errors import UserError
from latentwire.files import write_json
from latentwire.fingerprint import PACKAGE
from latentwire.layout import Layout
from latentwire.planning import models, plan
from latentwire.planning.cost import (
    ModelShape,
    StepWork,
    WireShape,
    Work,
    model_flops,
    newton_schulz_flops,
    optimiser_bytes,
    state_bytes,
    step_flops,
)
from latentwire.planning.lengths import expected_lengths
from latentwire.planning.memory import LiveBytes, step_memory
from latentwire.planning.models import build_models
from latentwire.planning.steps import ReadingShape, StepShape
from latentwire.planning.training import Memory, plan_training
from latentwire.receivers.build import build_receiver
from latentwire.receivers.loading import load_receiver
from latentwire.training import wire
from latentwire.training.wire import WireTask, make_wire

# Public shapes.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
SHAPES = {
    "llama-3.1-8b": LLAMA,
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    },
    "meta-llama/Llama-3.2-1B@4e20de362430cd3b72f300e6b0f18e50e7166e08": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
}


def test_operations_are_those_that_a_pencil_finds():
    # A layer of 10 weights, 6 of its MLP, heads of width 4, an embedding of width 3 and 7 tokens.
    shape = ModelShape(10, 1, attention_dim=4, hidden_size=3, vocabulary=7, ending_parameters=6)
    # Two rows of 5 and 3 positions, one of which is predicted at.
    work = Work(tokens=8, squares=25 + 9, predictions=1)
    weights, attention = 2 * (4 * 8 + 6 + 3 * 7), 2 * 2 * 4 * 34
    assert model_flops(shape, work, passes=1) == weights + attention
    assert model_flops(shape, work, passes=2) == 2 * weights + 3 * attention
    assert model_flops(shape, work, passes=3) == 3 * weights + 3 * attention


def test_a_step_has_an_encoder_students_and_teachers():
    shape = ModelShape(10, 1, 4, 3)
    wire = WireShape(shape, 3, latent_parameters=5, receivers={"a": shape, "b": shape})
    read, text = Work(8, 34), Work(20, 200)
    work = StepWork(read, 4, {"a": read, "b": read}, {"a": text, "b": text})
    settings = Training(steps=1, checkpoint_activations=True)
    flops = step_flops(wire, work, settings)
    assert flops == {
        "encoder": model_flops(shape, read, 3),
        "adapters": 6 * 5 * 4,
        "receivers": 2 * model_flops(shape, read, 2),
        "teachers": 2 * model_flops(shape, text, 1),
    }
    again = step_flops(wire, work, settings, with_repetition=True)
    forward = model_flops(shape, read, 1)
    assert again["encoder"] - flops["encoder"] == forward
    assert again["receivers"] - flops["receivers"] == 2 * forward
    one = settings.model_copy(update={"receivers_per_step": "one", "kl_weight": 0.0})
    assert step_flops(wire, work, one)["receivers"] == flops["receivers"] / 2
    assert step_flops(wire, work, one)["teachers"] == 0


def test_optimiser_state_and_saves():
    # Muon keeps a momentum of 100 matrix entries, AdamW two moments of 7 others; 4 bytes each.
    assert optimiser_bytes(100, 7) == 4 * (100 + 14)
    assert state_bytes(100, 7) == 4 * (107 + 114)
    # 2 x 3: five times gram (2*2*3*2), its square (2*2*2*2), and the update (2*2*2*3).
    assert newton_schulz_flops(3, 2) == newton_schulz_flops(2, 3) == 5 * (24 + 16 + 24)


def test_activations_are_gone_when_the_optimiser_begins():
    memory = Memory(*[0] * 15)
    weights = replace(memory, receivers=1, senders=7, wire=2)
    held = replace(weights, optimiser=3, saving=4, passages=5, cuda=6)
    assert held.held == 28
    assert replace(held, step=10, gradients=3, updates=2).peak == 38
    assert replace(held, step=4, gradients=3, updates=2).peak == 33
    assert replace(held, step=10, gradients=3, kept_gradients=6, updates=2).peak == 44


@pytest.fixture
def shapes(tmp_path):
    folder = tmp_path / "shapes"
    paths = {name: folder / f"{number}.json" for number, name in enumerate(SHAPES)}
    for name, path in paths.items():
        write_json(path, SHAPES[name])
    return paths


def squad(**training):
    experiment = load_experiment(PACKAGE.parent / "config" / "squad.yaml")
    changed = experiment.training.model_copy(update=training)
    return experiment.model_copy(update={"training": changed})


def test_full_size_models_are_planned_from_their_configurations_alone(tmp_path, shapes):
    training = plan_training(squad(), Layout("squad", tmp_path), "shared", shapes)
    # As their model cards have them.
    assert training.parameters["llama-3.1-8b"] == 8_030_261_248
    assert training.parameters["qwen2.5-7b"] == 7_615_616_512
    backbone = 1_235_814_400
    assert training.parameters["encoder"] == backbone + 2048 * 2048 + 2048
    memory = training.memory
    assert memory.receivers == 2 * (8_030_261_248 + 7_615_616_512)
    assert memory.gradients == 4 * training.parameters["trained"]
    # All but the embedding and the vectors are matrices, and have one number for each weight.
    assert memory.gradients < memory.optimiser < 1.25 * memory.gradients
    assert training.state_bytes == memory.gradients + memory.optimiser
    assert training.num_steps is None
    assert "no data" in training.lengths
    # 16 passages of 1,024 tokens: 6 operations for each weight, and attention.
    weights = backbone - 128256 * 2048
    attention = 12 * 16 * 2048 * 1024
    assert training.flops["encoder"] == pytest.approx(16 * 1024 * (6 * weights + attention))


def test_layers_that_are_shared_out_take_a_share_and_what_is_gathered(tmp_path, shapes):
    whole, shared = (
        plan_training(squad(shard_receivers=shard), Layout("squad", tmp_path), "shared", shapes, 4)
        for shard in (False, True)
    )
    whole, shared = whole.memory.receivers, shared.memory.receivers
    # Embeddings and heads stay whole.
    rest = 2 * (2 * 128256 * 4096 + 4096 + 2 * 152064 * 3584 + 3584)
    layers = whole - rest
    assert shared == pytest.approx(rest + layers / 4 + layers / 30, rel=0.01)


def test_receivers_are_to_be_shared_out_or_quantised_not_both(tmp_path, shapes):
    memory = plan_training(squad(), Layout("squad", tmp_path), "shared", shapes).memory
    either, shared = (
        " ".join(plan._changes(squad(shard_receivers=shard), memory, memory.peak // 2))
        for shard in (False, True)
    )
    assert "shard_receivers" in either
    assert "receivers.1.dtype: int8" in either
    assert "int8" not in shared
    experiment = squad()
    halved = [own.model_copy(update={"dtype": "int8"}) for own in experiment.receivers]
    experiment = experiment.model_copy(update={"receivers": halved})
    further = " ".join(plan._changes(experiment, memory, memory.peak // 2))
    assert "receivers.1.dtype: nf4" in further
    assert "shard_receivers" not in further


def test_checkpointing_keeps_the_input_of_each_layer(tmp_path, shapes):
    readings = dict.fromkeys(("llama-3.1-8b", "qwen2.5-7b"), ReadingShape(10, 90, 20, 20, 8, 180))
    shape = StepShape(rows=2, source=100, latents=25, readings=readings)
    kept = {}
    for checkpoint in (False, True):
        experiment = squad(checkpoint_activations=checkpoint, receivers_per_step="one")
        with FakeTensorMode():
            made = build_models(experiment, Layout("squad", tmp_path), "shared", shapes)
            kept[checkpoint] = step_memory(made, experiment, shape)
    assert kept[True].receivers < kept[False].receivers / 4
    # 32 inputs of 2 x (10 + 25 + 20) positions and 4,096 entries in bfloat16, and the logits.
    inputs = 32 * 2 * 55 * 4096 * 2
    # The weights of the adapter that come before, in bfloat16, and logits behind.
    adapter = 2 * (2048 * 8192 + 8192 * 4096)
    logits = 4 * 8 * 128256
    assert inputs + adapter < kept[True].receivers < inputs + adapter + 8 * logits
    # 16 inputs of the encoder, whose embeddings are float32.
    assert kept[True].encoder > 16 * 2 * 100 * 2048 * 4


def test_a_model_that_cannot_be_read_is_named_with_the_ways_out(tmp_path, monkeypatch, shapes):
    def unreachable(*_, **__):
        raise OSError("no route to the hub")

    del shapes["qwen2.5-7b"]
    monkeypatch.setattr(models.AutoConfig, "from_pretrained", _only_files(unreachable))
    with pytest.raises(UserError, match=r"'qwen2.5-7b'(.|\n)*a09a354(.|\n)*no route(.|\n)*--shape"):
        plan_training(squad(), Layout("squad", tmp_path), "shared", shapes)


def _only_files(otherwise):
    read = models.AutoConfig.from_pretrained
    return lambda place, **more: (read if Path(place).exists() else otherwise)(place, **more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A pocket experiment with receivers and data, so small that a training step takes no time."""
    experiment = Experiment(
        experiment="tiny",
        threads=1,
        data=PocketData(train_passages=9, dev_passages=2, test_passages=2),
        receivers=[Receiver(name=name, source="bundled") for name in ("llama", "qwen")],
        wire=WireConfig(latent_dim=32),
        training=Training(steps=3, passages_per_step=3),
    )
    layout = Layout("tiny", tmp_path_factory.mktemp("plan"))
    for receiver in experiment.receivers:
        build_receiver(experiment, layout, receiver.name)
    prepare(experiment, layout)
    return experiment, layout


def make_task(experiment, layout):
    receivers = [load_receiver(experiment, layout, r.name) for r in experiment.readers]
    return WireTask(experiment, layout, make_wire(experiment, layout, receivers, 1), receivers, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpoint_activations": True, "guard_weight": 0.1},
        {"teacher_top_k": 4},
        {"precision": "bfloat16", "kl_weight": 0.0},
        {"text_steps": 3, "repeat_share": 1.0, "max_questions_per_passage": 1, "kl_weight": 0.0},
    ],
)
def test_a_real_step_takes_the_memory_that_was_planned(prepared, changes):
    experiment, layout = prepared
    settings = experiment.training.model_copy(update=changes)
    experiment = experiment.model_copy(update={"training": settings})
    task = make_task(experiment, layout)
    batches = [task.order.batch(step)[1] for step in range(task.num_steps)]
    largest = max(range(task.num_steps), key=lambda step: _size(task, batches[step]))
    with LiveBytes() as live:
        live.peak = weights = live.watch(task.module, *(r.model for r in task._receivers))
        task.losses(largest)[0]["loss"].backward()
    planned = plan_training(experiment, layout, "shared", {}).memory.step
    assert planned == pytest.approx(live.peak - weights, rel=0.1)


def _size(task, batch):
    return len(batch) * max(task._passages[None][index].num_tokens for index in batch)


def test_lengths_are_about_those_of_the_tokens(prepared):
    experiment, layout = prepared
    lengths, passages = (
        expected_lengths(experiment, layout, "shared"),
        make_task(*prepared)._passages[None],
    )
    assert lengths.source.sum() == pytest.approx(
        sum(len(p.encoder_ids) for p in passages), rel=0.05
    )
    for name, reading in lengths.readings.items():
        asked = sum(len(q) + len(a) for p in passages for q, a in p.questions[name])
        assert reading.asked.sum() == pytest.approx(asked, rel=0.2)
        targets = sum(len(answer) for p in passages for _, answer in p.questions[name])
        assert reading.targets.sum() == pytest.approx(targets, rel=0.3)
    costs = sum(passage.num_tokens for passage in passages)
    assert lengths.cost.sum() == pytest.approx(costs, rel=0.15)


def test_senders_are_counted_beside_receivers(tmp_path):
    experiment = load_experiment(PACKAGE.parent / "config" / "pocket-full.yaml")
    hub, single = (
        plan_training(experiment, Layout("pocket-full", tmp_path), wire, {}).memory
        for wire in ("telepathy-llama-qwen-layer1-2-3-blind", "telepathy-llama-layer1-2-3-blind")
    )
    # Both receivers are senders as well, loaded by themselves.
    assert hub.senders == hub.receivers == single.receivers
    assert 0 < single.senders < hub.senders


def test_further_wires_are_planned_as_they_will_be_trained(tmp_path):
    experiment = load_experiment(PACKAGE.parent / "config" / "pocket-full.yaml")
    plans = {
        wire: plan_training(experiment, Layout("pocket-full", tmp_path), wire, {})
        for wire in ("shared", "adapted", "prompted")
    }
    shared, adapted = plans["shared"].parameters, plans["adapted"].parameters
    assert shared["trained"] == shared["encoder"] + shared["adapters"]
    # The encoder is frozen, and nothing comes back through it.
    assert adapted["trained"] == adapted["adapters"]
    kept = {name: own.memory.encoder_activations for name, own in plans.items()}
    assert kept["adapted"] < kept["shared"] / 20
    assert {"gemma"} == adapted.keys() - {"encoder", "adapters", "trained"}
    steps = {variant.name: variant.training.get("steps") for variant in experiment.variants}
    assert plans["prompted"].num_steps == steps["prompted"] != plans["shared"].num_steps


def test_updates_of_low_rank_are_all_that_is_trained_of_an_encoder(tmp_path):
    ablations = load_experiment(PACKAGE.parent / "config" / "ablations.yaml")
    whole, low_rank = (
        plan_training(ablations, Layout("ablations", tmp_path), wire, {})
        for wire in ("shared", "lora-16")
    )
    adapters = low_rank.parameters["adapters"]
    assert whole.parameters["adapters"] == adapters
    # Two matrices for each of a layer's seven, of 160 and 432 rows and columns.
    updates = 4 * 16 * (4 * (160 + 160) + 3 * (160 + 432))
    projection = low_rank.parameters["trained"] - adapters - updates
    assert 0 < projection < whole.parameters["encoder"] / 5
    assert low_rank.memory.optimiser < whole.memory.optimiser


def run(capsys, layout, *arguments):
    options = ["--config", str(PACKAGE.parent / "config" / "config.yaml")]
    options += ["--experiment", layout.experiment, "--results", str(layout.results)]
    code = cli.main([*arguments[:1], *options, *arguments[1:]])
    return code, *capsys.readouterr()


def test_the_verb_tells_what_a_training_takes(capsys, prepared):
    _, layout = prepared
    code, out, _ = run(capsys, layout, "plan", "--flops", "1e9")
    assert code == 0
    assert "wire shared, seeds 1" in out
    assert "2,050 steps take at least" in out
    assert "--signal of profiles/slurm leaves 120 s" in out
    code, out, _ = run(capsys, layout, "plan", "--flops", "1e9", "--json")
    told = json.loads(out)
    (training,) = told["trainings"]
    assert told["machine"]["flops"] == 1e9
    assert training["peak_bytes"] > training["memory"]["step"] > 0


def test_the_verb_refuses_what_cannot_fit_and_says_what_to_change(capsys, prepared):
    _, layout = prepared
    plan = ("plan", "--memory-gib", "0.18", "--flops", "1e9")
    code, out, err = run(capsys, layout, *plan)
    assert code == cli.USER_ERROR
    assert "GiB at the peak of 0.2" in out
    for change in ("checkpoint_activations: true", "receivers.0.dtype: bfloat16"):
        assert change in err
    (parts,) = re.findall(r"training\.micro_batches: (\d+)", err)
    code, out, _ = run(capsys, layout, *plan, "--training.micro_batches", parts)
    assert code == 0
    assert "gradients of parts before" in out


def test_a_save_that_takes_too_long_is_said(capsys, prepared, monkeypatch):
    monkeypatch.setattr(plan, "save_bytes_per_second", lambda _: 1000.0)
    _, out, _ = run(capsys, prepared[1], "plan", "--flops", "1e9")
    assert "leaves 120 s, TOO LITTLE" in out


def test_a_wrong_name_of_a_shape_is_refused(capsys, prepared):
    code, _, err = run(capsys, prepared[1], "plan", "--shape", "lama=config.json")
    assert code == cli.USER_ERROR
    assert "one of llama, qwen" in err


def test_no_training_starts_that_would_run_out_of_memory(capsys, prepared, monkeypatch):
    started = []
    monkeypatch.setattr(plan, "free_memory_bytes", lambda _: 2**20)
    monkeypatch.setattr(wire, "train_wire", lambda *arguments: started.append(arguments))
    code, _, err = run(capsys, prepared[1], "train-wire")
    assert (code, started) == (cli.USER_ERROR, [])
    assert "training.checkpoint_activations: true" in err
    code, _, _ = run(capsys, prepared[1], "train-wire", "--force")
    assert (code, len(started)) == (0, 1)
