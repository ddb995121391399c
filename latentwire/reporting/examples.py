"""The example browser: test questions with every method's answer, to see what the wire loses."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from latentwire.config import Experiment, Method
from latentwire.data.tables import Example
from latentwire.evaluation.predictions import prediction_runs, read_predictions
from latentwire.layout import NO_WIRE, Layout
from latentwire.reporting.html import html_page
from latentwire.reporting.scores import in_order, label, told_apart

MOST_EXAMPLES = 200
SEED = 1
_COLUMNS = ["example_id", "sender", "target_ratio", "prediction", "em"]


@dataclass(frozen=True)
class Answered:
    """The answers of one method on one receiver at one target ratio, of its first seed.

    Attributes:
        answers: by example id the answer and its exact match.
    """

    method: str
    receiver: str
    target_ratio: float | None
    answers: dict[str, tuple[str, float]]


def examples_page(experiment: Experiment, layout: Layout, examples: Sequence[Example]) -> str:
    """A page to filter by method, receiver, outcome and words.

    Raises:
        UserError: if a prediction file is missing or malformed.
    """
    answered = read_answered(experiment, layout)
    chosen, num_lost = choose_examples(examples, answered)
    return render(chosen, answered, [_introduction(len(chosen), len(examples), num_lost)])


def read_answered(experiment: Experiment, layout: Layout) -> list[Answered]:
    """All answers to the questions as they are, by method in the order in which they are shown."""
    answered: list[Answered] = []
    for receiver in experiment.receivers:
        for run in prediction_runs(experiment, receiver.name):
            # Swapped answers stand in passages other than those that are shown.
            if run.method == Method.control_swap or run.seed != _first_seed(experiment, run.wire):
                continue
            path = layout.predictions(run.method, receiver.name, run.wire, run.seed)
            rows = read_predictions(path).select(_COLUMNS).to_pylist()
            for sender, ratio in product(run.senders, run.target_ratios):
                method = told_apart(run.method, run.wire, sender)
                answers = {
                    row["example_id"]: (row["prediction"], row["em"])
                    for row in rows
                    if (row["sender"], row["target_ratio"]) == (sender, ratio)
                }
                answered.append(Answered(method, receiver.name, ratio, answers))
    order = in_order(own.method for own in answered)
    return sorted(answered, key=lambda own: order.index(own.method))


def _first_seed(experiment: Experiment, wire: str) -> int:
    return 0 if wire == NO_WIRE else experiment.of_wire(wire).seeds[0]


def choose_examples(
    examples: Sequence[Example], answered: Sequence[Answered]
) -> tuple[list[Example], int]:
    """At most MOST_EXAMPLES: those that the wire loses first, then others at random.

    A question is lost if some receiver is right with the full text and wrong with the latents at
    the lowest target ratio.

    Returns:
        The questions, in the order of the table, and how many of all questions are lost.
    """
    lost = set(_lost(answered))
    shuffled = random.Random(SEED).sample(examples, len(examples))
    first = sorted(shuffled, key=lambda example: example.example_id not in lost)[:MOST_EXAMPLES]
    ids = {example.example_id for example in first}
    return [example for example in examples if example.example_id in ids], len(lost)


def _lost(answered: Sequence[Answered]) -> Iterator[str]:
    latents = [own for own in answered if own.method == Method.latent]
    lowest = min((own.target_ratio or 0 for own in latents), default=None)
    texts = {own.receiver: own.answers for own in answered if own.method == Method.text}
    for own in latents:
        if own.target_ratio == lowest:
            for example_id, (_, is_right) in own.answers.items():
                if texts[own.receiver][example_id][1] and not is_right:
                    yield example_id


def _introduction(num_chosen: int, num_all: int, num_lost: int) -> str:
    return (
        f"{num_chosen:,} of the {num_all:,} test questions. First come those that some receiver "
        "answers rightly with the full text and wrongly with the latents at the lowest target "
        f"ratio: {num_lost:,} of all ({num_lost / num_all:.1%}); the others are drawn at random "
        f"(seed {SEED}). So shares on this page are not scores. Right is an exact match; answers "
        "of wires are those of their first training seed."
    )


def render(
    examples: Sequence[Example], answered: Sequence[Answered], introduction: Iterable[str]
) -> str:
    """The page, whose data lie in it as JSON and are put in place as text, never as HTML."""
    return html_page("Examples", introduction, body=_body(examples, answered), script=_SCRIPT)


def _body(examples: Sequence[Example], answered: Sequence[Answered]) -> str:
    passages = {own.passage_id: own.context for own in examples}
    places = {passage_id: place for place, passage_id in enumerate(passages)}
    data: dict[str, Any] = {
        "passages": list(passages.values()),
        "methods": [
            {"name": _name(own), "receiver": own.receiver, "isText": own.method == Method.text}
            for own in answered
        ],
        "examples": [
            {
                "passage": places[example.passage_id],
                "task": example.task,
                "question": example.question,
                "gold": example.answers,
                "answers": [
                    [text, int(is_right)]
                    for text, is_right in (own.answers[example.example_id] for own in answered)
                ],
            }
            for example in examples
        ],
        "first": next((_name(own) for own in answered if own.method == Method.latent), ""),
    }
    # So that no text of it can end the element or begin another.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return f'{_FORM}\n<script type="application/json" id="data">{text}</script>'


def _name(own: Answered) -> str:
    return f"{label(own.method)} {own.target_ratio:g}x" if own.target_ratio else label(own.method)


_FORM = """
<style>
form { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; margin: 1rem 0; }
details { border-bottom: 1px solid #ddd; padding: .4rem 0; max-width: 60rem; }
details table { width: auto; }
summary { cursor: pointer; }
blockquote { margin: .6rem 0; padding-left: .8rem; border-left: 3px solid #bbb;
  white-space: pre-wrap; }
.right::before { content: "\\2713\\a0"; color: #00634A; }
.wrong::before { content: "\\2717\\a0"; color: #A33F00; }
.wrong { color: #A33F00; }
</style>
<form>
  <label>method <select id="method"></select></label>
  <label>receiver <select id="receiver"></select></label>
  <label>outcome <select id="outcome">
    <option value="lost">full text right, this wrong</option>
    <option value="won">full text wrong, this right</option>
    <option value="right">right</option>
    <option value="wrong">wrong</option>
    <option value="">any</option>
  </select></label>
  <label>words <input type="search" id="words"></label>
</form>
<p id="count" aria-live="polite"></p>
<div id="examples"></div>
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const field = name => document.getElementById(name);
const make = (tag, text, className = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
};
const offer = (select, values) => select.append(...values.map(value => new Option(value, value)));
offer(field("method"), [...new Set(data.methods.map(method => method.name))]);
field("receiver").append(new Option("any", ""));
offer(field("receiver"), [...new Set(data.methods.map(method => method.receiver))]);
field("method").value = data.first || data.methods[0].name;

const textOf = Object.fromEntries(data.methods.flatMap(
  (method, place) => method.isText ? [[method.receiver, place]] : []));
const outcomes = {
  lost: (text, own) => text && !own,
  won: (text, own) => !text && own,
  right: (text, own) => own,
  wrong: (text, own) => !own,
  "": () => true,
};

function answersTable(example) {
  const names = [...new Set(data.methods.map(method => method.name))];
  const receivers = [...new Set(data.methods.map(method => method.receiver))];
  const table = make("table", "");
  const head = table.createTHead().insertRow();
  for (const name of ["method", ...receivers]) head.append(make("th", name));
  const body = table.createTBody();
  for (const name of names) {
    const row = body.insertRow();
    row.append(make("td", name));
    for (const receiver of receivers) {
      const place = data.methods.findIndex(
        method => method.name === name && method.receiver === receiver);
      const [text, isRight] = place < 0 ? ["", null] : example.answers[place];
      row.append(make("td", text, isRight === null ? "" : isRight ? "right" : "wrong"));
    }
  }
  return table;
}

function show(example, places) {
  const details = make("details", "");
  const summary = make("summary", example.question + " ");
  summary.append("gold: ", make("strong", example.gold.join(" / ") || "no answer"));
  for (const place of places) {
    const [text, isRight] = example.answers[place];
    summary.append(" ", make("span", `${data.methods[place].receiver}: ${text}`,
      isRight ? "right" : "wrong"));
  }
  details.append(summary);
  // Only what is looked at is built.
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    details.append(make("blockquote", data.passages[example.passage]), answersTable(example));
  });
  return details;
}

function filter() {
  const words = field("words").value.toLowerCase().split(/\\s+/);
  const fits = outcomes[field("outcome").value];
  const shown = [];
  for (const example of data.examples) {
    const places = data.methods.flatMap((method, place) => method.name === field("method").value
      && ["", method.receiver].includes(field("receiver").value)
      && fits(example.answers[textOf[method.receiver]][1], example.answers[place][1])
      ? [place] : []);
    const text = [example.question, ...example.gold, data.passages[example.passage],
      ...places.map(place => example.answers[place][0])].join(" ").toLowerCase();
    if (places.length && words.every(word => text.includes(word))) {
      shown.push(show(example, places));
    }
  }
  field("count").textContent = `${shown.length} of ${data.examples.length} questions`;
  field("examples").replaceChildren(...shown);
  if (shown.length) shown[0].open = true;
}

document.querySelector("form").addEventListener("change", filter);
field("words").addEventListener("input", filter);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
filter();
"""
