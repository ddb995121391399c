"""The command line: what it accepts, what it refuses and how it says so."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latentwire
from latentwire import cli
from latentwire.config import Experiment
from latentwire.configuration import validate
from latentwire.layout import Layout

ROOT = Path(latentwire.__file__).parents[1]
CONFIG = str(ROOT / "config/config.yaml")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a verb in an empty folder, its work replaced by a note of what it was asked for."""
    asked = []
    monkeypatch.chdir(tmp_path)

    def run(verb: str, *arguments: str):
        asked.clear()
        recorder = _replace(cli.VERBS[verb], lambda *call: asked.append(call))
        monkeypatch.setitem(cli.VERBS, verb, recorder)
        code = cli.main([verb, "--config", CONFIG, *arguments])
        return code, asked[0] if asked else None

    return run


def _replace(verb: cli.Verb, work) -> cli.Verb:
    return dataclasses.replace(verb, run=work)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_verb_gets_experiment_layout_and_its_options(run, tmp_path):
    code, (experiment, layout, options) = run("train-wire", "--results", "out")
    assert code == 0
    assert experiment == Experiment()
    assert layout == Layout("pocket", Path("out"))
    assert (options.wire, options.seed) == ("shared", 1)


def test_overrides_are_yaml_and_validated(run):
    code, (experiment, *_) = run(
        "metrics", "--wire.target_ratios", "[2, 3]", "--threads=1", "--wire.encoder.pooling", "last"
    )
    assert code == 0
    changed = {
        "threads": 1,
        "wire": {"target_ratios": [2, 3], "encoder": {"pooling": "last"}},
    }
    assert experiment == validate(changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["metrics", "--wire.latent_dims", "3"], "did you mean 'latent_dim'?"),
        (["metrics", "--wire.target_ratios", "[0.5]"], "wire.target_ratios.0: 0.5 is not allowed"),
        (["metrics", "--wire.latent_dim"], "--wire.latent_dim needs a value"),
        (["metrics", "--wire.latent_dim", "[1"], "'[1' is not valid YAML"),
        (["metrics", "--resluts", "x"], "unknown option --resluts; did you mean 'results'?"),
        (["metrics", "stray"], "unexpected 'stray'"),
        (["receiver", "--name", "lama"], "--name lama is not in"),
        (["evaluate-text", "--receiver", "x"], "allowed: llama, qwen"),
        (["train-wire", "--wire", "other"], "allowed: shared"),
        (["evaluate-wire", "--seed", "7"], "--seed 7 is not in"),
        (["evaluate-wire", "--seed", "one"], "argument --seed: invalid int value"),
        (["receiver"], "the following arguments are required: --name"),
    ],
)
def test_bad_input_is_refused_before_work(run, capsys, arguments, message):
    code, asked = run(*arguments)
    assert code == 2
    assert asked is None
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unknown_verb(capsys):
    assert cli.main(["prepre"]) == 2
    assert "unknown verb 'prepre'; did you mean 'prepare'?" in capsys.readouterr().err


def test_missing_verb_and_configuration(capsys, tmp_path):
    assert cli.main([]) == 2
    assert cli.main(["metrics", "--config", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml does not exist" in capsys.readouterr().err


def test_unwritable_results(run, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, asked = run("metrics", "--results", "file")
    assert (code, asked) == (2, None)
    assert "cannot write to file/pocket" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "stage"),
    [
        (["receiver", "--name", "qwen"], "receiver-qwen"),
        (["prepare"], "prepare"),
        (["train-wire"], "train_wire-shared-seed1"),
        (["evaluate-text", "--receiver", "llama"], "evaluate_text-llama"),
        (["evaluate-wire", "--wire", "shared", "--seed", "1"], "evaluate_wire-shared-seed1"),
    ],
)
def test_every_stage_has_its_log(run, arguments, stage):
    assert run(*arguments)[0] == 0
    assert f"latentwire {arguments[0]}" in Layout("pocket").log(stage).read_text()


def test_errors_and_failures_are_in_the_log(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setitem(cli.VERBS, "metrics", _replace(cli.VERBS["metrics"], fail))
    assert cli.main(["metrics", "--config", CONFIG]) == 1
    log = Layout("pocket").log("metrics").read_text()
    assert "RuntimeError: boom" in log
    assert "RuntimeError: boom" in capsys.readouterr().err


def test_show_leaves_no_trace(run, tmp_path):
    assert run("show")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_threads_are_those_of_the_experiment(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run("prepare", "--threads", "1")
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]) == 1
    run("prepare", "--threads", "2")
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_missing_gpu_is_said_first(run, capsys):
    assert run("train-wire", "--device", "cuda") == (2, None)
    assert "device: 'cuda', but torch finds no GPU" in capsys.readouterr().err
    assert run("prepare", "--device", "cuda")[0] == 0


def test_config_prints_the_complete_experiment(capsys, monkeypatch, tmp_path):
    arguments = ["config", "--config", CONFIG, "--wire.latent_dim", "128"]
    assert cli.main(arguments) == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert cli.main(["config", "--config", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert "latent_dim: 128" in path.read_text()


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.strip() == latentwire.__version__


def test_help_shows_verbs_and_examples():
    help_text = subprocess.run(
        [sys.executable, "-m", "latentwire", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert all(verb in help_text for verb in cli.VERBS)
    assert "examples:" in help_text


def test_light_modules_load_no_heavy_library():
    code = (
        "import sys, latentwire.cli, latentwire.config_files, latentwire.configuration\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'scipy', 'matplotlib', "
        "'datasets', 'numpy') if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert loaded.strip() == "[]"
