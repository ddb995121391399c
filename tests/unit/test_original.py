"""The original's commands: every flag and its key, run as files in fresh processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import latentwire
from latentwire.original import BASE, _train_parser, evaluate, train

ROOT = Path(latentwire.__file__).parents[1]
COMMAND = (
    "--llama_id {llama} --qwen_id qwen --samples 4000 --epochs 3 --batch_size 32 "
    "--gradient_accumulation_steps 2 --latent_len 16 --d_z 128 --dataset squad --K 8 "
    "--first_token_ce_weight 0.8 --use_fp16 --checkpoint_interval 180 --auto_resume "
    "--k_token_ce_from_prefix --save_dir {folder} --num_dataloader_workers 4 "
    "--dataloader_pin_memory --use_optimized_dataloader --dry_run"
)


@pytest.mark.parametrize("directory", [ROOT, ROOT / "latentwire"])
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_run_as_a_file_the_standard_library_stays(script, directory):
    """`latentwire/statistics` is not taken for the module `statistics`."""
    path = ROOT / "latentwire" / script
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", str(path), "--help"],
        capture_output=True,
        text=True,
        cwd=directory,
    )
    assert shown.returncode == 0, shown.stderr
    assert f"usage: python latentwire/{script}" in shown.stdout
    imported = re.findall(r"\| +(statistics|latentwire\.\S+)$", shown.stderr, re.MULTILINE)
    assert "latentwire.original" in imported
    # Reading its tables would import `latentwire/statistics` in the place of the module.
    assert not [name for name in imported if name.startswith("statistics.")]


def test_the_shims_drop_their_folder_before_any_other_import():
    for script in ("train.py", "eval.py"):
        lines = (ROOT / "latentwire" / script).read_text().splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        dropped = next(i for i, line in enumerate(lines) if "sys.path[0] = " in line)
        assert imports[0] == "import sys"
        assert dropped < lines.index(imports[1])


def test_every_flag_sets_its_key(tmp_path, capsys):
    arguments = COMMAND.format(llama="llama", folder=tmp_path / "run").split()
    assert train([*arguments, "--warm_anchor_text", "Answer: "]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["experiment"] == "run"
    assert [receiver["source"] for receiver in config["receivers"]] == ["bundled"] * 2
    assert {receiver["dtype"] for receiver in config["receivers"]} == {"bfloat16"}
    assert config["data"]["dataset"] == "squad"
    assert config["data"]["max_train_questions"] == 4000
    assert config["wire"]["encoder"]["num_latents"] == 16
    assert config["wire"]["latent_dim"] == 128
    assert config["wire"]["source_mode"] == "prompt"
    assert config["wire"]["adapter"]["calibration"] == "embed_rms"
    assert config["prompt"]["anchor_text"] == "Answer: "
    training = config["training"]
    assert (training["epochs"], training["passages_per_step"]) == (3, 64)
    assert (training["k_token_depth"], training["first_token_weight"]) == (8, 0.8)
    assert training["precision"] == "bfloat16"
    assert training["checkpoint_interval_seconds"] == 180
    assert not (tmp_path / "run").exists()


def test_the_defaults_are_those_of_the_shipped_experiment(capsys):
    assert train(["--dry_run", "--use_fp16"]) == 0
    config, shipped = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(BASE.read_text())
    for section in ("data", "wire", "training"):
        for key, value in shipped[section].items():
            if isinstance(value, dict):
                assert value.items() <= config[section][key].items()
            else:
                assert config[section][key] == value, key
    pinned = {receiver["repo_id"]: receiver["revision"] for receiver in shipped["receivers"]}
    assert {r["repo_id"]: r["revision"] for r in config["receivers"]} == pinned


def test_receivers_may_be_folders_or_repositories_at_a_commit(tmp_path, capsys):
    commit = "0" * 40
    options = ["--llama_id", f"me/model@{commit}", "--qwen_id", str(tmp_path), "--dry_run"]
    assert train(options) == 0
    first, second = yaml.safe_load(capsys.readouterr().out)["receivers"]
    assert (first["repo_id"], first["revision"]) == ("me/model", commit)
    assert second["path"] == str(tmp_path)


@pytest.fixture
def checkpoint(tmp_path, capsys) -> Path:
    arguments = COMMAND.format(llama="llama", folder=tmp_path / "run").split()
    train(arguments)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(capsys.readouterr().out)
    return tmp_path / "run"


def test_evaluation_asks_what_was_trained(checkpoint, capsys):
    options = "--samples 200 --dataset squad --calibration embed_rms --dry_run".split()
    arguments = ["--ckpt", str(checkpoint), *options, "--latent_anchor_text", "Answer: "]
    assert evaluate(arguments) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["max_test_questions"] == 200
    wire = checkpoint / "wires" / "shared" / "seed1"
    wire.mkdir(parents=True)
    assert evaluate(["--ckpt", str(wire), "--dry_run"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset hotpotqa", "the wire was trained with 'squad'"),
        ("--calibration none", "the wire was trained with 'embed_rms'"),
        ("--latent_anchor_text Answer:", "the wire was trained with 'Answer: '"),
        ("--model_id x", "unrecognized arguments: --model_id x"),
    ],
)
def test_evaluation_refuses_what_was_not_trained(checkpoint, capsys, arguments, message):
    assert evaluate(["--ckpt", str(checkpoint), *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_unknown_flags_and_values_are_refused(tmp_path, capsys):
    assert train(["--latent_length", "3"]) == 2
    assert "unrecognized arguments: --latent_length 3" in capsys.readouterr().err
    assert train(["--latent_len", "0", "--dry_run"]) == 2
    assert "wire.encoder.num_latents: 0 is not allowed" in capsys.readouterr().err
    assert evaluate(["--ckpt", str(tmp_path)]) == 2
    assert "there is no config.yaml" in capsys.readouterr().err


def test_the_documented_table_is_complete():
    table = (ROOT / "docs" / "original-commands.md").read_text()
    flags = [o for a in _train_parser()._actions for o in a.option_strings if o != "-h"]
    assert not [flag for flag in flags if f"`{flag}`" not in table and flag != "--help"]
