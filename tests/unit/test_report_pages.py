"""Pages and drawings of the report, from synthetic answers."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from latentwire.config import Evaluation, Experiment, Method, Statistics, Wire
from latentwire.data.tables import Example, write_examples
from latentwire.evaluation.predictions import Prediction, prediction_runs, write_predictions
from latentwire.layout import Layout
from latentwire.reporting import examples as browser
from latentwire.reporting.breakdown import length_bins, question_word
from latentwire.reporting.examples import Answered, choose_examples, render
from latentwire.reporting.figures import (
    Swept,
    draw_layers,
    draw_methods,
    draw_ratio,
    draw_relay,
    draw_training,
    svg,
)
from latentwire.reporting.headline import write_headline
from latentwire.reporting.pages import relay_page, statistics_page, write_pages
from latentwire.reporting.scores import METHODS, Mean
from latentwire.reporting.series import read_series
from latentwire.reporting.training_log import minutes, resumed_after
from latentwire.statistics.comparisons import write_statistics
from latentwire.statistics.metrics import write_metrics

HOSTILE = '</script><script>alert(1)</script><img src="x" onerror="alert(2)">'
QUESTIONS = ("What is it?", "Who was that?", "Name it.")
NUM_PASSAGES = 12
# How many of ten questions a method answers.
RIGHT = {"text": 10, "latent": 8, "truncate_head": 3}
METHODS_TRIED = [
    Method.text,
    Method.closed_book,
    Method.truncate_head,
    Method.latent,
    Method.latent_int4,
    Method.control_shuffled,
    Method.control_swap,
]
PAGES = {
    "headline": "latents",
    "breakdown": "question word",
    "ratio": "measured compression ratio",
    "bytes": "full text, gzip",
    "baselines": "truncated text",
    "controls": "shuffled latents",
    "statistics": "difference of F1",
    "non_inferiority": "97% of it",
    "training": "nats per answer token",
    "cost": "milliseconds per question, end to end (median)",
}


class Results:
    """A results folder of an experiment with two seeds, from answers to pages."""

    def __init__(self, folder, **settings):
        self.experiment = Experiment(
            experiment="synthetic",
            seeds=[1, 2],
            wire=Wire(target_ratios=[4, 8]),
            evaluation=Evaluation(methods=METHODS_TRIED),
            statistics=Statistics(resamples=100),
            **settings,
        )
        self.layout = Layout("synthetic", folder)
        self.examples = [
            Example(
                f"q{number:02}",
                f"p{number // 3:02}",
                f"Passage {number // 3}. {HOSTILE}",
                QUESTIONS[number % 3] + HOSTILE,
                [f"gold {number}", HOSTILE],
                "odd" if number % 2 else "even",
            )
            for number in range(3 * NUM_PASSAGES)
        ]
        write_examples(self.layout.split("test"), self.examples)
        for receiver in self.experiment.receivers:
            for run in prediction_runs(self.experiment, receiver.name):
                path = self.layout.predictions(run.method, receiver.name, run.wire, run.seed)
                write_predictions(path, self.rows(run))
        write_metrics(self.experiment, self.layout)
        write_statistics(self.experiment, self.layout)
        write_headline(self.experiment, self.layout)
        for seed in self.experiment.seeds:
            self.write_log(seed)

    def rows(self, run):
        for ratio in run.target_ratios:
            for number, example in enumerate(self.examples):
                positions = 40 / (ratio or 1) if run.method != "closed_book" else 0
                is_right = float(number * 7 % 10 < RIGHT.get(run.method, 1) - (ratio == 8))
                is_swap = run.method == "control_swap"
                yield Prediction(
                    example_id=example.example_id,
                    passage_id=example.passage_id,
                    task=example.task,
                    prediction=HOSTILE,
                    em=is_right,
                    f1=is_right,
                    nll=1.0,
                    first_token_correct=is_right,
                    source_tokens=40 + number // 3,
                    prompt_tokens=int(positions) + 10,
                    soft_tokens=0 if run.wire == "none" else int(positions),
                    source_bytes=160,
                    source_gzip_bytes=120,
                    payload_bytes=int(4 * positions),
                    encode_seconds=0.001,
                    answer_seconds=0.01 + 0.001 * number,
                    fell_back=False,
                    wire=run.wire,
                    sender="",
                    target_ratio=ratio,
                    ratio=(40 + number // 3) / positions if positions else None,
                    source_mode="context",
                    question_aware=False,
                    swap_followed=1.0 if is_swap else None,
                )

    def write_log(self, seed):
        log = self.layout.wire("shared", seed) / "metrics.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"step": step, "cross_entropy": 1 / step, "dev/llama/4x/relative_f1": 0.3 * step}
            # The clock of the third row is that of another process.
            | {"seconds": seconds, "tokens_per_second": 1}
            for step, seconds in ((1, 60.0), (2, 120.0), (3, 30.0))
        ]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Reader(HTMLParser):
    """What a browser would make of a page: elements, handlers of events, and what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.handlers, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        # Parts of a drawing point at one another.
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href") or (name == "xlink:href" and not value.startswith("#"))
        ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("results"))
    write_pages(results.experiment, results.layout)
    return results


@pytest.fixture(scope="module")
def series(results):
    return read_series(results.experiment, results.layout)


@pytest.mark.parametrize(("name", "words"), PAGES.items())
def test_a_drawing_is_in_its_page_beside_its_numbers(results, name, words):
    drawing = results.layout.figure(name).read_text()
    texts = {
        "".join(n.itertext()) for n in ElementTree.fromstring(drawing).iter() if "text" in n.tag
    }
    assert any(words in text for text in texts), texts
    page = results.layout.page(name).read_text()
    assert drawing[drawing.index("<svg") :] in page
    with results.layout.table(name).open(newline="") as file:
        assert len(list(csv.reader(file))) > 2


@pytest.mark.parametrize("name", [*PAGES, "quality", "metrics", "examples"])
def test_pages_hold_no_text_as_markup_and_load_nothing(results, name):
    page = Reader(results.layout.page(name).read_text())
    assert page.tags.count("script") == (2 if name == "examples" else 1)
    assert "img" not in page.tags
    assert page.handlers == []
    assert page.addresses == []


def test_pages_say_what_their_numbers_rest_on(results):
    for name in ("headline", "quality", "ratio", "bytes", "baselines", "controls", "breakdown"):
        page = results.layout.page(name).read_text()
        assert "36 questions about 12 passages" in page
        assert "95% percentile intervals of a bootstrap over passages, with 100 resamples" in page
        assert "the training seeds (1, 2)" in page
    for name in ("statistics", "non_inferiority"):
        page = results.layout.page(name).read_text()
        assert "over 12 passages with 36 questions" in page
    assert "by holm" in results.layout.page("statistics").read_text()


def test_pages_are_the_same_bytes_again(results):
    files = [path for path in results.layout.root.rglob("*") if path.suffix in (".svg", ".html")]
    before = {path: path.read_bytes() for path in files}
    write_pages(results.experiment, results.layout)
    assert before == {path: path.read_bytes() for path in files}


def test_the_quality_table_has_every_method_receiver_and_budget(results):
    table = ElementTree.fromstring(
        re.search("<table>.*?</table>", results.layout.page("quality").read_text(), re.DOTALL)[0]
        .replace("<caption>", "<caption/><!--")
        .replace("</caption>", "-->")
    )
    keys = [tuple(cell.text for cell in list(row)[:3]) for row in table.find("tbody")]
    budgets = {"text": 1, "closed_book": 1, "control_swap": 3}
    assert len(keys) == len(set(keys)) == 2 * sum(budgets.get(m, 2) for m in METHODS_TRIED)
    assert ("latents", "qwen", "8") in keys


def test_series_average_seeds_and_keep_intervals_over_passages(results, series):
    (latent,) = [
        s for s in series if (s.method, s.receiver, s.target_ratio) == ("latent", "llama", 4)
    ]
    expected = np.mean([number * 7 % 10 < 8 for number in range(36)])
    assert latent.f1.value == pytest.approx(expected)
    assert latent.f1.per_seed == {1: pytest.approx(expected), 2: pytest.approx(expected)}
    low, high = latent.f1.interval
    assert low < expected < high
    assert latent.quality["relative_f1"].value == pytest.approx(expected)
    assert latent.tokens_in_place == 10
    assert latent.ratio == pytest.approx(4.55)
    (closed,) = [s for s in series if (s.method, s.receiver) == ("closed_book", "llama")]
    assert closed.ratio is None
    assert len(latent.end_to_end_seconds) == 2 * 36
    assert np.median(latent.end_to_end_seconds) == pytest.approx(0.0285)


def test_the_breakdown_divides_all_questions_each_time(results):
    with results.layout.table("breakdown").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["method"], row["receiver"], row["target ratio"]) == ("latents", "qwen", "4.0")
        ]
    groups = {}
    for row in rows:
        groups.setdefault(row["divided by"], {})[row["group"]] = int(row["questions"])
    assert groups == {
        "task": {"even": 18, "odd": 18},
        "source tokens": {"40 to 43": 12, "44 to 47": 12, "48 to 51": 12},
        "question word": {"other": 12, "what": 12, "who": 12},
    }


@pytest.mark.parametrize(
    ("question", "word"),
    [("In which year?", "which"), ("WHO?", "who"), ("Somewhat odd", "other"), ("", "other")],
)
def test_the_first_question_word_counts(question, word):
    assert question_word(question) == word


def test_sources_of_one_length_are_one_range():
    assert set(length_bins(np.full(5, 7.0))) == {0}


def test_whatever_is_known_of_a_comparison_is_shown():
    pair = {"receiver": "llama", "method": "latent", "reference": "text", "difference": 0.1}
    more = {
        "p_values_corrected": {"holm": 0.25, "fdr_bh": None},
        "effect_sizes": {"cohens_dz": {"value": 0.5, "ci_low": 0.1}},
        "something_new": {"nested": ["a", 1]},
    }
    page = statistics_page({"settings": {"correction": "holm"}, "comparisons": [pair | more]})
    shown = {
        column: cell
        for t in page.tables
        for row in t.rows
        for column, cell in zip(t.columns, row, strict=True)
    }
    assert shown["holm"] == 0.25
    assert shown["fdr bh"] is None
    assert shown["cohens dz ci low"] == 0.1
    assert shown["something new nested"] == "a, 1"
    assert svg(page.draw)


def test_minutes_go_on_where_a_run_was_resumed():
    rows = [{"seconds": 60.0}, {"seconds": 120.0}, {"seconds": 30.0}, {"seconds": 90.0}]
    assert resumed_after(rows) == [1]
    assert minutes(rows) == [1.0, 2.0, 2.5, 3.5]


def test_a_resume_is_marked_in_every_panel():
    rows = [
        {"step": step, "cross_entropy": 1.0, "dev/llama/4x/relative_f1": 0.5, "seconds": seconds}
        for step, seconds in ((10, 60.0), (20, 120.0), (30, 30.0))
    ]
    for axes, place in zip(draw_training({"seed 1": rows}).axes, (20, 2.0), strict=True):
        marks = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [set(mark.get_xdata()) for mark in marks] == [{place}]


def test_a_relay_is_a_grid_of_senders_and_receivers(series):
    (one, *_) = [own for own in series if own.method == "latent"]
    relayed = [
        replace(
            one,
            method=f"{method} from {sender}",
            receiver=receiver,
            target_ratio=ratio,
            quality=one.quality | {"f1": Mean(value, None, {})},
        )
        for method, sender, receiver, ratio, value in (
            ("telepathy", "a", "a", 4, 0.9),
            ("telepathy", "a", "b", 4, 0.2),
            ("telepathy", "b", "a", 4, 0.4),
            ("telepathy", "b", "a", 8, 0.1),
            ("control_shuffled", "b", "a", 4, 0.1),
        )
    ]
    grid, *_ = draw_relay(relayed).axes
    (image,) = grid.images
    assert np.array_equal(
        image.get_array().filled(np.nan), [[0.9, 0.2], [0.4, np.nan]], equal_nan=True
    )
    assert {text.get_text() for text in grid.texts} == {"0.90", "0.20", "0.40"}
    numbers, times = relay_page([one, *relayed], "").tables
    assert (len(numbers.rows), len(times.rows)) == (5, 4)


def test_a_sweep_is_a_line_over_layers(series):
    (one, *_) = [own for own in series if own.method == "latent"]
    swept = [
        Swept("a", layers, replace(one, receiver=receiver, target_ratio=4))
        for layers in ((1, 2), (2,), (0,))
        for receiver in ("a", "b")
    ]
    (panel,) = draw_layers(swept).axes
    # Of each receiver a line of single layers, and a mark of every wire.
    assert [list(line.get_xdata()) for line in panel.lines] == [[0, 1], [0, 1, 2]] * 2
    assert [mark.get_text() for mark in panel.get_xticklabels()] == ["0", "2", "1, 2"]


def test_a_legend_wider_than_the_panels_is_not_cut_off(series):
    (one, *_) = [own for own in series if own.method == "latent"]
    many = [replace(one, method=method) for method in METHODS]
    figure = draw_ratio(many)
    figure.draw_without_rendering()
    inches = figure.legends[0].get_window_extent().width / figure.dpi
    assert inches > figure.get_figwidth()
    drawing = ElementTree.fromstring(svg(lambda: draw_ratio(many)))
    assert float(drawing.get("width").removesuffix("pt")) >= 72 * inches


def test_methods_stand_in_rows_and_budgets_have_markers(series):
    figure = draw_methods(series)
    (llama, qwen) = figure.axes
    assert (llama.get_title(), qwen.get_title()) == ("llama", "qwen")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["4x", "8x"]
    methods = [text.get_text() for text in llama.get_yticklabels()]
    latents = [
        (line.get_xdata()[0], line.get_marker())
        for line in llama.lines
        if line.get_ydata()[0] == methods.index("latents") and line.get_marker() != "."
    ]
    own = [s.f1.value for s in series if (s.method, s.receiver) == ("latent", "llama")]
    assert latents == [(own[0], "o"), (own[1], "s")]


def answered(method, right, ratio=None, receiver="llama"):
    answers = {f"q{number}": ("x", float(f"q{number}" in right)) for number in range(10)}
    return Answered(method, receiver, ratio, answers)


def test_what_the_wire_loses_comes_first(monkeypatch):
    monkeypatch.setattr(browser, "MOST_EXAMPLES", 4)
    examples = [Example(f"q{n}", f"p{n}", "c", "q", ["g"], "t") for n in range(10)]
    everything = {f"q{n}" for n in range(10)}
    methods = [
        answered("text", everything - {"q1"}),
        answered("latent", everything - {"q1", "q7"}, ratio=4.0),
        answered("latent", set(), ratio=8.0),
        answered("text", everything, receiver="qwen"),
        answered("latent", everything - {"q3"}, ratio=4.0, receiver="qwen"),
    ]
    chosen, num_lost = choose_examples(examples, methods)
    ids = [example.example_id for example in chosen]
    assert num_lost == 2
    assert {"q3", "q7"} < set(ids)
    assert len(ids) == 4
    assert ids == sorted(ids)
    assert choose_examples(examples, methods) == (chosen, num_lost)


def test_the_browser_holds_hostile_text_unharmed():
    examples = [Example("q0", "p0", HOSTILE, "q", [HOSTILE], "t")]
    page = render(examples, [answered("text", {"q0"})], ["words"])
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert "<" not in data
    assert json.loads(data)["passages"] == [HOSTILE]
    assert json.loads(data)["examples"][0]["gold"] == [HOSTILE]


def test_an_experiment_without_messages_has_pages_too(tmp_path):
    results = Results(tmp_path)
    texts = Evaluation(methods=[Method.text, Method.closed_book])
    experiment = results.experiment.model_copy(
        update={"evaluation": texts, "statistics": Statistics(resamples=100, family=[])}
    )
    for write in (write_metrics, write_statistics, write_headline, write_pages):
        write(experiment, results.layout)
    assert "Nothing was tested" in results.layout.page("non_inferiority").read_text()
