"""The whole workflow on the smallest experiment: every file of the contract, with its content."""

import csv
import json
import re

import pyarrow.parquet as pq
import pytest
from repository import SMOKE

from latentwire.configuration import load_experiment
from latentwire.data.tables import SCHEMA as EXAMPLE_SCHEMA
from latentwire.evaluation.predictions import SCHEMA as PREDICTION_SCHEMA

READERS = ("llama", "qwen")
RECEIVERS = (*READERS, "gemma")
RATIOS = {4.0, 8.0}
METRIC_COLUMNS = (
    "experiment task method receiver sender wire target_ratio ratio source_mode question_aware "
    "seed metric value ci_low ci_high n n_clusters"
)
PREDICTION_COLUMNS = (
    "example_id passage_id prediction em f1 nll first_token_correct source_tokens prompt_tokens "
    "soft_tokens source_bytes payload_bytes wire sender target_ratio ratio source_mode "
    "question_aware source_gzip_bytes fell_back"
)
METRICS = (
    "em f1 relative_f1 nll first_token_accuracy ratio source_tokens prompt_tokens payload_bytes "
    "source_gzip_bytes encode_seconds answer_seconds swap_followed fell_back "
    "accuracy majority_accuracy shuffled_accuracy"
)


@pytest.fixture
def layout(smoke_layout):
    return smoke_layout


@pytest.fixture(scope="module")
def metrics(smoke_layout):
    with smoke_layout.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def read(path):
    return json.loads(path.read_text())


def test_a_second_run_has_nothing_to_do(smoke):
    outcome = smoke.snakemake("--cores", "2", "--configfile", SMOKE)
    assert "Nothing to be done" in outcome.stdout


def test_every_declared_file_is_there_and_no_state_is_left(smoke, layout):
    outputs = smoke.outputs("--configfile", SMOKE)
    assert len(outputs) > 30
    assert [path for path in outputs if not path.stat().st_size] == []
    assert not list(layout.state("any").parent.glob("*"))


def test_the_configuration_beside_the_results_is_the_whole_one(smoke, layout):
    assert load_experiment(layout.config) == load_experiment(smoke.path / SMOKE)


def test_tables_of_questions_keep_their_contract(layout):
    passages = {}
    for split in ("train", "dev", "test"):
        table = pq.read_table(layout.split(split))
        assert table.schema.names == EXAMPLE_SCHEMA.names
        assert table.schema.names == ("example_id passage_id context question answers task".split())
        passages[split] = set(table["passage_id"].to_pylist())
        assert passages[split]
    assert not passages["train"] & passages["test"]
    assert not passages["dev"] & passages["test"]
    assert layout.data_card.with_suffix(".md").read_text().startswith("#")


@pytest.mark.parametrize("receiver", READERS)
@pytest.mark.parametrize(
    ("method", "has_ratio", "has_wire"),
    [
        ("text", False, False),
        ("closed_book", False, False),
        ("truncate_head", True, False),
        ("latent", True, True),
        ("latent_int8", True, True),
        ("latent_int4", True, True),
        ("control_shuffled", True, True),
        ("llmlingua", True, False),
        ("llmlingua2", True, False),
        ("control_noise", True, True),
        ("control_swap", True, True),
        ("control_swap", False, False),
    ],
)
def test_predictions_keep_their_contract(layout, receiver, method, has_ratio, has_wire):
    wire = ("shared", 1) if has_wire else ("none", 0)
    table = pq.read_table(layout.predictions(method, receiver, *wire))
    assert table.schema.equals(PREDICTION_SCHEMA)
    assert set(PREDICTION_COLUMNS.split()) <= set(table.schema.names)
    rows = table.to_pylist()
    ratios = RATIOS if has_ratio else {None}
    assert {row["target_ratio"] for row in rows} == ratios
    test_ids = pq.read_table(layout.split("test"))["example_id"].to_pylist()
    for ratio in ratios:
        ids = [row["example_id"] for row in rows if row["target_ratio"] == ratio]
        assert sorted(ids) == sorted(test_ids)
    assert all((row["soft_tokens"] > 0) == has_wire for row in rows)
    assert all((row["payload_bytes"] > 0) == (method != "closed_book") for row in rows)


def test_a_new_receiver_reads_the_messages_of_the_shared_wire(layout):
    shared, adapted = (
        pq.read_table(layout.predictions(method, receiver, wire, 1)).to_pylist()
        for method, receiver, wire in (
            ("latent", "llama", "shared"),
            ("latent_adapted", "gemma", "adapted"),
        )
    )
    assert {row["wire"] for row in adapted} == {"adapted"}
    assert [(row["example_id"], row["soft_tokens"], row["payload_bytes"]) for row in adapted] == [
        (row["example_id"], row["soft_tokens"], row["payload_bytes"])
        for row in shared
        if row["target_ratio"] == 4
    ]


@pytest.mark.parametrize("receiver", READERS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_every_receiver_reaches_every_target_ratio(metrics, receiver, ratio):
    (measured,) = {
        float(row["ratio"])
        for row in metrics
        if (row["method"], row["receiver"], row["task"]) == ("latent", receiver, "all")
        and float(row["target_ratio"]) == ratio
    }
    # Widths are chosen on training passages; so few of them predict the test split roughly.
    assert measured >= 0.95 * ratio


def test_a_wire_folder_holds_the_wire_its_card_and_its_log(layout):
    folder = layout.wire("shared", 1)
    for name in ("model.safetensors", "config.json", "README.md", "tokenizer.json"):
        assert (folder / name).is_file()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    for row in rows:
        assert {"examples", "loss", "learning_rate", "gradient_norm"} <= set(row)
        assert list(row)[-2:] == ["seconds", "tokens_per_second"]


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_a_receiver_folder_holds_the_model_and_its_description(layout, receiver):
    description = read(layout.receiver(receiver) / "receiver.json")
    assert description["embedding_rms"] > 0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (layout.receiver(receiver) / name).is_file()


def test_metrics_keep_their_contract(metrics):
    assert list(metrics[0]) == METRIC_COLUMNS.split()
    assert {row["metric"] for row in metrics} == set(METRICS.split())
    assert {row["receiver"] for row in metrics} == set(RECEIVERS)
    tasks = {row["task"] for row in metrics}
    assert {"all", "pocket_unseen_names"} < tasks


def test_statistics_are_complete_and_written_twice(layout):
    statistics = read(layout.statistics)
    assert statistics == read(layout.statistical_report)
    assert len(statistics["comparisons"]) == 3 * len(READERS) * len(RATIOS)
    for comparison in statistics["comparisons"]:
        assert {"difference", "ci_low", "p_value", "p_value_corrected", "effect_size"} <= set(
            comparison
        )
    assert len(statistics["non_inferiority"]) == len(READERS) * len(RATIOS)


def test_headline_and_provenance_are_written(layout):
    results = read(layout.headline)
    # Beside text, closed book and swapped answers: two truncations, chosen sentences and two
    # compressors; latents in three forms and five controls; the receiver that was added at one
    # ratio; and of two senders the text that they write, also without a limit, and their own
    # answers, for every receiver, and one wire's messages at one ratio for one.
    texts, latents, adapted = len(RECEIVERS) * (3 + 5 * len(RATIOS)), 8 * len(RATIOS), 1
    relayed = 2 * (len(RECEIVERS) * (1 + len(RATIOS) + 1) + 1)
    assert len(results["headline"]) == texts + len(READERS) * latents + adapted + relayed
    assert results["verdicts"]
    provenance = read(layout.provenance)
    assert set(provenance) >= {"commit", "dirty", "packages", "hardware", "threads"}


def test_every_stage_leaves_a_log_and_a_benchmark(layout):
    logs = {path.stem for path in (layout.root / "logs").iterdir()}
    benchmarks = {path.stem for path in (layout.root / "benchmarks").iterdir()}
    assert logs == benchmarks
    assert {"prepare", "train_wire-shared-seed1", "evaluate_text-llama", "report"} <= logs
    assert {"train_compressor", "evaluate_compressed-qwen", "probe-gemma"} <= logs
    assert {"adapt-adapted-seed1", "evaluate_variant-latent_adapted-gemma-adapted-seed1"} <= logs
    assert [stage for stage in logs if not layout.log(stage).stat().st_size] == []


def test_the_report_holds_every_part_and_loads_nothing(layout):
    report = layout.report.read_text()
    for part in (
        "Overview",
        "Quality",
        "Compression",
        "Baselines",
        "Controls",
        "Statistics",
        "Training",
        "Cost",
        "Provenance",
        "F1 against compression ratio",
    ):
        assert part in report
    # Which is how docutils tells of a fault in a caption.
    assert "system-message" not in report
    assert not re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=.?https?:", report)
    assert not re.findall(r"<link[^>]*\shref=.?https?:", report)
