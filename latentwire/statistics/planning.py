"""How many passages a comparison needs, from the answers of an experiment or from assumptions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latentwire.config import Experiment, Method
from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.statistics.clusters import Clusters
from latentwire.statistics.comparisons import POWER, Pair, ratios_of_pair, scores_of
from latentwire.statistics.inputs import Answers, read_answers
from latentwire.statistics.power import (
    cluster_deviation,
    detectable_effect,
    deviation_of_cluster,
    intraclass_correlation,
    required_clusters,
)


@dataclass(frozen=True)
class Plan:
    """What to plan for; of what is none, the answers of the experiment tell.

    Attributes:
        effect: true mean difference to detect.
        passages: number of passages to judge.
        power, alpha: of the two-sided test.
        sd: standard deviation of a question's difference.
        icc: correlation of the differences of two questions about one passage.
        questions: mean number of questions about a passage.
    """

    effect: float | None
    passages: int | None
    power: float = POWER
    alpha: float = 0.05
    sd: float | None = None
    icc: float | None = None
    questions: float | None = None


def plan_power(experiment: Experiment, layout: Layout, plan: Plan) -> str:
    """A few lines for people.

    Raises:
        UserError: if the plan is incomplete or out of range, or has no sd and answers are missing.
    """
    try:
        if plan.sd is None:
            return _from_answers(experiment, layout, plan)
        return _from_assumptions(plan, plan.sd)
    except ValueError as error:
        raise UserError(f"cannot plan this: {error}") from error


def _from_assumptions(plan: Plan, sd: float) -> str:
    if plan.effect is None and plan.passages is None:
        raise UserError("--sd needs --effect, to tell the passages, or --passages, or both")
    questions, icc = plan.questions or 1, plan.icc or 0
    deviation = deviation_of_cluster(sd, questions, icc)
    lines = [
        f"Differences with sd {sd:g} and ICC {icc:g}, {questions:g} questions per passage; "
        f"{_test(plan)}"
    ]
    if plan.effect is not None:
        needed = required_clusters(plan.effect, deviation, plan.alpha, plan.power)
        lines.append(
            f"to detect {plan.effect:g}: {needed:,} passages, {needed * questions:,.0f} questions"
        )
    if plan.passages is not None:
        least = detectable_effect(plan.passages, deviation, plan.alpha, plan.power)
        lines.append(f"with {plan.passages:,} passages: detects {least:.4f} or more")
    return "\n".join(lines)


def _from_answers(experiment: Experiment, layout: Layout, plan: Plan) -> str:
    if plan.icc is not None or plan.questions is not None:
        raise UserError("--icc and --questions go with --sd; without it the answers tell them")
    header = ["receiver", "ratio", "difference", "sd", "ICC", "detects now"]
    if plan.passages is not None:
        header.append(f"with {plan.passages:,} passages")
    if plan.effect is not None:
        header.append(f"passages for {plan.effect:g}")
    rows, answers = [header], []
    for receiver in experiment.receivers:
        answers = read_answers(experiment, layout, receiver.name)
        rows.extend(_rows(experiment, plan, answers))
    num_passages, num_questions = len(np.unique(answers[0].passages)), len(answers[0].passages)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        [
            f"From {num_questions:,} questions about {num_passages:,} passages of "
            f"{experiment.experiment}, F1; {_test(plan)}",
            "",
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
        ]
    )


def _rows(experiment: Experiment, plan: Plan, answers: list[Answers]) -> Iterator[list[str]]:
    """A row for each declared pair, and for latents against the full text."""
    groups = Clusters.of(answers[0].passages, len(answers[0].passages))
    pairs = dict.fromkeys([*experiment.statistics.family, (Method.latent, Method.text)])
    for method, reference in pairs:
        for ratio in ratios_of_pair(answers, method, reference):
            pair = Pair.of(scores_of(answers, method, ratio), scores_of(answers, reference, ratio))
            own, other = pair.mean_f1
            differences = own - other
            icc = intraclass_correlation(differences, groups)
            yield [
                answers[0].receiver,
                "-" if ratio is None else f"{ratio:g}x",
                f"{method.value} - {reference.value}",
                f"{differences.std(ddof=1):.3f}" if len(differences) > 1 else "-",
                "-" if icc is None else f"{icc:.2f}",
                *_outcomes(plan, cluster_deviation(differences, groups), groups.count),
            ]


def _outcomes(plan: Plan, deviation: float | None, num_passages: int) -> list[str]:
    sizes = [num_passages] if plan.passages is None else [num_passages, plan.passages]
    num_columns = len(sizes) + (plan.effect is not None)
    if deviation is None:
        return ["not estimable"] * num_columns
    outcomes = [
        f"{detectable_effect(size, deviation, plan.alpha, plan.power):.4f}" for size in sizes
    ]
    if plan.effect is not None:
        outcomes.append(f"{required_clusters(plan.effect, deviation, plan.alpha, plan.power):,}")
    return outcomes


def _test(plan: Plan) -> str:
    return f"two-sided test at {plan.alpha:g}, power {plan.power:g}"
