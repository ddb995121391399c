"""A wire whose training is killed at any moment, again and again, is the wire of one that is not.

`make soak` runs more kill points than the tests do, by the variable KILL_POINTS.
"""

import dataclasses
import itertools
import json
import os
import signal
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from kills import Server, poll, process_state
from samples import make_receiver

from latentwire.config import Encoder, Experiment, PocketData, Receiver, Training
from latentwire.config import Wire as WireConfig
from latentwire.configuration import dump_yaml
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import write_examples
from latentwire.files import save_pretrained, write_json
from latentwire.layout import Layout
from latentwire.receivers import pretrain

KILL_POINTS = int(os.environ.get("KILL_POINTS", "20"))
STEPS = 6
EXPERIMENT = Experiment(
    experiment="tiny",
    threads=1,
    data=PocketData(train_passages=12, dev_passages=2, test_passages=2),
    receivers=[Receiver(name="llama", source="bundled")],
    wire=WireConfig(latent_dim=8, target_ratios=[4], encoder=Encoder(backbone="llama")),
    training=Training(
        steps=STEPS,
        passages_per_step=2,
        max_questions_per_passage=2,
        warmup_steps=1,
        log_every_steps=1,
        dev_every_steps=STEPS,
    ),
)
TIMES = ("seconds", "tokens_per_second")
# More changes of files than a training makes that saves after every step.
CHANGES = 150

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
    """Results of the stages before the training."""
    layout = Layout(EXPERIMENT.experiment, tmp_path_factory.mktemp("prepared"))
    corpus = read_pocket(EXPERIMENT.data)
    for split in ("train", "dev"):
        examples = [example for article in getattr(corpus, split) for example in article]
        write_examples(layout.split(split), examples)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    recipe = pretrain.RECIPES["llama"]
    with pytest.MonkeyPatch.context() as patch:
        smaller = dataclasses.replace(recipe, sizes=recipe.sizes | small)
        patch.setitem(pretrain.RECIPES, "llama", smaller)
        receiver = make_receiver("llama")
    folder = layout.receiver("llama")
    save_pretrained(folder, receiver.model, receiver.tokenizer)
    write_json(folder / "receiver.json", {"model": ".", "revision": None})
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
    return artefact(layout)


def artefact(layout):
    """The bytes of the wire, and its metrics without their times."""
    folder = layout.wire("shared", 1)
    files = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ("metrics.jsonl", "resumes.json")
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return files, [{key: row[key] for key in row if key not in TIMES} for row in rows]


def _lines(path):
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def test_a_training_that_is_killed_anywhere_makes_the_same_wire(trainings, expected, capsys):
    started, struck, runs = time.monotonic(), 0, 0

    @settings(
        max_examples=KILL_POINTS // 2,
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
        assert artefact(layout) == expected
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
    assert artefact(layout) == expected
    assert not any((layout.root / ".state").iterdir())


def test_of_two_trainers_at_once_one_trains_and_the_other_finds_the_work_done(trainings, expected):
    layout = trainings.folder()
    both = [trainings.start(layout), trainings.start(layout)]
    assert [trainings.wait(pid) for pid in both] == [0, 0]
    assert artefact(layout) == expected
    log = layout.log("train_wire-shared-seed1").read_text()
    assert log.count("training wire shared") == 1
