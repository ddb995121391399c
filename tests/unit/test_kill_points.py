"""A wire whose training is killed at any moment, again and again, is the wire of one that is not.

`make soak` runs more kill points than the tests do, by the variable KILL_POINTS.
"""

import itertools
import os
import signal
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from kills import Server, poll, process_state
from tiny import EXPERIMENT, STEPS, artefact, prepare_tiny

from latentwire.configuration import dump_yaml
from latentwire.layout import Layout

KILL_POINTS = int(os.environ.get("KILL_POINTS", "20"))
# About as many changes of files as a training makes that saves after every step.
CHANGES = 90

Strike = tuple[signal.Signals, str, int]
SIGNALS = st.sampled_from([signal.SIGTERM, signal.SIGKILL])
STRIKES = st.lists(
    st.one_of(
        st.tuples(SIGNALS, st.just("change"), st.integers(1, CHANGES)),
        st.tuples(SIGNALS, st.just("step"), st.integers(0, STEPS - 1)),
    ),
    min_size=2,
    # A run that starts again and again without a new step is given up.
    max_size=3,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    layout = prepare_tiny(tmp_path_factory.mktemp("prepared"))
    (layout.results / "config.yaml").write_text(dump_yaml(EXPERIMENT))
    return layout


class Trainings:
    """Runs of the same training, each in a folder of its own."""

    def __init__(self, prepared, server, root):
        self._prepared, self._server, self._root = prepared, server, root
        self._count = itertools.count()

    def folder(self):
        layout = Layout(EXPERIMENT.experiment, self._root / str(next(self._count)))
        layout.root.mkdir(parents=True)
        for name in ("data", "receivers"):
            (layout.root / name).symlink_to(self._prepared.root / name)
        return layout

    def start(self, layout, save_always=True, strike=None):
        return self._server.start(
            layout.results,
            "train-wire",
            "--config",
            str(self._prepared.results / "config.yaml"),
            "--training.checkpoint_interval_seconds",
            "0.000001" if save_always else "1000000",
            strike=strike,
        )

    def wait(self, pid):
        return self._server.wait(pid)

    def struck(self, layout, save_always, strike: Strike):
        """The exit code of a start that is struck on its way."""
        number, kind, moment = strike
        if kind == "change":
            return self.wait(self.start(layout, save_always, (number, moment)))
        pid = self.start(layout, save_always)
        metrics = layout.state("shared-seed1") / "metrics.jsonl"
        poll(lambda: _lines(metrics) > moment or process_state(pid) in ("Z", ""))
        os.kill(pid, number)
        return self.wait(pid)


@pytest.fixture(scope="module")
def trainings(prepared, tmp_path_factory):
    root = tmp_path_factory.mktemp("trainings")
    server = Server(root / "log")
    yield Trainings(prepared, server, root)
    server.stop()


@pytest.fixture(scope="module")
def expected(trainings):
    """What a training leaves that nobody kills."""
    layout = trainings.folder()
    assert trainings.wait(trainings.start(layout)) == 0
    return artefact(layout.wire("shared", 1))


def _lines(path):
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def test_a_training_that_is_killed_anywhere_makes_the_same_wire(trainings, expected, capsys):
    started, struck, runs = time.monotonic(), 0, 0

    @settings(
        max_examples=KILL_POINTS * 2 // 3,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strikes=STRIKES, save_always=st.booleans())
    def check(strikes, save_always):
        nonlocal struck, runs
        layout = trainings.folder()
        code = 1
        for strike in strikes:
            code = trainings.struck(layout, save_always, strike)
            assert code in (0, -strike[0], 128 + strike[0])
            struck += code != 0
            if code == 0:
                break
        if code != 0:
            assert trainings.wait(trainings.start(layout, save_always)) == 0
        assert artefact(layout.wire("shared", 1)) == expected
        assert not any((layout.root / ".state").iterdir())
        runs += 1

    for number in itertools.count():
        seed(number)(check)()
        if struck >= KILL_POINTS:
            break
    with capsys.disabled():
        seconds = time.monotonic() - started
        print(f"\n{struck} kill points in {runs} trainings, {seconds:.0f} s: all bit-identical")


@pytest.mark.parametrize("change", [30, 45, 60])
def test_a_stopped_trainer_that_was_replaced_changes_nothing(trainings, expected, change):
    layout = trainings.folder()
    stopped = trainings.start(layout, strike=(signal.SIGSTOP, change))
    assert poll(lambda: process_state(stopped) == "T")
    assert trainings.wait(trainings.start(layout)) == 0
    os.kill(stopped, signal.SIGCONT)
    assert trainings.wait(stopped) == 2
    assert artefact(layout.wire("shared", 1)) == expected
    assert not any((layout.root / ".state").iterdir())


def test_of_two_trainers_at_once_one_trains_and_the_other_finds_the_work_done(trainings, expected):
    layout = trainings.folder()
    both = [trainings.start(layout), trainings.start(layout)]
    assert [trainings.wait(pid) for pid in both] == [0, 0]
    assert artefact(layout.wire("shared", 1)) == expected
    log = layout.log("train_wire-shared-seed1").read_text()
    assert log.count("training wire shared") == 1
