"""Stages on several processes: the steps and answers of one, whichever is stopped or killed."""

import itertools
import json
import os
import signal
import socket
from collections import defaultdict

import pyarrow.parquet as pq
import pytest
from kills import Server, poll
from tiny import EXPERIMENT, TIMES, artefact, prepare_tiny

from latentwire.cluster import torchrun
from latentwire.configuration import dump_yaml
from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.training.parts import shares
from latentwire.training.state import saved_slots, saved_step

STEPS = 50
TRAINING = {
    "steps": STEPS,
    "alignment_steps": 4,
    "text_steps": 4,
    "receivers_per_step": "one",
    "ratio_growth": 0.2,
    "warmup_steps": 5,
    "first_token_weight": 0.5,
    "k_token_depth": 2,
    "guard_weight": 0.5,
}
WIRE = {"receivers": ["llama", "qwen"], "target_ratios": [4, 8]}
# On how many processes a training goes on, and the step in which they are stopped.
PHASES = ((1, 1), (2, 29), (3, 39), (1, None))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    layout = prepare_tiny(tmp_path_factory.mktemp("prepared"))
    training = EXPERIMENT.training.model_copy(update=TRAINING)
    wire = EXPERIMENT.wire.model_copy(update=WIRE)
    experiment = EXPERIMENT.model_copy(update={"training": training, "wire": wire})
    (layout.results / "config.yaml").write_text(dump_yaml(experiment))
    return layout


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.stop()


class Run:
    """One training in a folder of its own."""

    def __init__(self, prepared, server, root):
        self.layout = Layout(EXPERIMENT.experiment, root)
        self.layout.root.mkdir(parents=True)
        for name in ("data", "receivers"):
            (self.layout.root / name).symlink_to(prepared.root / name)
        self.state, self.wire = self.layout.state("shared-seed1"), self.layout.wire("shared", 1)
        self._config, self._server = prepared.results / "config.yaml", server

    def start(self, *options, verb="train-wire", strike=None, watched=True, **environment):
        watch = {"WATCHED": str(self.layout.root)}
        if strike is not None:
            watch["STRIKE"] = ":".join(map(str, map(int, strike)))
        return self._server.start(
            self.layout.results,
            verb,
            "--config",
            str(self._config),
            *options,
            environment={**environment, **(watch if watched else {})},
            prepare="watched" if watched else None,
        )

    def start_together(self, count, *arguments, **options):
        """As torchrun starts them."""
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        return [
            self.start(
                *arguments,
                **options,
                **address,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
            )
            for rank in range(count)
        ]

    def wait(self, *processes):
        return [self._server.wait(process) for process in processes]

    @property
    def rows(self):
        return _lines(self.wire / "metrics.jsonl")

    def told(self, name):
        """What processes told, by rank."""
        paths = sorted(self.layout.root.glob(f"{name}-*.jsonl"))
        return [_lines(path) for path in paths]

    def order(self):
        """What was read in each step, one list for each process."""
        steps = defaultdict(list)
        for told in self.told("order"):
            for line in told:
                steps[line["step"]].append(line)
        return steps


@pytest.fixture
def run(prepared, server, tmp_path):
    return Run(prepared, server, tmp_path / "run")


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_more_and_fewer_processes_take_the_same_steps(prepared, server, tmp_path):
    alone, elastic = (Run(prepared, server, tmp_path / name) for name in ("alone", "elastic"))
    assert alone.wait(alone.start()) == [0]
    for count, last_step in PHASES:
        # Any of them may be the one that gets the signal.
        strike = (signal.SIGTERM, last_step, count - 1) if last_step else None
        started = (
            [elastic.start(strike=strike)]
            if count == 1
            else elastic.start_together(count, strike=strike)
        )
        ends = 128 + signal.SIGTERM if last_step else 0
        assert elastic.wait(*started) == [ends] * count
        weights = [told[-1]["digest"] for told in elastic.told("weights")[:count]]
        assert weights == weights[:1] * count
        if last_step:
            assert max(map(saved_step, saved_slots(elastic.state))) == last_step + 1

    order, expected_order = elastic.order(), alone.order()
    assert order.keys() == expected_order.keys()
    for step, (expected,) in expected_order.items():
        assert [*itertools.chain(*(line["read"] for line in order[step]))] == expected["read"]
    shares_of_tokens = [[line["tokens"] for line in lines] for lines in order.values()]
    # What the mean of the processes' means would get wrong.
    assert any(len(tokens) > 1 and min(tokens) != max(tokens) for tokens in shares_of_tokens)
    # In some steps there is nothing for one of them.
    assert any(len(order[step]) < 3 for step in range(30, 40))

    assert len(elastic.rows) == len(alone.rows) == STEPS
    for row, expected in zip(elastic.rows, alone.rows, strict=True):
        assert row.keys() == expected.keys()
        for key in expected.keys() - set(TIMES):
            assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), (key, row["step"])
    resumes = json.loads((elastic.wire / "resumes.json").read_text())["resumes"]
    assert [resume["changed"]["processes"] for resume in resumes] == [[1, 2], [2, 3], [3, 1]]


def test_a_wire_read_in_parts_has_the_same_bits_on_one_process_and_several(
    prepared, server, tmp_path
):
    options = ("--training.micro_batches", "4", "--training.passages_per_step", "6")
    options += ("--training.steps", "24")
    runs = (Run(prepared, server, tmp_path / name) for name in ("alone", "elastic", "plain"))
    alone, elastic, plain = runs
    assert alone.wait(alone.start(*options, OPTIMISER="ours")) == [0]
    for count, last_step in ((2, 5), (4, 11), (1, None)):
        strike = (signal.SIGTERM, last_step, 0) if last_step else None
        started = elastic.start_together(count, *options, strike=strike, OPTIMISER="ours")
        assert elastic.wait(*started) == [128 + signal.SIGTERM if last_step else 0] * count
    assert artefact(elastic.wire) == artefact(alone.wire)
    # Without parts roundings are others.
    assert plain.wait(plain.start(*options[2:], OPTIMISER="ours")) == [0]
    assert artefact(plain.wire) != artefact(alone.wire)


def test_receivers_whose_layers_are_shared_out_train_the_same_wire(prepared, server, tmp_path):
    options = ("--training.steps", "20", "--training.checkpoint_activations", "true")
    wires = []
    for sharded in ("false", "true"):
        run = Run(prepared, server, tmp_path / sharded)
        started = run.start_together(2, *options, "--training.shard_receivers", sharded)
        assert run.wait(*started) == [0, 0]
        # In some steps there is nothing for one of the processes.
        read = [len(lines) for lines in run.order().values()]
        assert min(read) == (2 if sharded == "true" else 1)
        ((told,), (other,)) = run.told("weights")
        assert told["all"] == other["all"] > 50_000
        held = told["held"] + other["held"]
        assert held == (1 if sharded == "true" else 2) * told["all"]
        wires.append(artefact(run.wire))
    assert wires[0] == wires[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_killed_takes_the_others_along(run, rank):
    started = run.start_together(2, strike=(signal.SIGKILL, 3, rank))
    codes = run.wait(*started)
    assert codes.pop(rank) == -signal.SIGKILL
    assert codes == [1]


def test_a_launched_training_is_saved_on_a_signal_and_goes_on_alone(run):
    started = run.start("--processes", "2", "--training.steps", "100000", watched=False)
    metrics = run.state / "metrics.jsonl"
    assert poll(lambda: len(_lines(metrics)) > 3)
    os.kill(started, signal.SIGTERM)
    assert run.wait(started) == [128 + signal.SIGTERM]
    (start,) = json.loads((run.state / "history.json").read_text())
    assert start["ended"] == "SIGTERM"
    assert max(map(saved_step, saved_slots(run.state))) > 3


def test_a_launched_training_ends_as_its_processes_do(prepared, server, tmp_path):
    run, whole = (Run(prepared, server, tmp_path / name) for name in ("run", "whole"))
    launched = ("--processes", "2", "--training.steps", "12")
    killed = run.start(*launched, strike=(signal.SIGKILL, 3, 1))
    assert run.wait(killed) == [1]
    stopped = run.start(*launched, strike=(signal.SIGUSR1, 3, 1))
    assert run.wait(stopped) == [128 + signal.SIGUSR1]
    refused = run.start(*launched, "--training.weight_decay", "0.1")
    assert run.wait(refused) == [2]
    assert run.wait(run.start(*launched)) == [0]
    assert not run.state.exists()
    # On the same number of processes the bits are the same, too.
    assert whole.wait(whole.start(*launched)) == [0]
    assert artefact(run.wire) == artefact(whole.wire)


def test_an_evaluation_on_two_processes_has_the_answers_of_one(prepared, server, tmp_path):
    answers, parts = [], []
    for count in (1, 2):
        run = Run(prepared, server, tmp_path / str(count))
        options = ("--receiver", "llama", "--processes", str(count))
        assert run.wait(run.start(*options, verb="evaluate-text", watched=False)) == [0]
        paths = sorted((run.layout.root / "predictions").rglob("*.parquet"))
        answers.append(
            {
                str(path.relative_to(run.layout.root)): pq.read_table(path)
                .drop_columns(["encode_seconds", "answer_seconds"])
                .to_pylist()
                for path in paths
            }
        )
        (log,) = (run.layout.root / "logs").glob("evaluate*")
        # The leader tells of its own.
        parts.append(log.read_text().count(" is answered, "))
        assert not run.layout.state("evaluate_text-llama").exists()
    assert answers[0] == answers[1]
    # Of five methods, two at two ratios.
    assert parts == [7, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_runs_of_about_equal_cost(count):
    costs = [30, 1, 7, 7, 12, 5, 3, 30, 8, 2, 2, 9]
    parts = shares(costs, count)
    assert [*itertools.chain(*parts)] == [*range(len(costs))]
    loads = [sum(costs[index] for index in part) for part in parts]
    assert max(loads) - sum(costs) / count <= max(costs)
    assert shares([5], count) == [[0], *[[]] * (count - 1)]


def test_processes_are_refused_where_there_are_not_as_many_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert torchrun.count_processes(None, "cuda") == 2
    assert torchrun.count_processes(None, "cpu") == 1
    assert torchrun.count_processes(3, "cpu") == 3
    with pytest.raises(UserError, match="finds 2 GPUs here"):
        torchrun.count_processes(3, "cuda")
    with pytest.raises(UserError, match="give 1 or more"):
        torchrun.count_processes(0, "cpu")


def test_tasks_of_srun_know_each_other(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        # What is set is forgotten after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    slurm = {
        "JOB_ID": "7",
        "STEP_NUM_TASKS": "8",
        "NTASKS": "8",
        "JOB_NUM_NODES": "2",
        "JOB_NODELIST": "node[1-2]",
        "NODEID": "1",
        "PROCID": "5",
        "LOCALID": "1",
    }
    assert not torchrun.is_joint()
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert torchrun.is_joint()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("5", "8")
    assert (os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"]) == ("1", "node1")
