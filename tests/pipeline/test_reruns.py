"""What an edit makes Snakemake run again: the stages that use what was edited, and what follows."""

import pytest

REPORT = {"report", "all"}
AFTER_HEADLINE = {"figures"} | REPORT
AFTER_STATISTICS = {"headline"} | AFTER_HEADLINE
AFTER_METRICS = {"metrics", "provenance"} | AFTER_STATISTICS
AFTER_EVALUATION = {"statistics"} | AFTER_METRICS
AFTER_TRAINING = {"evaluate_wire"} | AFTER_EVALUATION
AFTER_PREPARE = {
    "train_wire",
    "evaluate_text",
    "train_compressor",
    "evaluate_compressed",
} | AFTER_TRAINING


def test_nothing_is_run_again_without_a_reason(finished):
    assert finished.plan() == {}
    assert "Nothing to be done" in finished.snakemake("--cores", "1").stdout


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("latentwire/receivers/build.py", {"receiver", "prepare"} | AFTER_PREPARE),
        ("latentwire/data/prepare.py", {"prepare"} | AFTER_PREPARE),
        ("latentwire/data/pocket.py", {"prepare"} | AFTER_PREPARE),
        ("latentwire/training/wire.py", {"train_wire"} | AFTER_TRAINING),
        ("latentwire/evaluation/evaluate.py", {"evaluate_text"} | AFTER_TRAINING),
        ("latentwire/statistics/metrics.py", AFTER_METRICS),
        ("latentwire/statistics/comparisons.py", {"statistics"} | AFTER_STATISTICS),
        ("latentwire/reporting/headline.py", AFTER_STATISTICS),
        ("latentwire/reporting/figures.py", AFTER_HEADLINE),
        ("latentwire/reporting/provenance.py", {"provenance"} | REPORT),
        ("workflow/report/ratio.rst", REPORT),
        # Bundled receivers do not depend on how they were once made.
        ("latentwire/receivers/pretrain.py", set()),
        # What the frame holds shows in settings and paths.
        ("latentwire/cli.py", set()),
        ("environment.yml", set()),
    ],
)
def test_an_edited_file_reruns_its_stage_and_what_follows(finished, edited, file, stages):
    edited(file)
    assert set(finished.plan()) == stages


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("statistics={correction: fdr_bh}", {"statistics", "provenance"} | AFTER_STATISTICS),
        (
            "evaluation={max_new_tokens: 8}",
            {"evaluate_text", "evaluate_compressed"} | AFTER_TRAINING,
        ),
        ("training={steps: 3500}", {"train_wire"} | AFTER_TRAINING),
        ("training={checkpoint_interval_seconds: 1}", set()),
        ("length={max_source_tokens: 500}", {"prepare"} | AFTER_PREPARE),
        ("seeds=[1,2]", {"train_wire"} | AFTER_TRAINING),
    ],
)
def test_a_config_key_reruns_the_stages_that_read_it(finished, setting, stages):
    assert set(finished.plan("--config", setting)) == stages


def test_another_seed_trains_one_more_wire_only(finished):
    assert finished.plan("--config", "seeds=[1,2]")["train_wire"] == 1
