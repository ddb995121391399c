"""The metrics table and the comparisons, from synthetic prediction files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from statsmodels.stats.multitest import multipletests

from latentwire.config import (
    RELAY_METHODS,
    VARIANT_METHODS,
    Evaluation,
    Experiment,
    Method,
    Statistics,
    Variant,
    Wire,
)
from latentwire.errors import UserError
from latentwire.evaluation.predictions import Prediction, prediction_runs, write_predictions
from latentwire.layout import Layout
from latentwire.reporting.ablations import write_ablations
from latentwire.reporting.headline import write_headline
from latentwire.statistics.classical import mcnemar_test
from latentwire.statistics.comparisons import write_statistics
from latentwire.statistics.metrics import COLUMNS, write_metrics
from latentwire.statistics.planning import Plan, plan_power

NUM_PASSAGES, NUM_QUESTIONS = 24, 3
SOURCE_TOKENS = 60
ACCURACY = {
    Method.text: 0.95,
    Method.closed_book: 0.1,
    Method.truncate_head: 0.35,
    Method.llmlingua2: 0.4,
    Method.latent: 0.6,
    Method.latent_int8: 0.6,
    Method.latent_int4: 0.55,
    Method.control_shuffled: 0.1,
    Method.control_swap: 0.0,
    Method.ablation: 0.3,
    Method.latent_adapted: 0.5,
    Method.telepathy_hub: 0.5,
    Method.text_relay: 0.2,
    Method.sender_alone: 0.9,
}


@pytest.fixture
def experiment():
    return Experiment(
        experiment="synthetic",
        seeds=[1, 2],
        wire=Wire(target_ratios=[4, 8]),
        evaluation=Evaluation(
            methods=[
                method for method in ACCURACY if method not in (*VARIANT_METHODS, *RELAY_METHODS)
            ]
        ),
        statistics=Statistics(resamples=400),
    )


@pytest.fixture
def layout(experiment, tmp_path):
    layout = Layout(experiment.experiment, tmp_path)
    for path, rows in predictions(experiment, layout).items():
        write_predictions(path, rows)
    return layout


def predictions(experiment, layout):
    rng = np.random.default_rng(0)
    files = {}
    for receiver in experiment.receivers:
        for run in prediction_runs(experiment, receiver.name):
            files[layout.predictions(run.method, receiver.name, run.wire, run.seed)] = [
                prediction(run.method, run.wire, number, ratio, rng, sender)
                for sender in run.senders
                for ratio in run.target_ratios
                for number in range(NUM_PASSAGES * NUM_QUESTIONS)
            ]
    return files


def prediction(method, wire, number, target_ratio, rng, sender=""):
    passage = number // NUM_QUESTIONS
    source_tokens = SOURCE_TOKENS + passage
    positions = source_tokens if target_ratio is None else -(-source_tokens // target_ratio)
    if method == Method.closed_book:
        positions = 0
    is_swapped = method == Method.control_swap and number % NUM_QUESTIONS > 0
    is_correct = float(rng.random() < ACCURACY[method])
    return Prediction(
        example_id=f"q{number:03}",
        passage_id=f"p{passage}",
        task="odd" if passage % 2 else "even",
        prediction="answer",
        em=is_correct,
        f1=max(is_correct, round(0.5 * rng.random(), 2)) if method != Method.text else is_correct,
        nll=float(rng.random()),
        first_token_correct=is_correct,
        source_tokens=source_tokens,
        prompt_tokens=int(positions) + 10,
        soft_tokens=int(positions) if wire != "none" else 0,
        source_bytes=4 * source_tokens,
        source_gzip_bytes=3 * source_tokens,
        payload_bytes=int(4 * positions),
        encode_seconds=0.0,
        answer_seconds=0.01 + 0.001 * float(rng.random()),
        wire=wire,
        sender=sender,
        target_ratio=target_ratio,
        ratio=source_tokens / positions if positions else None,
        source_mode="context",
        question_aware=False,
        swap_followed=float(rng.random() < 0.8) if is_swapped else None,
        fell_back=method == Method.llmlingua2 and number % 4 == 0,
    )


def metrics(experiment, layout):
    write_metrics(experiment, layout)
    with layout.metrics.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def select(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def rewrite(experiment, layout, path, change):
    write_predictions(path, change(predictions(experiment, layout)[path]))


def statistics(experiment, layout):
    write_statistics(experiment, layout)
    assert layout.statistics.read_bytes() == layout.statistical_report.read_bytes()

    def refuse(constant):
        raise AssertionError(f"{constant} in the JSON")

    return json.loads(layout.statistics.read_text(), parse_constant=refuse)


def test_metrics_has_the_columns_and_every_row_set_once(experiment, layout):
    rows = metrics(experiment, layout)
    assert tuple(rows[0]) == COLUMNS
    keys = [
        tuple(
            row[key]
            for key in ("task", "method", "receiver", "wire", "target_ratio", "seed", "metric")
        )
        for row in rows
    ]
    assert len(set(keys)) == len(keys)
    row_sets = {key[:-1] for key in keys}
    runs_of_a_receiver = 3 + 2 * 2 + 5 * 2 * 2
    assert len(row_sets) == 2 * 3 * runs_of_a_receiver
    assert {row["task"] for row in rows} == {"all", "even", "odd"}
    assert {row["seed"] for row in select(rows, method="latent")} == {"1", "2"}
    assert {row["n"] for row in select(rows, task="all")} == {"72"}
    assert {row["n_clusters"] for row in select(rows, task="odd")} == {"12"}
    assert {row["metric"] for row in select(rows, method="latent")} == {
        *("em", "f1", "relative_f1", "nll", "first_token_accuracy", "ratio", "source_tokens"),
        *("prompt_tokens", "payload_bytes", "source_gzip_bytes", "encode_seconds"),
        "answer_seconds",
    }


def test_what_a_compressor_left_nothing_of_is_counted(experiment, layout):
    rows = select(metrics(experiment, layout), task="all", metric="fell_back")
    assert {(row["method"], row["target_ratio"], row["value"]) for row in rows} == {
        ("llmlingua2", "4.0", "0.25"),
        ("llmlingua2", "8.0", "0.25"),
    }


def test_values_are_means_over_questions_with_intervals_around_them(experiment, layout):
    rows = metrics(experiment, layout)
    path = layout.predictions("latent", "qwen", "shared", 2)
    own = [p.f1 for p in predictions(experiment, layout)[path] if p.target_ratio == 8]
    text = [p.f1 for p in predictions(experiment, layout)[layout.predictions("text", "qwen")]]
    wanted = {"task": "all", "method": "latent", "receiver": "qwen", "seed": "2"}
    (f1,) = select(rows, **wanted, target_ratio="8.0", metric="f1")
    (relative,) = select(rows, **wanted, target_ratio="8.0", metric="relative_f1")
    assert float(f1["value"]) == pytest.approx(np.mean(own))
    assert float(relative["value"]) == pytest.approx(np.mean(own) / np.mean(text))
    for row in (f1, relative):
        assert float(row["ci_low"]) < float(row["value"]) < float(row["ci_high"])


def test_a_swap_is_followed_where_the_text_follows_it(experiment, layout):
    rows = [row for row in metrics(experiment, layout) if row["metric"] == "swap_followed"]
    assert {row["method"] for row in rows} == {"control_swap"}
    files = predictions(experiment, layout)
    text = [row.swap_followed for row in files[layout.predictions("control_swap", "qwen")]]
    path = layout.predictions("control_swap", "qwen", "shared", 2)
    latent = [row.swap_followed for row in files[path] if row.target_ratio == 8]
    wanted = {"task": "all", "receiver": "qwen"}
    (of_text,) = select(rows, **wanted, wire="none")
    assert float(of_text["value"]) == pytest.approx(
        np.mean([own for own in text if own is not None])
    )
    (of_latent,) = select(rows, **wanted, seed="2", target_ratio="8.0")
    where_text_does = [own for own, other in zip(latent, text, strict=True) if other]
    assert float(of_latent["value"]) == pytest.approx(np.mean(where_text_does))
    assert float(of_latent["value"]) not in (0, 1)


def test_a_swap_that_the_text_never_follows_is_not_estimable(experiment, layout):
    path = layout.predictions("control_swap", "llama")
    rewrite(
        experiment,
        layout,
        path,
        lambda rows: [replace(row, swap_followed=row.swap_followed and 0.0) for row in rows],
    )
    own = select(metrics(experiment, layout), receiver="llama", metric="swap_followed")
    assert {row["value"] for row in own if row["wire"] == "shared"} == {""}
    assert {row["value"] for row in own if row["wire"] == "none"} == {"0.0"}


def test_the_ratio_is_of_totals(experiment, layout):
    rows = metrics(experiment, layout)
    lengths = [SOURCE_TOKENS + passage for passage in range(NUM_PASSAGES)]
    expected = sum(lengths) / sum(-(-length // 4) for length in lengths)
    for method in ("latent", "truncate_head"):
        for row in select(rows, task="all", method=method, target_ratio="4.0", metric="ratio"):
            assert float(row["value"]) == pytest.approx(expected)
            assert float(row["ratio"]) == pytest.approx(expected)
    assert {row["value"] for row in select(rows, method="text", metric="ratio")} == {"1.0"}
    assert select(rows, method="closed_book")
    assert not select(rows, method="closed_book", metric="ratio")
    assert {row["ratio"] for row in select(rows, method="closed_book")} == {""}


def test_a_source_that_is_truncated_away_has_no_positions(experiment, layout):
    path = layout.predictions("truncate_head", "llama")
    rewrite(
        experiment,
        layout,
        path,
        lambda rows: [replace(row, ratio=None) if row.passage_id == "p0" else row for row in rows],
    )
    (row,) = select(
        metrics(experiment, layout),
        task="all",
        method="truncate_head",
        receiver="llama",
        target_ratio="4.0",
        metric="ratio",
    )
    lengths = [SOURCE_TOKENS + passage for passage in range(NUM_PASSAGES)]
    expected = sum(lengths) / sum(-(-length // 4) for length in lengths[1:])
    assert float(row["value"]) == pytest.approx(expected)


def test_what_does_not_vary_has_no_interval(experiment, layout):
    rows = metrics(experiment, layout)
    (relative,) = select(rows, task="all", method="text", receiver="llama", metric="relative_f1")
    assert (relative["value"], relative["ci_low"], relative["ci_high"]) == ("1.0", "", "")


def test_relative_f1_to_a_text_score_of_zero_is_empty(experiment, layout):
    path = layout.predictions("text", "llama")
    rewrite(experiment, layout, path, lambda rows: [replace(row, f1=0.0) for row in rows])
    rows = metrics(experiment, layout)
    values = [row["value"] for row in select(rows, receiver="llama", metric="relative_f1")]
    assert set(values) == {""}
    verdict = statistics(experiment, layout)["non_inferiority"][0]
    assert (verdict["verdict"], verdict["relative_f1"]) == ("not estimable", None)
    assert "scores 0" in verdict["sentence"]


@pytest.mark.parametrize("write", [write_metrics, write_statistics])
def test_order_of_rows_does_not_matter(experiment, layout, write):
    def outcome():
        write(experiment, layout)
        return (layout.metrics if write is write_metrics else layout.statistics).read_bytes()

    before = outcome()
    path = layout.predictions("latent", "llama", "shared", 1)
    rewrite(experiment, layout, path, lambda rows: rows[::-1])
    assert outcome() == before


def test_the_family_is_every_pair_at_every_receiver_and_ratio(experiment, layout):
    report = statistics(experiment, layout)
    settings, comparisons = report["settings"], report["comparisons"]
    assert settings["family_size"] == len(comparisons) == 3 * 2 * 2
    assert (settings["seed"], settings["resamples"], settings["correction"]) == (1, 400, "holm")
    smallest = min(comparison["p_value"] for comparison in comparisons)
    for comparison in comparisons:
        assert comparison["p_value_corrected"] >= comparison["p_value"] >= 1 / 401
        if comparison["p_value"] == smallest:
            assert comparison["p_value_corrected"] == pytest.approx(12 * smallest)
        assert comparison["ci_low"] < comparison["difference"] < comparison["ci_high"]
        assert comparison["difference"] == pytest.approx(
            comparison["method_mean"] - comparison["reference_mean"]
        )
        assert comparison["minimum_detectable_effect"] > 0
        assert comparison["effect_size"] > 0
        assert (comparison["n"], comparison["n_clusters"]) == (72, 24)


def test_every_correction_and_effect_stands_beside_the_raw_p_value(experiment, layout):
    comparisons = statistics(experiment, layout)["comparisons"]
    p_values = [comparison["p_value"] for comparison in comparisons]
    for name in ("holm", "fdr_bh", "fdr_by", "bonferroni"):
        expected = multipletests(p_values, method=name)[1]
        assert [own["p_values_corrected"][name] for own in comparisons] == pytest.approx(expected)
    for comparison in comparisons:
        assert comparison["p_value_corrected"] == comparison["p_values_corrected"]["holm"]
        assert comparison["ci_bca_low"] < comparison["difference"] < comparison["ci_bca_high"]
        assert (comparison["test"], comparison["unit"]) == (
            "paired_permutation",
            "passages, given the seeds",
        )
        effects = comparison["effect_sizes"]
        assert effects["cohens_dz"]["value"] == comparison["effect_size"]
        for effect in effects.values():
            assert effect["ci_low"] < effect["value"] < effect["ci_high"]


def test_tests_that_assume_independence_say_so_and_carry_nothing(experiment, layout):
    comparison = statistics(experiment, layout)["comparisons"][0]
    beside = comparison["assuming_independent_questions"]
    assert beside["assumption"] == "assumes independent questions"
    assert beside["wilcoxon"]["metric"] == "f1"
    assert "assumption:assumes independent questions" in beside["wilcoxon"]["signature"]
    assert comparison["p_value"] != beside["wilcoxon"]["p_value"]
    files = predictions(experiment, layout)
    other = files[layout.predictions("truncate_head", "llama")]
    for seed in (1, 2):
        own = files[layout.predictions("latent", "llama", "shared", seed)]
        right = [
            [row.em for row in rows if row.target_ratio == comparison["target_ratio"]]
            for rows in (own, other)
        ]
        expected = mcnemar_test(*right).p_value
        assert beside["mcnemar_per_seed"][str(seed)]["p_value"] == expected


def test_five_seeds_make_seeds_a_unit(experiment, tmp_path):
    experiment = experiment.model_copy(update={"seeds": [1, 2, 3, 4, 5]})
    layout = Layout("five", tmp_path)
    for path, rows in predictions(experiment, layout).items():
        write_predictions(path, rows)
    report = statistics(experiment, layout)
    comparison = report["comparisons"][0]
    assert (comparison["test"], comparison["unit"]) == ("paired_bootstrap", "passages and seeds")
    assert comparison["p_value"] == comparison["bootstrap_p_value"]
    assert len(comparison["method_mean_per_seed"]) == 5
    assert report["non_inferiority"][0]["unit"] == "passages and seeds"
    assert "unit:clusters and seeds" in report["non_inferiority"][0]["signature"]


def test_methods_of_different_seeds_are_paired_by_their_means(with_variants):
    experiment, layout = with_variants
    family = [(Method.ablation, Method.latent)]
    variants = [v.model_copy(update={"seeds": [2, 3]}) for v in experiment.variants[:1]]
    changed = experiment.model_copy(
        update={
            "variants": variants,
            "statistics": experiment.statistics.model_copy(update={"family": family}),
        }
    )
    for path, rows in predictions(changed, layout).items():
        write_predictions(path, rows)
    comparison = statistics(changed, layout)["comparisons"][0]
    assert list(comparison["method_mean_per_seed"]) == ["2", "3"]
    assert comparison["assuming_independent_questions"]["mcnemar_per_seed"] == {}
    assert "odds_ratio" not in comparison["effect_sizes"]
    assert comparison["difference"] == pytest.approx(
        comparison["method_mean"] - comparison["reference_mean"]
    )


def test_swapped_messages_are_not_averaged_with_swapped_texts(experiment, layout):
    family = [(Method.control_swap, Method.latent)]
    changed = experiment.model_copy(
        update={"statistics": experiment.statistics.model_copy(update={"family": family})}
    )
    comparison = statistics(changed, layout)["comparisons"][-1]
    assert list(comparison["method_mean_per_seed"]) == ["1", "2"]


def test_power_is_planned_from_the_answers(experiment, layout):
    text = plan_power(experiment, layout, Plan(effect=0.05, passages=100))
    lines = text.splitlines()
    assert lines[0].startswith("From 72 questions about 24 passages of synthetic, F1")
    columns = ["detects now", "with 100 passages", "passages for 0.05"]
    assert [name in lines[2] for name in columns] == [True] * 3
    pairs = 3 + 1
    assert len(lines[3:]) == 2 * 2 * pairs
    row = next(line for line in lines if "latent - truncate_head" in line).split()
    now = statistics(experiment, layout)["comparisons"][0]["minimum_detectable_effect"]
    assert float(row[-3]) == pytest.approx(now, abs=1e-4)
    assert float(row[-2]) == pytest.approx(now * np.sqrt(24 / 100), rel=0.05)


def test_seeds_are_averaged_and_listed(experiment, layout):
    report = statistics(experiment, layout)
    comparison = report["comparisons"][0]
    assert set(comparison["method_mean_per_seed"]) == {"1", "2"}
    assert set(comparison["reference_mean_per_seed"]) == {"0"}
    means = list(comparison["method_mean_per_seed"].values())
    assert means[0] != means[1]
    assert comparison["method_mean"] == pytest.approx(np.mean(means))


def test_the_verdict_on_latents_is_in_words(experiment, layout):
    verdicts = statistics(experiment, layout)["non_inferiority"]
    assert len(verdicts) == 2 * 2
    for verdict in verdicts:
        assert verdict["verdict"] == "inferior"
        assert verdict["sentence"].startswith("No: latents keep less than 97 % of the text F1")
        assert verdict["relative_f1_ci_low"] < verdict["relative_f1"] < 0.97
    text = predictions(experiment, layout)[layout.predictions("text", "llama")]
    for seed in experiment.seeds:
        rewrite(
            experiment,
            layout,
            layout.predictions("latent", "llama", "shared", seed),
            lambda rows: [
                replace(row, f1=text[index % len(text)].f1) for index, row in enumerate(rows)
            ],
        )
    verdict = statistics(experiment, layout)["non_inferiority"][0]
    assert verdict["verdict"] == "non-inferior"
    assert verdict["sentence"].startswith("Yes: latents keep at least 97 %")


def test_pairs_without_ratios_are_compared_once_and_equal_methods_are_not_estimable(
    experiment, layout
):
    family = [(Method.text, Method.closed_book), (Method.text, Method.text)]
    changed = experiment.model_copy(
        update={"statistics": experiment.statistics.model_copy(update={"family": family})}
    )
    report = statistics(changed, layout)
    assert len(report["comparisons"]) == 4
    for comparison in report["comparisons"]:
        assert comparison["target_ratio"] is None
        is_same = comparison["reference"] == "text"
        assert (comparison["p_value"] is None) == is_same
        assert (comparison["p_value_corrected"] is None) == is_same
        assert (comparison["not_estimable"] is not None) == is_same
    assert report["settings"]["num_not_estimable"] == 2


def test_an_empty_family_says_so_and_one_without_latents_has_no_verdict(experiment, layout):
    changed = experiment.model_copy(
        update={
            "evaluation": Evaluation(methods=[Method.text]),
            "statistics": Statistics(family=[]),
        }
    )
    report = statistics(changed, layout)
    assert (report["comparisons"], report["non_inferiority"]) == ([], [])
    assert "empty" in report["settings"]["family_note"]


@pytest.mark.parametrize("write", [write_metrics, write_statistics])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 examples are missing"),
        (
            lambda rows: [replace(rows[0], f1=float("nan")), *rows[1:]],
            "f1 is missing or not a finite",
        ),
        (lambda rows: [replace(rows[0], nll=None), *rows[1:]], "nll is missing or not a finite"),
        (lambda rows: [replace(rows[0], em=0.5), *rows[1:]], "em must be 0 or 1"),
        (lambda rows: [*rows, rows[0]], "repeats an example"),
        (lambda rows: rows[: len(rows) // 2], "holds the target ratios"),
        (lambda rows: [replace(rows[0], passage_id="p9"), *rows[1:]], "passages differ"),
        (lambda rows: [], "holds the target ratios"),
    ],
)
def test_bad_predictions_are_refused_by_file(experiment, layout, write, change, message):
    path = layout.predictions("latent", "llama", "shared", 2)
    rewrite(experiment, layout, path, change)
    with pytest.raises(UserError, match=message) as error:
        write(experiment, layout)
    assert str(path) in str(error.value)
    assert not layout.metrics.exists()
    assert not layout.statistics.exists()


@pytest.mark.parametrize("write", [write_metrics, write_statistics])
def test_a_method_without_predictions_is_refused(experiment, layout, write):
    path = layout.predictions("closed_book", "qwen")
    path.unlink()
    with pytest.raises(UserError, match="does not exist") as error:
        write(experiment, layout)
    assert str(path) in str(error.value)


def test_a_table_without_a_column_is_refused(experiment, layout):
    path = layout.predictions("text", "llama")
    pq.write_table(pq.read_table(path).drop_columns(["nll"]), path)
    with pytest.raises(UserError, match=r"lacks the columns \['nll'\]"):
        write_metrics(experiment, layout)


@pytest.fixture
def with_variants(experiment, tmp_path):
    wires = {
        "worse": (Method.ablation, [1, 2], {"encoder": {"pooling": "last"}, "latent_dim": 64}),
        "one": (Method.ablation, None, {"receivers": ["llama"], "target_ratios": [8]}),
    }
    variants = [
        Variant(name=name, method=method, seeds=seeds, wire=wire)
        for name, (method, seeds, wire) in wires.items()
    ]
    experiment = experiment.model_copy(update={"variants": variants})
    layout = Layout("variants", tmp_path)
    for path, rows in predictions(experiment, layout).items():
        write_predictions(path, rows)
    return experiment, layout


def test_rows_of_variants_stand_beside_those_of_the_shared_wire(with_variants):
    rows = select(metrics(*with_variants), task="all", metric="f1")
    worse, one = (select(rows, wire=wire) for wire in ("worse", "one"))
    assert {(row["receiver"], row["target_ratio"], row["seed"]) for row in worse} == {
        (receiver, ratio, seed)
        for receiver in ("llama", "qwen")
        for ratio in ("4.0", "8.0")
        for seed in ("1", "2")
    }
    assert [(row["receiver"], row["target_ratio"], row["seed"]) for row in one] == [
        ("llama", "8.0", "1")
    ]


def test_rows_of_senders_are_told_apart_and_controls_stay_with_their_wire(experiment, tmp_path):
    hub = Variant(
        name="telepathy-llama-qwen-layer1-blind",
        method=Method.telepathy_hub,
        wire={"senders": {"names": ["llama", "qwen"], "layers": [1]}, "target_ratios": [4]},
        controls=[Method.control_shuffled],
    )
    experiment = experiment.model_copy(update={"variants": [hub]})
    layout = Layout("senders", tmp_path)
    for path, rows in predictions(experiment, layout).items():
        write_predictions(path, rows)
    rows = select(metrics(experiment, layout), task="all", metric="f1", receiver="qwen")
    senders = {
        method: [row["sender"] for row in select(rows, method=method, target_ratio="4.0")]
        for method in ("telepathy_hub", "text_relay", "latent")
    }
    assert senders == {
        "telepathy_hub": ["llama", "qwen"],
        "text_relay": ["llama", "qwen"],
        "latent": ["", ""],
    }
    # Without a limit, too.
    assert len(select(rows, method="text_relay", target_ratio="")) == 2
    # What the shared wire is compared with is its own control, not the hub's.
    write_statistics(experiment, layout)
    compared = json.loads(layout.statistics.read_text())["comparisons"]
    control = next(
        own
        for own in compared
        if (own["reference"], own["receiver"], own["target_ratio"])
        == ("control_shuffled", "qwen", 4)
    )
    own = select(rows, method="control_shuffled", target_ratio="4.0", sender="")
    assert control["reference_mean"] == pytest.approx(
        sum(float(row["value"]) for row in own) / len(own)
    )
    write_headline(experiment, layout)
    headline = json.loads(layout.headline.read_text())
    told = {row["method"] for row in headline["headline"]}
    assert {"telepathy_hub from llama", "text_relay from qwen"} <= told
    assert any("not a fair opponent" in verdict for verdict in headline["verdicts"])


def test_ablations_are_told_against_the_default_at_the_same_seeds(with_variants, tmp_path):
    experiment, layout = with_variants
    write_ablations(experiment, layout, tmp_path / "ablations.md")
    page = (tmp_path / "ablations.md").read_text()
    scores = {
        (row["wire"], row["seed"]): float(row["value"])
        for row in metrics(experiment, layout)
        if (row["task"], row["receiver"], row["target_ratio"]) == ("all", "llama", "8.0")
        and row["metric"] == "f1"
        and row["method"] in ("latent", "ablation")
    }
    data, training = experiment.data, experiment.training
    assert f"{training.steps:,} steps of {training.passages_per_step} passages," in page
    assert f"{data.full_length_share:.0%} of them of full length" in page
    section = page.split("## llama, 8x")[1].split("##")[0]
    worse, one = (
        next(line for line in section.splitlines() if key in line).split("|")
        for key in ("`wire.encoder.pooling: last`, `wire.latent_dim: 64`", "`wire.receivers: ")
    )
    both = [scores["worse", seed] - scores["shared", seed] for seed in "12"]
    low, high = map(float, worse[5].split(" to "))
    assert float(worse[4]) == pytest.approx(sum(both) / 2, abs=6e-4)
    assert low < float(worse[4]) < high < 0
    assert worse[3].strip() == f"{scores['worse', '1']:.3f}, {scores['worse', '2']:.3f}"
    assert float(one[4]) == pytest.approx(scores["one", "1"] - scores["shared", "1"], abs=6e-4)
    assert "wire.receivers" not in page.split("## qwen")[1]


def test_an_experiment_without_ablations_has_no_page(experiment, layout, tmp_path):
    with pytest.raises(UserError, match="none has `method: ablation`"):
        write_ablations(experiment, layout, tmp_path / "ablations.md")
