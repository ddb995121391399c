"""Interrupted training against training in one go, and what becomes of a damaged state."""

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from test_files import room_for
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from latentwire.cluster import machine
from latentwire.errors import Interrupted, UserError
from latentwire.training.history import RESUMES
from latentwire.training.hostcopy import HostCopy
from latentwire.training.loop import Schedule, fit
from latentwire.training.optimisers import learning_rate_factor
from latentwire.training.state import Identity, StateDirectory, saved_step

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
        self.module[0].bias.requires_grad_(False)
        self._strike_at, self._strike = strike_at, strike

    def losses(self, step, _=None):
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


def open_state(path, code="1", resume_across_code=False, **science):
    # A version of torch is a type of its own, which a safe load would refuse.
    science = {"seed": 1, "torch": torch.__version__, **science}
    return StateDirectory(path, Identity(science, code, resume_across_code), 0.1)


def run(path, task, **identity):
    with open_state(path, **identity) as state:
        metrics = fit(task, SCHEDULE, state)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["tokens_per_second"]
    return task.module.state_dict(), rows


def step_in(path):
    with open_state(path) as state:
        return state.load()[0]


def crash():
    raise RuntimeError("power cut")


def terminate():
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def crashed(tmp_path):
    """The state of a run that crashed in step 7, with the steps 5 and 6 saved."""
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Toy(6, crash))
    return tmp_path / "run"


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_loses_no_step_and_leaves_the_handlers(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        run(tmp_path / "run", Toy(4, lambda: signal.raise_signal(number)))
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert step_in(tmp_path / "run") == 5


def test_a_run_that_is_killed_after_its_last_step_has_lost_none(tmp_path):
    run(tmp_path / "run", Toy())
    assert step_in(tmp_path / "run") == SCHEDULE.num_steps
    weights, rows = run(tmp_path / "run", Toy(0, crash))
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert not torch.equal(weights["0.weight"], Toy().module[0].weight)


@pytest.mark.parametrize("tenths", range(10))
def test_a_slot_cut_anywhere_falls_back_to_the_other_and_says_so(crashed, caplog, tenths):
    newest = max(crashed.glob("slot*.pt"), key=saved_step)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) * tenths // 10])
    assert step_in(crashed) == 5
    assert f"{newest} is damaged" in caplog.text


def test_two_damaged_slots_are_refused_and_kept(crashed):
    for slot in crashed.glob("slot*.pt"):
        slot.write_bytes(slot.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged in every slot"):
        run(crashed, Toy())
    assert len(list(crashed.glob("slot*.pt"))) == 2


def test_the_newest_slot_is_the_one_of_most_steps_whatever_the_clock_says(crashed):
    older, newer = sorted(crashed.glob("slot*.pt"), key=saved_step)
    os.utime(newer, (0, 0))
    assert step_in(crashed) == 6
    with pytest.raises(RuntimeError):
        run(crashed, Toy(7, crash))
    assert [saved_step(older), saved_step(newer)] == [7, 6]


def test_settings_of_another_run_are_refused_by_key_and_its_state_is_kept(crashed):
    with pytest.raises(UserError, match=r"  rate: saved None, now 2") as refusal:
        run(crashed, Toy(), rate=2)
    assert "seed" not in str(refusal.value)
    assert step_in(crashed) == 6


def test_other_code_is_refused_unless_it_is_allowed_and_then_recorded(crashed, tmp_path):
    with pytest.raises(UserError, match="resume_across_code"):
        run(crashed, Toy(), code="2")
    with open_state(crashed, code="2", resume_across_code=True) as state:
        fit(Toy(), SCHEDULE, state)
        state.finish(tmp_path)
    assert not crashed.exists()
    (resume,) = json.loads((tmp_path / RESUMES).read_text())["resumes"]
    assert (resume["step"], resume["reason"]) == (6, "RuntimeError")
    assert resume["changed"] == {"code": ["1", "2"]}


def test_other_hardware_is_warned_of_and_recorded(crashed, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(machine, "processor_name", lambda: "abacus")
    with open_state(crashed) as state:
        fit(Toy(), SCHEDULE, state)
        state.finish(tmp_path)
    assert "now 'abacus'" in caplog.text
    assert json.loads((tmp_path / RESUMES).read_text())["resumes"][0]["changed"]["processor"]


def test_restarts_without_a_new_step_end_with_their_reasons(tmp_path):
    for _ in range(4):
        with pytest.raises(RuntimeError):
            run(tmp_path / "run", Toy(0, crash))
    # Refusals add nothing to the count, nor do they take from it.
    with pytest.raises(UserError):
        run(tmp_path / "run", Toy())
    with pytest.raises(UserError, match=r"started 4 times after step 0 .*RuntimeError") as refusal:
        run(tmp_path / "run", Toy())
    (tmp_path / "run" / "history.json").unlink()
    assert str(tmp_path / "run" / "history.json") in str(refusal.value)
    run(tmp_path / "run", Toy())


def test_a_new_step_and_ctrl_c_start_the_count_anew(tmp_path):
    for step in (0, 1, 1, 1, 1, 2):
        with pytest.raises(RuntimeError):
            run(tmp_path / "run", Toy(step, crash))

    def interrupt():
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "again", Toy(0, interrupt))


def test_a_file_that_cannot_grow_ends_the_training_with_the_last_save_whole(tmp_path):
    with contextlib.ExitStack() as limits:
        disk_fills = Toy(6, lambda: limits.enter_context(room_for(4000)))
        with pytest.raises(UserError, match=r"cannot write .*: File too large"):
            run(tmp_path / "run", disk_fills)
    # The save before was begun, and may have met the limit, too.
    assert step_in(tmp_path / "run") in (5, 6)
    assert not list((tmp_path / "run").glob(".partial-*"))


@pytest.mark.parametrize("path", ["/sys/latentwire/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(path):
    with pytest.raises(UserError, match=f"cannot write {path}"), open_state(Path(path)):
        pytest.fail("work has begun")


def test_what_a_killed_writer_left_goes(crashed):
    (crashed / ".partial-slot0.pt.abc").write_text("half")
    with open_state(crashed):
        assert not list(crashed.glob(".partial-*"))


def test_training_goes_on_while_its_state_is_written(tmp_path, monkeypatch):
    moved_on, write = threading.Event(), StateDirectory._write

    def slow_write(*arguments):
        assert moved_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(StateDirectory, "_write", slow_write)
    weights = torch.arange(3.0)
    with open_state(tmp_path / "run") as state:
        state.save(1, {"module": {"weights": weights}})
        state.wait_for_copy()
        weights.zero_()
        moved_on.set()
    with open_state(tmp_path / "run") as state:
        assert state.load()[1]["module"]["weights"].tolist() == [0, 1, 2]


def test_a_state_is_copied_while_the_next_step_is_read_and_before_it_is_taken(
    tmp_path, monkeypatch
):
    reading, taken, copy = threading.Event(), threading.Event(), HostCopy.of

    def slow_copy(*arguments):
        assert reading.wait(60)
        assert not taken.wait(0.5)
        return copy(*arguments)

    def read():
        taken.clear()
        reading.set()

    monkeypatch.setattr(HostCopy, "of", slow_copy)
    hook = register_optimizer_step_pre_hook(lambda *_: taken.set())
    try:
        with open_state(tmp_path / "run") as state:
            fit(Toy(1, read), replace(SCHEDULE, num_steps=2), state)
    finally:
        hook.remove()


def test_the_thread_of_a_save_ends_with_it(tmp_path):
    # One that stayed would count as using the cores, and slow every step.
    with open_state(tmp_path / "run") as state:
        state.begin(0, 1)
        state.prepare({"weights": torch.zeros(2)})
        state.save(1, {"weights": torch.ones(2)})
        state.wait()
        for thread in threading.enumerate():
            if thread.name.startswith("save"):
                thread.join(10)
                assert not thread.is_alive()


def test_learning_rate_schedule():
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[50] == 1
    assert factors[75] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.03


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries take no such order")
def test_a_training_keeps_the_memory_that_a_step_frees(tmp_path):
    """In a process of its own: there is no way back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        before, after = pool.submit(_train_and_free, tmp_path).result()
    assert before < 100e6 < 300e6 < after


def _train_and_free(path):
    def freed_bytes_that_are_kept():
        held = psutil.Process().memory_info().rss
        blocks = [torch.ones(5_000_000) for _ in range(20)]
        del blocks
        return psutil.Process().memory_info().rss - held

    before = freed_bytes_that_are_kept()
    with open_state(path / "run") as state:
        fit(Toy(), SCHEDULE, state)
    return before, freed_bytes_that_are_kept()
