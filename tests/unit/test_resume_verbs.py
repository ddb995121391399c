"""Every stage that trains goes on where it was stopped, and makes what it would have made."""

import shutil
from dataclasses import replace

import pytest
from tiny import EXPERIMENT, STEPS, artefact, prepare_tiny

from latentwire.baselines import classifier
from latentwire.config import Pretraining, Receiver
from latentwire.configuration import validate
from latentwire.errors import UserError
from latentwire.files import write_text
from latentwire.layout import Layout
from latentwire.receivers import pretrain
from latentwire.receivers.build import build_receiver
from latentwire.training import loop, wire

VARIANTS = [
    {"name": "lora", "method": "ablation", "wire": {"encoder": {"lora_rank": 2}}},
    {
        "name": "adapted",
        "method": "latent_adapted",
        "wire": {"encoder_of": "shared", "receivers": ["qwen"]},
    },
    {"name": "further", "method": "ablation", "wire": {"start_from": "shared"}},
    {
        "name": "memory",
        "method": "gist",
        "wire": {"encoder": {"pooling": "memory", "num_latents": 4}},
    },
    {
        "name": "soft",
        "method": "soft_prompt",
        "wire": {"encoder": {"pooling": "memory", "num_latents": 4, "reads_source": False}},
    },
    {"name": "writing", "method": "ablation", "training": {"alignment_steps": 1, "text_steps": 3}},
]


def make_experiment():
    settings = EXPERIMENT.model_dump(mode="json")
    settings["variants"] = VARIANTS
    settings["statistics"]["family"] = []
    settings["evaluation"]["methods"] = ["text", "latent"]
    return validate(settings)


@pytest.fixture(scope="module")
def experiment():
    return make_experiment()


@pytest.fixture(scope="module")
def layout(experiment, tmp_path_factory):
    layout = prepare_tiny(tmp_path_factory.mktemp("prepared"))
    wire.train_wire(experiment, layout, 1)
    return layout


class PowerCutError(Exception):
    pass


def check_resume(monkeypatch, task, run, folder, state):
    """Compares a training in one go with one that is stopped after each of two steps."""
    run()
    whole = artefact(folder)
    shutil.rmtree(folder)
    losses = task.losses

    def save_always(task, schedule, state):
        return loop.fit(task, replace(schedule, checkpoint_interval_seconds=0), state)

    def cut(at):
        def losses_until(self, step, part):
            if step == at:
                raise PowerCutError
            return losses(self, step, part)

        return losses_until

    with monkeypatch.context() as patch:
        for module in (wire, classifier, pretrain):
            patch.setattr(module, "fit", save_always)
        for step in (2, 4):
            patch.setattr(task, "losses", cut(step))
            with pytest.raises(PowerCutError):
                run()
            assert state.is_dir()
    run()
    assert artefact(folder) == whole
    assert not state.exists()
    assert [row["step"] for row in whole[1]][-1] == STEPS


@pytest.mark.parametrize("name", [variant["name"] for variant in VARIANTS])
def test_wires(experiment, layout, monkeypatch, name):
    own = experiment.of_wire(name)
    check_resume(
        monkeypatch,
        wire.WireTask,
        lambda: wire.train_wire(own, layout, 1),
        layout.wire(name, 1),
        layout.state(f"{name}-seed1"),
    )


def test_the_classifier(experiment, layout, monkeypatch):
    check_resume(
        monkeypatch,
        classifier.KeepWordsTask,
        lambda: classifier.train_compressor(experiment, layout),
        layout.compressor,
        layout.state("compressor"),
    )


def test_a_receiver(experiment, tmp_path, monkeypatch):
    own = experiment.model_copy(
        update={
            "receivers": [Receiver(name="llama", source="pretrain")],
            "pretraining": Pretraining(steps=STEPS, passages_per_step=1),
        }
    )
    layout = Layout("tiny", tmp_path)
    check_resume(
        monkeypatch,
        pretrain.PretrainingTask,
        lambda: build_receiver(own, layout, "llama"),
        layout.receiver("llama"),
        layout.state("receiver-llama"),
    )


def test_changed_settings_and_data_are_refused_by_name(experiment, layout, monkeypatch):
    def cut(*_):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(loop.MetricsLog, "close", cut)
        with pytest.raises(PowerCutError):
            wire.train_wire(experiment, layout, 1)
    update = {"other_learning_rate": 0.5, "checkpoint_interval_seconds": 5}
    training = experiment.training.model_copy(update=update)
    changed = experiment.model_copy(update={"training": training})
    dev = layout.split("dev")
    before = dev.read_bytes()
    dev.write_bytes(before + b"\0")
    with pytest.raises(UserError, match="these differ") as refusal:
        wire.train_wire(changed, layout, 1)
    dev.write_bytes(before)
    lines = [line for line in str(refusal.value).splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in lines] == [
        "inputs.data/dev.parquet",
        "settings.training.other_learning_rate",
    ]
    wire.train_wire(experiment, layout, 1)


def test_a_run_that_is_done_starts_anew(experiment, layout):
    write_text(layout.wire("shared", 1) / "metrics.jsonl", "")
    wire.train_wire(experiment, layout, 1)
    rows = artefact(layout.wire("shared", 1))[1]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
