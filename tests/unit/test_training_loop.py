"""Interrupted training against training in one go."""

import json
import signal

import pytest
import torch
from torch import nn

from latentwire.errors import UserError
from latentwire.training.loop import Interrupted, Schedule, fit
from latentwire.training.optimisers import learning_rate_factor
from latentwire.training.state import StateDirectory

SCHEDULE = Schedule(
    num_steps=12,
    warmup_steps=3,
    matrix_learning_rate=1e-2,
    other_learning_rate=1e-2,
    log_every_steps=2,
    dev_every_steps=6,
    checkpoint_interval_seconds=0,
)


class Toy:
    """A regression whose batches hang on the step alone; can be struck at a step."""

    def __init__(self, strike_at=None, strike=None):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self._strike_at, self._strike = strike_at, strike

    def losses(self, step):
        if step == self._strike_at:
            self._strike()
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 4, generator=generator)
        # Global randomness must come back with the state, too.
        noise = torch.rand(()) * 0.01
        loss = (self.module(inputs) - inputs[:, :2]).square().mean() + noise
        return {"loss": loss}, {"examples": 16, "tokens": 64}

    def dev(self):
        return {"dev/loss": 0.5}


def run(path, task, **identity):
    # A version of torch is a type of its own, which a safe load would refuse.
    identity = {"seed": 1, "torch": torch.__version__, **identity}
    metrics = fit(task, SCHEDULE, StateDirectory(path, identity))
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["tokens_per_second"]
    return task.module.state_dict(), rows


def crash():
    raise RuntimeError("power cut")


def terminate():
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("step", [1, 5, 8, 11])
@pytest.mark.parametrize(("strike", "error"), [(crash, RuntimeError), (terminate, Interrupted)])
def test_resumed_training_is_bit_identical(tmp_path, step, strike, error):
    weights, rows = run(tmp_path / "whole", Toy())
    if not (strike is terminate and step == SCHEDULE.num_steps - 1):
        with pytest.raises(error):
            run(tmp_path / "cut", Toy(step, strike))
    resumed_weights, resumed_rows = run(tmp_path / "cut", Toy())
    assert resumed_rows == rows
    assert all(torch.equal(resumed_weights[name], weights[name]) for name in weights)


def test_term_loses_no_step_and_leaves_the_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        run(tmp_path / "run", Toy(4, terminate))
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert (
        StateDirectory(tmp_path / "run", {"seed": 1, "torch": torch.__version__}).load()["step"]
        == 5
    )


def test_one_damaged_slot_falls_back_and_two_are_refused(tmp_path, caplog):
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Toy(6, crash))
    newest = max((tmp_path / "run").glob("slot*.pt"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])
    state = StateDirectory(tmp_path / "run", {"seed": 1, "torch": torch.__version__})
    assert state.load()["step"] == 5
    assert "damaged" in caplog.text
    for slot in (tmp_path / "run").glob("slot*.pt"):
        slot.write_bytes(b"")
    with pytest.raises(UserError, match="damaged in every slot"):
        state.load()


def test_state_of_another_run_is_refused_and_kept(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Toy(6, crash))
    with pytest.raises(UserError, match="rate: saved None, now 2"):
        run(tmp_path / "run", Toy(), rate=2)
    assert (
        StateDirectory(tmp_path / "run", {"seed": 1, "torch": torch.__version__}).load()["step"]
        == 6
    )


def test_learning_rate_schedule():
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[50] == 1
    assert factors[75] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.03
