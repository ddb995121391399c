"""What `status` says of trainings under way, interrupted and done."""

import json
import os

import pytest
from test_training_loop import SCHEDULE, Toy, open_state

from latentwire import cli
from latentwire.cluster.status import gpu_statuses, run_statuses
from latentwire.layout import Layout
from latentwire.training.loop import fit


@pytest.fixture
def layout(tmp_path):
    return Layout("pocket", tmp_path)


def crash():
    raise RuntimeError


def train(layout, task=None):
    with open_state(layout.state("shared-seed1")) as state:
        fit(task or Toy(), SCHEDULE, state)
        state.finish(layout.root)


def test_nothing_is_under_way(layout, capsys):
    train(layout)
    assert run_statuses(layout) == []
    assert cli.main(["status", "--results", str(layout.results)]) == 0
    assert "no training is under way" in capsys.readouterr().out


def test_an_interrupted_training(layout, capsys):
    for step in (4, 7):
        with pytest.raises(RuntimeError):
            train(layout, Toy(step, crash))
    (run,) = run_statuses(layout)
    assert (run.step, run.num_steps, run.saved_step) == (7, 12, 7)
    assert (run.restarts, run.ended, run.owner) == (1, "RuntimeError", None)
    cli.main(["status", "--results", str(layout.results)])
    out = capsys.readouterr().out
    assert "shared-seed1: step 7 of 12" in out
    assert "1 restarts (the last one after: RuntimeError)" in out
    assert "run the workflow again to go on" in out
    for slot in layout.state("shared-seed1").glob("slot*.pt"):
        slot.write_bytes(b"cut")
    assert run_statuses(layout)[0].step == 6


def test_a_training_under_way(layout, capsys):
    with pytest.raises(RuntimeError):
        train(layout, Toy(4, crash))
    seen = []

    def look():
        assert cli.main(["status", "--json", "--results", str(layout.results)]) == 0
        seen.extend(json.loads(capsys.readouterr().out)["runs"])

    train(layout, Toy(8, look))
    (run,) = seen
    # Metrics are logged every other step.
    assert run["step"] == 8
    assert f"process {os.getpid()} on" in run["owner"]
    assert run["seconds_left"] == pytest.approx(4 / run["steps_per_second"])


def test_gpus_are_those_that_nvidia_smi_tells_of(tmp_path, monkeypatch):
    path = tmp_path / "nvidia-smi"
    path.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 97, 61234, 81559'\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_statuses() == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "used_percent": 97,
            "memory_used_mib": 61234,
            "memory_mib": 81559,
        }
    ]
