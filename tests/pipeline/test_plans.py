"""What Snakemake plans, without running it."""

import re
from pathlib import Path

import pytest
import yaml

from latentwire.configuration import load_experiment

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (REPOSITORY / "config").glob("*.yaml"))
RULES = "\n".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))


def test_the_default_target_is_everything_and_few_jobs(clean):
    plan = clean.plan()
    assert {"prepare", "train_wire", "metrics", "figures", "report", "all"} <= set(plan)
    assert sum(plan.values()) <= 40
    assert clean.outputs()[-1].name == "report.html"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_plans_jobs(clean, config):
    path = clean.path / "config" / config
    experiment = load_experiment(path)
    plan = clean.plan("--configfile", f"config/{config}")
    assert plan["receiver"] == plan["evaluate_text"] == len(experiment.receivers)
    methods = experiment.evaluation.compressor_methods
    assert plan.get("evaluate_compressed", 0) == bool(methods) * len(experiment.receivers)
    trains_compressor = "llmlingua2" in methods and experiment.baselines.llmlingua2 is None
    assert plan.get("train_compressor", 0) == trains_compressor
    wires = [experiment.of_wire(wire) for wire in experiment.wires]
    adapted = [own for own in wires if own.wire.encoder_of is not None]
    assert plan["evaluate_wire"] == len(experiment.seeds)
    assert plan.get("adapt", 0) == sum(len(own.seeds) for own in adapted)
    assert plan["train_wire"] + plan.get("adapt", 0) == sum(len(own.seeds) for own in wires)
    assert plan.get("evaluate_variant", 0) == sum(
        len(own.seeds) * len(own.readers) * len(own.evaluation.wire_methods) for own in wires[1:]
    )
    assert plan.get("evaluate_relay", 0) == bool(experiment.senders) * len(experiment.receivers)


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_every_profile_plans_jobs(clean, profile):
    assert clean.plan("--profile", f"profiles/{profile}", "all")["report"] == 1


def test_what_targets_hand_over_plans_jobs(clean):
    handed_over = re.findall(
        r"python -m snakemake ([^\"]*config/\S+?\.yaml[^\"]*)",
        (REPOSITORY / "Snakefile").read_text(),
    )
    assert len(handed_over) == 2
    for arguments in handed_over:
        assert clean.plan(*arguments.format(threads=1).split())["train_wire"] > 1


def test_there_is_no_profile_that_loads_by_itself():
    assert not (REPOSITORY / "profiles" / "default").exists()


@pytest.mark.parametrize("config", ["smoke.yaml", "squad-original.yaml"])
def test_a_config_is_not_merged_with_the_default(clean, config):
    expected = load_experiment(clean.path / "config" / config)
    # Touching runs no stage, but starts the workflow, which leaves its configuration.
    clean.snakemake("--touch", "--cores", "1", "--configfile", f"config/{config}", check=False)
    resolved = clean.path / "results" / expected.experiment / "config.yaml"
    assert load_experiment(resolved) == expected
    assert set(yaml.safe_load(resolved.read_text())) == set(type(expected).model_fields)


def test_faults_of_a_config_are_told_at_once_and_by_key(clean):
    (clean.path / "faulty.yaml").write_text(
        "experiment: faulty\nwire: {latent_dmi: 3, adapter: {gian: 2}}\nseeds: []\n"
    )
    outcome = clean.snakemake("--dry-run", "--configfile", "faulty.yaml", check=False)
    assert outcome.returncode != 0
    for fault in ("wire.latent_dmi", "wire.adapter.gian", "seeds"):
        assert fault in outcome.stdout


def test_methods_without_a_wire_need_no_evaluation_of_one(clean):
    methods = "evaluation={methods: [text, closed_book]}"
    plan = clean.plan("metrics", "--config", methods, "statistics={family: []}")
    assert plan == {"receiver": 2, "prepare": 1, "evaluate_text": 2, "metrics": 1}


def test_the_report_can_be_asked_for_by_name(clean):
    assert clean.plan("report", "--cores", "1")["report"] == 1
    assert "all" not in clean.plan("report", "--cores", "1")


def test_pretraining_can_be_asked_for_by_name(clean):
    plan = clean.plan("pretrain_receivers", "--configfile", "config/smoke.yaml")
    assert plan == {"receiver": 3, "pretrain_receivers": 1}
    outcome = clean.snakemake("--dry-run", "pretrain_receivers", check=False)
    assert outcome.returncode != 0
    assert "source: pretrain" in outcome.stdout


def test_a_missing_data_file_is_told_before_any_work(clean):
    data = "data={source: json, train: nowhere.json, test: nowhere.json}"
    outcome = clean.snakemake("--dry-run", "--config", "experiment=files", data, check=False)
    assert outcome.returncode != 0
    assert "data.train: nowhere.json" in outcome.stdout


def test_lint_is_silent(clean):
    assert "good condition" in clean.snakemake("--lint").stdout


def test_stages_replace_the_shell_and_no_pipe_hides_their_fate():
    commands = re.findall(r"    shell:\n((?:        .*\n?)+)", RULES)
    assert len(commands) == RULES.count("shell:\n") > 8
    for command in commands:
        assert command.lstrip().startswith('"exec python -m '), command
        assert "|" not in command, command
        for value in re.findall(r"{(?:params|wildcards|output|log)[^}]*}", command):
            assert value.endswith(":q}"), command


def test_no_declared_output_holds_the_state_of_a_training(clean):
    assert not re.search(r"\b(directory|update)\(", RULES)
    assert not [path for path in clean.outputs() if ".state" in path.parts]
