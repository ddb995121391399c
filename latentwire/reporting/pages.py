"""What the report shows: pages of words, drawings and the numbers behind them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from latentwire.config import PAYLOAD_DTYPES, Experiment
from latentwire.data.tables import read_examples
from latentwire.files import read_json, write_text
from latentwire.layout import Layout
from latentwire.reporting.breakdown import Part, break_down
from latentwire.reporting.examples import examples_page
from latentwire.reporting.figures import (
    Swept,
    draw_breakdown,
    draw_bytes,
    draw_cost,
    draw_forest,
    draw_kept,
    draw_layers,
    draw_methods,
    draw_probe,
    draw_ratio,
    draw_relay,
    draw_training,
    svg,
)
from latentwire.reporting.headline import SHORTENED, SHORTENED_FOR_QUESTION
from latentwire.reporting.html import Cell, Spread, Table, as_csv, html_page
from latentwire.reporting.scores import ALL_TASKS, FROM, Mean, Score, label, read_scores, select
from latentwire.reporting.series import Series, read_series
from latentwire.reporting.training_log import Row, minutes, read_training_log

BOUNDS = ("text", "closed_book")
OF_MESSAGES = ("latent", *BOUNDS)
BASELINES = (*SHORTENED, *SHORTENED_FOR_QUESTION, "soft_prompt", "gist", "latent_single")


@dataclass(frozen=True)
class Page:
    """Words, at most one drawing, and tables; the first table holds the drawing's numbers."""

    title: str
    paragraphs: Sequence[str]
    tables: Sequence[Table]
    draw: Callable[[], Figure] | None = None


def write_pages(experiment: Experiment, layout: Layout) -> None:
    """Writes `pages/*.html`, and for each drawing `figures/*.svg` and `tables/*.csv`.

    Raises:
        UserError: if predictions, metrics, statistics, headline or a training log are missing or
            malformed.
    """
    examples = read_examples(layout.split("test"))
    for name, page in _pages(experiment, layout, {e.example_id: e.question for e in examples}):
        drawings = []
        if page.draw is not None:
            drawings.append(svg(page.draw))
            write_text(layout.figure(name), drawings[0])
            write_text(layout.table(name), as_csv(page.tables[0]))
        write_text(layout.page(name), html_page(page.title, page.paragraphs, page.tables, drawings))
    write_text(layout.page("examples"), examples_page(experiment, layout, examples))


def _pages(
    experiment: Experiment, layout: Layout, questions: Mapping[str, str]
) -> Iterator[tuple[str, Page]]:
    scores = read_scores(layout.metrics)
    statistics, results = read_json(layout.statistics), read_json(layout.headline)
    series = read_series(experiment, layout)
    compared = [own for own in series if not (_is_control(own) or FROM in own.method)]
    basis = _basis(experiment, series)
    yield "headline", headline_page(results, series, basis)
    yield "quality", quality_page(series, basis)
    yield "breakdown", breakdown_page(break_down(experiment, compared, questions), basis)
    yield "metrics", metrics_page(scores)
    yield "ratio", ratio_page(compared, basis)
    yield "bytes", bytes_page(compared, basis)
    yield "baselines", baselines_page(series, basis)
    yield "controls", controls_page(series, scores, basis)
    yield "statistics", statistics_page(statistics)
    yield "non_inferiority", non_inferiority_page(statistics)
    yield "training", training_page(_training_logs(experiment, layout))
    yield "cost", cost_page(series)
    if experiment.probe is not None:
        files = [layout.probe(own.name).with_suffix(".json") for own in experiment.receivers]
        yield "probe", probe_page([read_json(path) for path in files], scores)
    if experiment.senders:
        yield "telepathy", relay_page(series, basis)
    if experiment.swept:
        yield "layers", layers_page(experiment, series, basis)


def _basis(experiment: Experiment, series: Sequence[Series]) -> str:
    """What numbers and intervals rest on."""
    answers, config, seeds = series[0].runs[0], experiment.statistics, experiment.seeds
    given = (
        f"the training seeds ({', '.join(map(str, seeds))}), over which wires are averaged and "
        "which small points show"
        if len(seeds) > 1
        else f"the one training seed ({seeds[0]})"
    )
    return (
        f"{len(answers.example_ids):,} questions about {len(np.unique(answers.passages)):,} "
        "passages of the test split. F1 and EM as in SQuAD, 0 to 1. Ranges are "
        f"{config.confidence:.0%} percentile intervals of a bootstrap over passages, with "
        f"{config.resamples:,} resamples, uncorrected, given {given}."
    )


def headline_page(results: dict[str, Any], series: Sequence[Series], basis: str) -> Page:
    """The verdicts in words, the picture, and its numbers."""
    shown = _of(series, (*OF_MESSAGES, *SHORTENED))
    return Page(
        f"{results['experiment']}: the headline",
        [*results["verdicts"], basis],
        [_quality_table("Scores of latents, of text and of shortened text", shown)],
        lambda: draw_methods(shown),
    )


def quality_page(series: Sequence[Series], basis: str) -> Page:
    """Every method on every receiver at every budget, apart by what knows the question."""
    blind = [own for own in series if not own.question_aware]
    aware = [own for own in series if own.question_aware]
    tables = [_quality_table("What is sent is made without the question", blind)]
    if aware:
        tables.append(_quality_table("What is sent is made in knowledge of the question", aware))
    budgets = (
        "Every method that compresses has the same budgets: its tokens or vectors reach the target "
        "ratio over all test sources together. Tokens in place count what stands in the place of a "
        "source, prompt tokens all that the receiver reads before it answers."
    )
    return Page("Every method, receiver and budget", [budgets, basis], tables)


def breakdown_page(parts: Sequence[Part], basis: str) -> Page:
    """F1 on parts of the questions; the drawing has the lowest budget alone."""
    lowest = min((p.series.target_ratio for p in parts if p.series.target_ratio), default=None)
    drawn = [
        part
        for part in parts
        if part.series.target_ratio in (None, lowest)
        and part.series.method in (*OF_MESSAGES, *SHORTENED)
    ]
    columns = ["divided by", "group", *_KEYS, "F1", "questions", "passages"]
    rows: list[list[Cell]] = [
        [part.grouping, part.group, *_key(part.series), _spread(part.f1), part.n, part.n_clusters]
        for part in parts
    ]
    words = (
        "Lengths are in the receiver's own tokens, in three ranges with as many questions as can "
        "be; a question counts by its first question word."
    )
    if lowest:
        words += f" Drawn at a target ratio of {lowest:g}; the table has all."
    table = Table("F1 on parts of the questions", columns, rows)
    return Page(
        "F1 by task, length and question", [words, basis], [table], lambda: draw_breakdown(drawn)
    )


def metrics_page(scores: Sequence[Score]) -> Page:
    """The metrics table, but for the rows of single tasks: browsers open pages of 2 MB at most."""
    columns = [field.name for field in fields(Score)]
    shown = select(scores, task=ALL_TASKS)
    rows = [[getattr(score, column) for column in columns] for score in shown]
    words = (
        "Intervals are over passages, given the training seed; n counts questions. Rows of single "
        "tasks are in metrics.csv."
    )
    return Page("All metrics", [words], [Table("One row per measured value", columns, rows)])


def ratio_page(series: Sequence[Series], basis: str) -> Page:
    """What a ratio costs."""
    table = _quality_table("The numbers", series)
    return Page("F1 against compression ratio", [basis], [table], lambda: draw_ratio(series))


def bytes_page(series: Sequence[Series], basis: str) -> Page:
    """What is sent, in bytes; the full text also as gzip makes it."""
    rows: list[list[Cell]] = [
        [*_key(own), _spread(own.f1), own.mean("payload_bytes")] for own in series
    ]
    rows += [
        [
            f"{label('text')}, gzip",
            text.receiver,
            None,
            _spread(text.f1),
            text.mean("source_gzip_bytes"),
        ]
        for text in _of(series, ["text"])
    ]
    words = (
        "Bytes of a message, which serves all questions of its passage, as means over questions: "
        "UTF-8 of the text sent, or the whole byte form of the latents. The open star is the full "
        "text, compressed by gzip on its own."
    )
    table = Table("The numbers", [*_KEYS, "F1", "bytes sent"], rows)
    return Page("F1 against bytes sent", [words, basis], [table], lambda: draw_bytes(series))


def baselines_page(series: Sequence[Series], basis: str) -> Page:
    """Latents between what else fits the same budget."""
    shown = _of(series, (*OF_MESSAGES, *BASELINES))
    words = (
        "All at the same target ratios, answered by the same receivers with the same template. "
        "Methods for the question know what will be asked, and send anew for each question."
    )
    table = _quality_table("The numbers", shown)
    return Page("Latents and their opponents", [words, basis], [table], lambda: draw_methods(shown))


def controls_page(series: Sequence[Series], scores: Sequence[Score], basis: str) -> Page:
    """Latents, and what controls put in their place."""
    shown = [own for own in series if own.method in OF_MESSAGES or _is_control(own)]
    followed = select(scores, metric="swap_followed", task=ALL_TASKS)
    tables = [_quality_table("The numbers", shown)]
    if followed:
        rows: list[list[Cell]] = [
            [
                s.receiver,
                "latents" if s.target_ratio else "full text",
                s.target_ratio,
                s.seed,
                Spread(s.value, _range(s.ci_low, s.ci_high)),
            ]
            for s in followed
        ]
        columns = ["receiver", "read from", "target ratio", "seed", "followed"]
        tables.append(Table("Where an answer was swapped, how often it is given", columns, rows))
    return Page("Is the message read?", [basis], tables, lambda: draw_methods(shown))


def statistics_page(statistics: dict[str, Any]) -> Page:
    """The declared comparisons: a drawing, what matters of each, and all that is known of it."""
    comparisons = statistics["comparisons"]
    settings = statistics["settings"]
    columns = ["receiver", "target ratio", "method", "compared with", "difference of F1"]
    columns += ["raw p", "corrected p", "effect size", "detectable", "passages"]
    rows = [
        [
            own["receiver"],
            own.get("target_ratio"),
            label(own["method"]),
            label(own["reference"]),
            Spread(own["difference"], _range(own.get("ci_low"), own.get("ci_high"))),
            own.get("p_value"),
            own.get("p_value_corrected"),
            own.get("effect_size"),
            own.get("minimum_detectable_effect"),
            own.get("n_clusters"),
        ]
        for own in comparisons
    ]
    words = (
        f"Comparisons that the configuration declared before the run, {len(comparisons)} in all"
        f"{_units(comparisons)}. "
        f"Test: {settings.get('test')}. Interval: {settings.get('interval')}. p-values are "
        f"corrected over the whole family by {settings.get('correction')}. 'Detectable' is the "
        "smallest difference that so many passages would have shown."
    )
    tables = [
        Table("Declared comparisons", columns, rows),
        *(
            _records(caption, [_facts_of_pair(own) | own[key] for own in comparisons])
            for key, caption in _DETAILS.items()
            if comparisons and key in comparisons[0]
        ),
        _records("Everything else", [_without(own, _DETAILS) for own in comparisons]),
        Table("Settings", ["setting", "value"], [[k, str(v)] for k, v in settings.items()]),
    ]
    return Page("Declared comparisons", [words], tables, lambda: draw_forest(comparisons))


_DETAILS = {
    "p_values_corrected": "p-values under each correction over the whole family",
    "effect_sizes": "Effect sizes",
    "assuming_independent_questions": "Tests that assume independent questions, which questions of "
    "one passage are not: for comparison, they carry no claim",
}
"""Keys of a comparison that hold mappings, each shown as a table of its own."""


def _facts_of_pair(comparison: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("receiver", "target_ratio", "method", "reference")
    return {key: comparison[key] for key in keys if key in comparison}


def _units(records: Sequence[Mapping[str, Any]]) -> str:
    """The number of questions, and of the passages that a test resamples."""
    counts = {(own["n"], own["n_clusters"]) for own in records if "n_clusters" in own}
    return "".join(f", over {passages:,} passages with {n:,} questions" for n, passages in counts)


def _without(record: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def non_inferiority_page(statistics: dict[str, Any]) -> Page:
    """Whether latents keep the score of the full text, in words, drawn, and as numbers."""
    verdicts = statistics["non_inferiority"]
    words = [f"{v['receiver']} at {v['target_ratio']:g}x: {v['sentence']}" for v in verdicts]
    rest = (
        "One-sided tests of the contrast latents - (1 - margin) * full text, for each receiver and "
        f"target ratio{_units(verdicts)}. They are not corrected for their number; the margin was "
        "declared before the run. Lines are two-sided intervals of the ratio."
        if verdicts
        else "Nothing was tested: the experiment has no latents."
    )
    table = _records("The numbers", verdicts)
    return Page(
        "Is the text score maintained?", [*words, rest], [table], lambda: draw_kept(verdicts)
    )


def training_page(runs: dict[str, list[Row]]) -> Page:
    columns = list(dict.fromkeys(key for rows in runs.values() for row in rows for key in row))
    rows: list[list[Cell]] = [
        [name, spent, *(row.get(column) for column in columns)]
        for name, log in runs.items()
        for spent, row in zip(minutes(log), log, strict=True)
    ]
    words = (
        "Losses in nats per answer token. Minutes add up over the parts of an interrupted run; a "
        "dotted line marks where it went on, told from the clock in its log, which starts anew."
    )
    table = Table("The log", ["run", "minutes", *columns], rows)
    return Page("Training", [words], [table], lambda: draw_training(runs))


def cost_page(series: Sequence[Series]) -> Page:
    """What a question costs, beside the score."""
    shown = [own for own in series if not _is_control(own)]
    columns = [*_KEYS, "F1", "prompt tokens", "encode or compress, ms", "answer, ms"]
    columns.append("end to end, ms")
    rows: list[list[Cell]] = [
        [
            *_key(own),
            _spread(own.f1),
            _median(own.pooled("prompt_tokens")),
            _median(1000 * own.pooled("encode_seconds")),
            _median(1000 * own.pooled("answer_seconds")),
            _median(1000 * own.end_to_end_seconds),
        ]
        for own in shown
    ]
    words = (
        "Medians over questions and training seeds, with the range from the 10th to the 90th "
        "percentile. Wall time, warm, on the hardware named under Provenance: of writing a message "
        "or shortening a text, divided by the questions about it; of the answers of a batch, "
        "divided by its questions. What is timed together has no range of its own. Of messages, "
        "those as fp16 are drawn."
    )
    drawn = [own for own in shown if own.method == "latent" or own.method not in PAYLOAD_DTYPES]
    table = Table("Cost per question", columns, rows)
    return Page("Cost beside quality", [words], [table], lambda: draw_cost(drawn))


def probe_page(probes: Sequence[dict[str, Any]], scores: Sequence[Score]) -> Page:
    tried = [{"sender": own["sender"], **entry} for own in probes for entry in own["tried"]]
    found = [
        {"sender": s.receiver, "metric": s.metric, "value": s.value, "questions": s.n}
        for s in select(scores, method="linear_probe", task=ALL_TASKS)
    ]
    tables = [
        _records("What was tried, on dev", tried),
        _records("What was chosen, on test", found),
    ]
    own_scores = select(scores, task=ALL_TASKS)
    return Page(
        "Is the answer in the sender's states?", [], tables, lambda: draw_probe(probes, own_scores)
    )


def relay_page(series: Sequence[Series], basis: str) -> Page:
    """What each receiver makes of what comes from each sender, and how long it takes."""
    shown = [own for own in series if FROM in own.method]
    cost: list[list[Cell]] = [
        [*_key(own), _spread(own.f1), _median(1000 * own.end_to_end_seconds)]
        for own in shown
        if not _is_control(own)
    ]
    columns = [*_KEYS, "F1", "end to end, ms"]
    tables = [
        _quality_table("The numbers", shown),
        Table("Time of a question, from the text to its answer", columns, cost),
    ]
    words = (
        "The receiver never sees the passage: it reads latents that were made of the sender's "
        "states or, by text relay, what the sender writes about the passage. A sender has not seen "
        "the question unless it says so."
    )
    return Page("F1 by sender and receiver", [words, basis], tables, lambda: draw_relay(shown))


def layers_page(experiment: Experiment, series: Sequence[Series], basis: str) -> Page:
    """What is left of the text score by the layers whose states are read."""
    swept = [
        Swept(*experiment.swept[own.runs[0].wire], own)
        for own in series
        if own.runs[0].wire in experiment.swept and not _is_control(own)
    ]
    rows: list[list[Cell]] = [
        [own.sender, own.name, *_key(own.series), _spread(own.series.quality["relative_f1"])]
        for own in swept
    ]
    table = Table("The numbers", ["sender", "layers", *_KEYS, "relative F1"], rows)
    return Page("F1 by the sender's layers", [basis], [table], lambda: draw_layers(swept))


def _training_logs(experiment: Experiment, layout: Layout) -> dict[str, list[Row]]:
    return {
        f"seed {seed}": read_training_log(layout.wire(experiment.wire.name, seed) / "metrics.jsonl")
        for seed in experiment.seeds
    }


_KEYS = ("method", "receiver", "target ratio")


def _key(own: Series) -> list[Cell]:
    return [label(own.method), own.receiver, own.target_ratio]


def _quality_table(caption: str, series: Sequence[Series]) -> Table:
    columns = [*_KEYS, "F1", "EM", "relative F1", "ratio"]
    columns += ["tokens in place", "prompt tokens", "bytes sent"]
    rows: list[list[Cell]] = [
        [
            *_key(own),
            _spread(own.f1),
            _spread(own.quality["em"]),
            _spread(own.quality["relative_f1"]),
            own.ratio,
            own.tokens_in_place,
            own.mean("prompt_tokens"),
            own.mean("payload_bytes"),
        ]
        for own in series
    ]
    return Table(caption, columns, rows)


def _records(caption: str, records: Sequence[dict[str, Any]]) -> Table:
    """A table of the records' values, nested ones by dotted keys."""
    flat = [dict(_leaves(record)) for record in records]
    columns = list(dict.fromkeys(key for record in flat for key in record))
    rows = [[record.get(key) for key in columns] for record in flat]
    return Table(caption, [column.replace("_", " ") for column in columns], rows)


def _leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Cell]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key} ")
        else:
            is_plain = value is None or isinstance(value, str | int | float)
            yield prefix + key, value if is_plain else ", ".join(map(str, value))


def _of(series: Sequence[Series], methods: Sequence[str]) -> list[Series]:
    return [own for own in series if own.method in methods]


def _is_control(own: Series) -> bool:
    return own.method.startswith("control_")


def _spread(mean: Mean) -> Spread:
    return Spread(mean.value, mean.interval)


def _range(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _median(values: np.ndarray) -> Spread:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Spread(float(middle), (float(low), float(high)))
