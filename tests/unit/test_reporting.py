"""Headline, tables and provenance from small synthetic results."""

import csv
import json
import sys
from html.parser import HTMLParser

import pytest

from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.reporting.headline import print_headline, write_headline
from latentwire.reporting.html import Spread, Table, as_csv, html_page
from latentwire.reporting.provenance import write_provenance
from latentwire.reporting.scores import METHODS, read_scores
from latentwire.reporting.tensorboard import write_events
from latentwire.statistics.metrics import COLUMNS

F1 = {"text": 0.98, "closed_book": 0.10, "truncate_head": 0.35}
SCRIPT = "</script><script>alert(1)</script>"
KEPT = [{"receiver": "llama", "target_ratio": 4.0, "sentence": "No: latents keep less."}]


class Results:
    """A results folder whose scores a test chooses."""

    def __init__(self, folder, seeds=(1,), **f1):
        self.experiment = Experiment(experiment="synthetic", seeds=list(seeds))
        self.layout = Layout("synthetic", folder)
        self.f1 = F1 | {"latent": 0.93, "control_shuffled": 0.09} | f1
        self.payload_bytes = {"text": 600, "latent": 4000, "latent_int4": 1000}
        self.write()

    def write(self):
        rows = list(self.rows())
        self.layout.root.mkdir(parents=True, exist_ok=True)
        with self.layout.metrics.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self.layout.statistics.write_text(json.dumps({"non_inferiority": KEPT}))

    def rows(self):
        for method, f1 in self.f1.items():
            has_wire = method in ("latent", "latent_int4", "control_shuffled", "control_swap")
            ratios = ("",) if method in ("text", "closed_book") else (4.0, 8.0)
            # The text is asked about swapped answers too.
            ratios = ("", *ratios) if method == "control_swap" else ratios
            for receiver in ("llama", "qwen"):
                for task in ("all", "pocket", "pocket_unseen_names"):
                    for ratio in ratios:
                        for seed in self.experiment.seeds if has_wire else (0,):
                            metrics = self.metrics(method, f1, ratio or 1, seed)
                            for metric, value in metrics.items():
                                yield {
                                    "experiment": "synthetic",
                                    "task": task,
                                    "method": method,
                                    "receiver": receiver,
                                    "wire": "shared" if has_wire else "none",
                                    "target_ratio": ratio,
                                    "ratio": ratio and ratio + 0.1,
                                    "seed": seed,
                                    "metric": metric,
                                    "value": value,
                                    "ci_low": value - 0.01,
                                    "ci_high": value + 0.01,
                                    "n": 100,
                                    "n_clusters": 10,
                                }

    def metrics(self, method, f1, ratio, seed):
        value = f1 + 0.02 * max(0, seed - 1)
        own = {
            "control_swap": {"swap_followed": 0.9 + 0.01 * ratio},
            "llmlingua2": {"fell_back": 0.02},
        }
        return own.get(method, {}) | {
            "em": value - 0.01,
            "f1": value,
            "relative_f1": value / self.f1["text"],
            "ratio": ratio + 0.1,
            "payload_bytes": self.payload_bytes.get(method, 60) / ratio,
            "source_gzip_bytes": 300,
            "encode_seconds": 0.01,
            "answer_seconds": 0.02,
        }

    def headline(self):
        write_headline(self.experiment, self.layout)
        return json.loads(self.layout.headline.read_text())


class Page(HTMLParser):
    """The cells, the scripts and the addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts, self.addresses, self.cells = [], 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            self.open.remove(tag)

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data


def test_headline_has_a_row_per_method_receiver_and_ratio(tmp_path):
    rows = Results(tmp_path).headline()["headline"]
    keys = [(row["method"], row["receiver"], row["target_ratio"]) for row in rows]
    assert len(keys) == len(set(keys)) == 2 * (2 + 3 * 2)
    latent = rows[keys.index(("latent", "qwen", 4.0))]
    assert latent["f1"] == {
        "value": 0.93,
        "interval": [pytest.approx(0.92), pytest.approx(0.94)],
        "per_seed": {"1": 0.93},
    }
    assert latent["relative_f1"]["value"] == pytest.approx(0.93 / 0.98)
    assert latent["payload_bytes"]["value"] == 1000


def test_several_seeds_are_averaged_shown_and_have_no_interval(tmp_path):
    rows = Results(tmp_path, seeds=(1, 2)).headline()["headline"]
    latent = next(row for row in rows if row["method"] == "latent")
    assert latent["num_seeds"] == 2
    assert latent["f1"]["value"] == pytest.approx(0.94)
    assert latent["f1"]["interval"] is None
    assert latent["f1"]["per_seed"] == {"1": 0.93, "2": pytest.approx(0.95)}


@pytest.mark.parametrize(
    ("f1", "sentence"),
    [
        (
            {},
            "On llama, of the text F1 of 0.980 latents keep 95% (0.930) at 4x and 95% (0.930) at",
        ),
        ({}, "On qwen, the message is read at 4x and 8x: shuffled messages score 0.090 and 0.090"),
        ({"control_shuffled": 0.91}, "On llama, the message is not read at 4x and 8x"),
        ({"latent": 0.12}, "On llama, the message is not read at 4x and 8x"),
        ({"control_shuffled": 0.5}, "part of the score does not come from the message at 4x"),
        (
            {"llmlingua2": 0.5},
            "On llama, latents beat text of the same length at 4x and 8x: at best it scores 0.500 "
            "(LLMLingua-2) and 0.500 (LLMLingua-2).",
        ),
        (
            {"control_swap": 0.0},
            "On qwen, where an answer is swapped in the passage, the text's answer follows in 91% "
            "of the cases, and of these the latents' in 94% at 4x and 98% at 8x.",
        ),
        (
            {"llmlingua2": 0.5},
            "On qwen, LLMLingua-2 left nothing of the text for 2.0% of the questions at 8x",
        ),
        ({"latent": 0.3}, "On llama, latents do not beat text of the same length at 4x and 8x"),
        (
            {"llmlingua_question": 0.95},
            "On llama, latents do not beat text that was shortened for the question at 4x and 8x",
        ),
        (
            {},
            "the bytes of a message at 4x are 1,000 as fp16, those of the text 600, or 300 with "
            "gzip: the text is smaller.",
        ),
        (
            {"latent_int4": 0.9},
            "the bytes of a message at 8x are 500 as fp16 and 125 as int4, those of the text 600, "
            "or 300 with gzip: the message is smaller.",
        ),
    ],
)
def test_verdicts_follow_the_numbers(tmp_path, f1, sentence):
    verdicts = Results(tmp_path, **f1).headline()["verdicts"]
    assert any(sentence in verdict for verdict in verdicts), verdicts


def test_text_methods_alone_have_a_headline(tmp_path):
    results = Results(tmp_path)
    results.f1 = F1
    results.write()
    assert results.headline()["verdicts"] == []


def test_the_headline_says_whether_the_text_score_is_maintained(tmp_path):
    verdicts = Results(tmp_path).headline()["verdicts"]
    assert verdicts[1] == "On llama at 4x: No: latents keep less."
    assert not any(verdict.startswith("On qwen at 4x: No") for verdict in verdicts)


def test_no_two_methods_look_the_same():
    looks = list(METHODS.values())
    assert len({look.label for look in looks}) == len(looks)
    assert len({look.colour for look in looks}) == len(looks)
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)


def test_printed_headline_names_every_score_and_the_report(tmp_path, capsys):
    results = Results(tmp_path)
    results.headline()
    print_headline(results.layout)
    printed = capsys.readouterr().out
    assert "snakemake report" in printed
    line = next(line for line in printed.splitlines() if line.startswith("latents 4x"))
    assert line.split() == ["latents", "4x", "llama", "0.920", "0.930", "94.9%", "4.10", "1,000"]
    results.layout.report.write_text("<html>")
    print_headline(results.layout)
    assert f"Report: {results.layout.report}" in capsys.readouterr().out


def test_methods_that_know_the_question_stand_apart(tmp_path, capsys):
    results = Results(tmp_path, llmlingua=0.4, llmlingua_question=0.6)
    results.headline()
    print_headline(results.layout)
    before, after = capsys.readouterr().out.split("\nwith the question known:\n")
    assert "LLMLingua 4x" in before
    assert "LongLLMLingua" not in before
    assert "LongLLMLingua with the question 4x" in after
    assert "LLMLingua 4x" not in after


def test_a_missing_value_is_a_dash(tmp_path, capsys):
    results = Results(tmp_path)
    text = results.layout.metrics.read_text()
    lines = text.splitlines(keepends=True)
    value = COLUMNS.index("value")

    def blank(line):
        cells = line.rstrip("\r\n").split(",")
        if "relative_f1" in cells:
            cells[value : value + 3] = ["", "", ""]
        return ",".join(cells) + "\n"

    results.layout.metrics.write_text("".join(map(blank, lines)))
    verdicts = results.headline()["verdicts"]
    assert any("latents keep no measurable share (0.930) at 4x" in verdict for verdict in verdicts)
    print_headline(results.layout)
    assert " - " in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", ",".join(COLUMNS) + "\n"])
def test_a_missing_or_malformed_metrics_table_is_refused(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv.*metrics"):
        read_scores(path)


def test_table_cells_are_text_and_keep_their_exact_value_for_sorting():
    rows = [[SCRIPT, 0.123456789], ["b", None], ["c", Spread(0.5, (0.25, 0.75))]]
    page = html_page("t", [SCRIPT], [Table(SCRIPT, ["name", "x"], rows)])
    assert 'data-value="0.123456789"' in page
    assert 'data-value="0.5"' in page
    read = Page(page)
    assert read.cells == [SCRIPT, "0.123", "b", "–", "c", "0.500 0.250 – 0.750"]
    assert read.scripts == 1
    assert read.addresses == []


def test_a_table_for_programs_keeps_ranges_apart():
    rows = [["a", Spread(0.5, (0.25, 0.75))], ["b", Spread(None, None)]]
    assert as_csv(Table("c", ["name", "x"], rows)).splitlines() == [
        "name,x,x low,x high",
        "a,0.5,0.25,0.75",
        "b,,,",
    ]


def test_provenance_names_commit_versions_hardware_and_configuration(tmp_path):
    experiment, layout = Experiment(), Layout("pocket", tmp_path)
    write_provenance(experiment, layout)
    facts = json.loads(layout.provenance.read_text())
    assert facts["packages"]["torch"].startswith("2.")
    assert facts["threads"] == experiment.threads
    assert facts["hardware"]["num_cpus"] >= 1
    assert len(facts["config_sha256"]) == 64
    assert "wire.encoder.backbone" in Page(layout.page("provenance").read_text()).cells


def test_provenance_changes_with_the_configuration_only(tmp_path):
    layout = Layout("pocket", tmp_path)

    def facts(**values):
        write_provenance(Experiment(**values), layout)
        return json.loads(layout.provenance.read_text())

    assert facts() == facts()
    assert facts()["config_sha256"] != facts(seeds=[2])["config_sha256"]


def test_provenance_without_git_says_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("latentwire.reporting.provenance.REPOSITORY", tmp_path)
    monkeypatch.setenv("PATH", "")
    layout = Layout("pocket", tmp_path)
    write_provenance(Experiment(), layout)
    facts = json.loads(layout.provenance.read_text())
    assert facts["commit"] is None
    assert facts["dirty"] is None
    cells = Page(layout.page("provenance").read_text()).cells
    assert cells[cells.index("commit") + 1] == "unknown"


def test_a_training_log_is_written_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    layout = Layout("pocket", tmp_path)
    done, going_on = layout.wire("shared", 1), layout.state("shared-seed1")
    for folder, losses in ((done, [3.0, 2.0]), (going_on, [1.0])):
        folder.mkdir(parents=True)
        rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def losses():
        write_events(layout, "shared", 1)
        events = EventAccumulator(str(layout.events("shared-seed1"))).Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")]

    assert losses() == [(1, 1.0)]
    (going_on / "metrics.jsonl").unlink()
    assert losses() == [(1, 3.0), (2, 2.0)]


def test_tensorboard_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"latentwire\[tensorboard\]"):
        write_events(Layout("pocket", tmp_path), "shared", 1)
