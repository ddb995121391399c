"""The headline: what each method keeps, at what price, and what that means in words."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from latentwire.config import PAYLOAD_DTYPES, QUESTION_AWARE_METHODS, Experiment
from latentwire.files import read_json, write_json
from latentwire.layout import Layout
from latentwire.reporting.scores import (
    ALL_TASKS,
    FROM,
    Score,
    distinct,
    in_order,
    label,
    mean_over_seeds,
    read_scores,
    select,
)

METRICS = ("em", "f1", "relative_f1", "ratio", "payload_bytes")
NOT_SHOWN = ("source_gzip_bytes", "swap_followed", "fell_back")
SHORTENED = ("truncate_head", "truncate_random", "extractive", "llmlingua", "llmlingua2")
SHORTENED_FOR_QUESTION = ("extractive_question", "llmlingua_question")
Rows = list[dict[str, Any]]
# F1 that shuffled messages may reach above no message at all.
TOLERANCE = 0.05
# Share of the text score that a sender must be able to pass on in words.
FAIR_RELAY = 0.9


def write_headline(experiment: Experiment, layout: Layout) -> None:
    """Writes `results.json`: a row per method, receiver and target ratio, and verdicts in words.

    Raises:
        UserError: if metrics or statistics are missing or malformed.
    """
    scores = select(read_scores(layout.metrics), task=ALL_TASKS)
    rows = list(headline_rows(scores))
    kept = read_json(layout.statistics)["non_inferiority"]
    write_json(
        layout.headline,
        {
            "experiment": experiment.experiment,
            "seeds": experiment.seeds,
            "headline": rows,
            "verdicts": [*verdicts(rows, kept), *probe_verdicts(scores)],
        },
    )


def headline_rows(scores: list[Score]) -> Iterator[dict[str, Any]]:
    """One row per method, receiver and target ratio, averaged over training seeds."""
    for method in in_order(distinct(select(scores, metric="f1"), "method")):
        for receiver in distinct(scores, "receiver"):
            own = select(scores, method=method, receiver=receiver)
            for ratio in distinct(own, "target_ratio"):
                group = select(own, target_ratio=ratio)
                yield {
                    "method": method,
                    "receiver": receiver,
                    "target_ratio": ratio,
                    "num_seeds": len(distinct(group, "seed")),
                    "n": group[0].n,
                    "n_clusters": group[0].n_clusters,
                    **{
                        metric: asdict(mean_over_seeds(select(group, metric=metric)))
                        for metric in (*METRICS, *NOT_SHOWN)
                    },
                }


def verdicts(rows: Rows, kept: Rows) -> Iterator[str]:
    """What the numbers say, also where the answer is no.

    Args:
        rows: of the headline.
        kept: the tests whether latents maintain the text score.
    """
    for receiver in dict.fromkeys(row["receiver"] for row in rows):
        own = [row for row in rows if row["receiver"] == receiver]
        latents = [row for row in own if row["method"] == "latent"]
        if latents:
            yield _keep(latents, _one(own, "text"))
            for test in (test for test in kept if test["receiver"] == receiver):
                yield f"On {receiver} at {test['target_ratio']:g}x: {test['sentence']}"
            yield from _are_read(latents, own)
            yield from _follow(own)
            yield from _compare_with_text(latents, own, SHORTENED, "text of the same length")
            yield from _compare_with_text(
                latents, own, SHORTENED_FOR_QUESTION, "text that was shortened for the question"
            )
            yield from _fall_backs(own)
            yield from _sizes(latents, own)
        yield from _relays(own)


def probe_verdicts(scores: list[Score]) -> Iterator[str]:
    """Whether a sender's own states hold the answer."""
    for sender in distinct(select(scores, method="linear_probe"), "receiver"):
        own = select(scores, receiver=sender)
        probe, majority, shuffled = (
            _format(select(own, method="linear_probe", metric=metric)[0].value, "{:.0%}")
            for metric in ("accuracy", "majority_accuracy", "shuffled_accuracy")
        )
        answered, size = (
            select(own, method="sender_label", metric=metric)[0].value
            for metric in ("accuracy", "payload_bytes")
        )
        yield (
            f"In the states of {sender}, a linear probe finds the label in {probe} of the cases, "
            f"the most frequent label would be right in {majority}, a probe of shuffled labels in "
            f"{shuffled}. As a label of {size:.0f} byte(s), its own answer is right in "
            f"{_format(answered, '{:.0%}')}."
        )


def print_headline(layout: Layout) -> None:
    """Prints the headline table, the verdicts and where the report is.

    Raises:
        UserError: if the headline is not there yet.
    """
    results = read_json(layout.headline)
    header = ["method", "receiver", "EM", "F1", "relative F1", "ratio", "payload bytes"]
    print(f"\n{results['experiment']}: test scores\n")
    blocks = in_blocks(results["headline"])
    lines = _aligned([header, *(_cells(row) for rows in blocks.values() for row in rows)])
    print(next(lines))
    for title, rows in blocks.items():
        if title:
            print(f"\n{title}:")
        for line in itertools.islice(lines, len(rows)):
            print(line)
    print("\nratio: source tokens over vectors or tokens in their place; relative F1: to full text")
    print()
    for verdict in results["verdicts"]:
        print(f"- {verdict}")
    if layout.report.is_file():
        print(f"\nReport: {layout.report}")
    else:
        print(f"\nThe report {layout.report} is not written yet; run: snakemake report --cores 1")


def _keep(latents: Rows, text: dict[str, Any]) -> str:
    shares = [
        f"{_format(row['relative_f1']['value'], '{:.0%}', 'no measurable share')} "
        f"({row['f1']['value']:.3f}) at {row['target_ratio']:g}x"
        for row in latents
    ]
    return (
        f"On {text['receiver']}, of the text F1 of {text['f1']['value']:.3f} latents keep "
        f"{_listed(shares)}."
    )


def _are_read(latents: Rows, rows: Rows) -> Iterator[str]:
    """Compares with messages of other passages: they must help no more than no message."""
    shuffled, closed_book = _by_ratio(rows, "control_shuffled"), _by_ratio(rows, "closed_book")
    if not shuffled or not closed_book:
        return
    floor = closed_book[None]["f1"]["value"]
    outcomes: dict[str, Rows] = {}
    for row in latents:
        control = shuffled[row["target_ratio"]]["f1"]["value"]
        if row["f1"]["value"] <= max(control, floor) + TOLERANCE:
            outcome = "the message is not read"
        elif control > floor + TOLERANCE:
            outcome = "part of the score does not come from the message"
        else:
            outcome = "the message is read"
        outcomes.setdefault(outcome, []).append(row)
    for outcome, group in outcomes.items():
        controls = [f"{shuffled[row['target_ratio']]['f1']['value']:.3f}" for row in group]
        yield (
            f"On {group[0]['receiver']}, {outcome} at {_ratios(group)}: shuffled messages score "
            f"{_listed(controls)}, no message {floor:.3f}."
        )


def _follow(rows: Rows) -> Iterator[str]:
    """How often an answer that was swapped in the passage is given."""
    followed = {
        ratio: row["swap_followed"]["value"]
        for ratio, row in _by_ratio(rows, "control_swap").items()
    }
    text = followed.pop(None, None)
    if text is not None and followed:
        shares = [
            f"{_format(share, '{:.0%}', 'no measurable share')} at {ratio:g}x"
            for ratio, share in followed.items()
        ]
        yield (
            f"On {rows[0]['receiver']}, where an answer is swapped in the passage, the text's "
            f"answer follows in {text:.0%} of the cases, and of these the latents' in "
            f"{_listed(shares)}."
        )


def _compare_with_text(
    latents: Rows, rows: Rows, methods: Sequence[str], what: str
) -> Iterator[str]:
    """Compares with the best of the methods that send text, at each ratio."""
    best: dict[float, dict[str, Any]] = {}
    for row in (row for method in methods for row in rows if row["method"] == method):
        ratio = row["target_ratio"]
        best[ratio] = max(best.get(ratio, row), row, key=lambda own: own["f1"]["value"])
    for wins, verb in ((True, "beat"), (False, "do not beat")):
        group = [
            row
            for row in latents
            if row["target_ratio"] in best
            and (row["f1"]["value"] > best[row["target_ratio"]]["f1"]["value"]) == wins
        ]
        if group:
            others = [best[row["target_ratio"]] for row in group]
            shown = [f"{other['f1']['value']:.3f} ({label(other['method'])})" for other in others]
            yield (
                f"On {group[0]['receiver']}, latents {verb} {what} at {_ratios(group)}: "
                f"at best it scores {_listed(shown)}."
            )


def _fall_backs(rows: Rows) -> Iterator[str]:
    """How often a compressor left nothing of a text."""
    for row in rows:
        if share := row["fell_back"]["value"]:
            yield (
                f"On {row['receiver']}, {label(row['method'])} left nothing of the text for "
                f"{share:.1%} of the questions at {row['target_ratio']:g}x; the text's first "
                "tokens were sent instead."
            )


def _relays(rows: Rows) -> Iterator[str]:
    """Whether what senders write is a fair opponent: without a limit it must carry the text."""
    for row in rows:
        method, _, sender = row["method"].partition(FROM)
        if method == "text_relay" and row["target_ratio"] is None:
            share = row["relative_f1"]["value"]
            fair = share is not None and share >= FAIR_RELAY
            yield (
                f"On {row['receiver']}, text relay from {sender} keeps "
                f"{_format(share, '{:.0%}', 'no measurable share')} of the text score where its "
                f"length has no limit: it is {'a' if fair else 'not a'} fair opponent."
            )


def in_blocks(rows: Rows) -> dict[str, Rows]:
    """The rows apart by whether what was sent was made in knowledge of the question."""
    blocks: dict[str, Rows] = {}
    for row in rows:
        is_aware = row["method"].partition(FROM)[0] in QUESTION_AWARE_METHODS
        blocks.setdefault("with the question known" if is_aware else "", []).append(row)
    return blocks


def _sizes(latents: Rows, rows: Rows) -> Iterator[str]:
    """Bytes of a message in each form, and of the text, plain and compressed."""
    text = _one(rows, "text")
    plain, packed = (text[size]["value"] for size in ("payload_bytes", "source_gzip_bytes"))
    for ratio in (row["target_ratio"] for row in latents):
        forms = {
            dtype: own[ratio]["payload_bytes"]["value"]
            for method, dtype in PAYLOAD_DTYPES.items()
            if (own := _by_ratio(rows, method))
        }
        sizes = [f"{size:,.0f} as {dtype}" for dtype, size in forms.items()]
        smaller = "message" if min(forms.values()) < min(plain, packed) else "text"
        yield (
            f"On {text['receiver']}, the bytes of a message at {ratio:g}x are {_listed(sizes)}, "
            f"those of the text {plain:,.0f}, or {packed:,.0f} with gzip: the {smaller} is smaller."
        )


def _by_ratio(rows: Rows, method: str) -> dict[float | None, dict[str, Any]]:
    return {row["target_ratio"]: row for row in rows if row["method"] == method}


def _one(rows: Rows, method: str) -> dict[str, Any]:
    return next(row for row in rows if row["method"] == method)


def _ratios(rows: Rows) -> str:
    return _listed([f"{row['target_ratio']:g}x" for row in rows])


def _listed(words: list[str]) -> str:
    """Reads as a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _cells(row: dict[str, Any]) -> list[str]:
    budget = f" {row['target_ratio']:g}x" if row["target_ratio"] else ""
    formats = {"em": "{:.3f}", "f1": "{:.3f}", "relative_f1": "{:.1%}", "ratio": "{:.2f}"}
    return [
        label(row["method"]) + budget,
        row["receiver"],
        *(_format(row[metric]["value"], formats.get(metric, "{:,.0f}")) for metric in METRICS),
    ]


def _format(value: float | None, template: str, missing: str = "-") -> str:
    return missing if value is None else template.format(value)


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    """Columns of equal width; the first two are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(cells)
        ).rstrip()
