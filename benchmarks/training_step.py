"""How far a training step is from the compute that it needs, and from a straightforward loop.

    python benchmarks/training_step.py results/pocket

Takes steps of an experiment whose data and receivers are prepared, as they are once ratios have
grown, optimiser among it. Each is timed, and then, before the next one:

* bare compute: what the step did of the encoder, of each receiver's layers and of its head, done
  again by itself on the same tensors: forward, and backward where the step went back, into weights
  and inputs for the encoder, into inputs alone for receivers;
* a straightforward loop on as many questions, drawn at random, as a Trainer goes through them: one
  question a row, each row padded to the longest, logits at all positions, a teacher in a pass of
  its own, and AdamW. It pays for no tokenising, no spread positions and no deep soft tokens;
* the product of large matrices, in the precision of the training.

Prints JSON: medians over the steps, in seconds by the clock and of CPU time. The latter is of all
threads, and does not count what else the machine does.
"""

import argparse
import copy
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timing import clock, timed
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_leaves, tree_map

from latentwire.cluster.machine import computing_facts, matmul_flops
from latentwire.config import Experiment
from latentwire.configuration import load_experiment
from latentwire.layout import Layout
from latentwire.planning.cost import ModelShape, Work, model_flops
from latentwire.planning.models import model_shape
from latentwire.receivers.loading import load_receiver
from latentwire.receivers.receiver import Receiver
from latentwire.training.loop import Schedule, fit
from latentwire.training.optimisers import make_optimisers
from latentwire.training.parts import WHOLE, Counts, Losses, Part
from latentwire.training.state import Identity, StateDirectory
from latentwire.training.wire import WireTask, make_wire
from latentwire.wire.encoder import EncodedSources
from latentwire.wire.wire import Wire

WARM_UP_STEPS = 2
NEVER_SECONDS = 1e9
IGNORED = -100


@dataclass(frozen=True)
class Call:
    """A part of a step that can be done again.

    Attributes:
        part: whose it is.
        forward: what was called.
        weights: those that it trains.
        arguments: positional and by name, cut off from what made them.
        goes_back: whether gradients came back through it.
        flops: its operations.
    """

    part: str
    forward: Callable[..., Any]
    weights: Sequence[nn.Parameter]
    arguments: tuple[Any, dict[str, Any]]
    goes_back: bool
    flops: float

    def repeat(self) -> None:
        arguments, named = self.arguments
        with torch.set_grad_enabled(self.goes_back):
            output = self.forward(*arguments, **named)
        if self.goes_back:
            outputs = [value for value in tree_leaves(output) if _is_differentiable(value)]
            inputs = [*filter(_is_differentiable, tree_leaves(self.arguments)), *self.weights]
            upstream = [torch.ones_like(value) for value in outputs]
            torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)


class Calls:
    """Notes what a step calls of the encoder, and of receivers' layers and heads, while told to."""

    def __init__(self, wire: Wire, receivers: Sequence[Receiver]) -> None:
        self.is_noting = False
        self.noted: list[Call] = []
        self._encoder = wire.encoder
        self._read, self._latents = wire.encoder.read, wire.encoder.latents
        # Methods of their own, unlike what a module is called for.
        vars(wire.encoder).update(read=self._note_read, latents=self._note_latents)
        for receiver in receivers:
            model, note = cast(Any, receiver.model), partial(self._note_receiver, receiver)
            for module in (model.model, model.lm_head):
                module.register_forward_pre_hook(note, with_kwargs=True)

    def _note_read(self, *arguments: Tensor) -> EncodedSources:
        self._last_read = arguments
        return self._read(*arguments)

    def _note_latents(self, sources: EncodedSources, groups: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_noting:
            (rows, length), project = self._last_read[0].shape[:2], self._encoder.project
            self._note(
                "encoder",
                self._encode,
                self._encoder,
                ((*self._last_read, groups), {}),
                [
                    (model_shape(self._encoder.backbone), _layers(rows, length)),
                    (ModelShape(project.weight.numel(), 0, 0, 0), Work(int(groups.sum()), 0)),
                ],
            )
        return self._latents(sources, groups)

    def _encode(self, *arguments: Tensor) -> Tensor:
        *read, groups = arguments
        return self._latents(self._read(*read), groups)[0]

    def _note_receiver(self, receiver: Receiver, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.is_noting:
            if kwargs:
                work = _layers(*kwargs["inputs_embeds"].shape[:2])
            else:
                work = Work(0, 0, predictions=len(args[0]))
            # Nothing but a teacher, or a guard without message, reads without gradients.
            part = "receivers" if torch.is_grad_enabled() else "teachers"
            _, again = receiver._now_and_again()
            forward = partial(_within, again, module)
            self._note(part, forward, module, (args, kwargs), [(model_shape(receiver.model), work)])

    def _note(
        self,
        part: str,
        forward: Callable[..., Any],
        module: nn.Module,
        arguments: Any,
        work: Sequence[tuple[ModelShape, Work]],
    ) -> None:
        weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        goes_back = torch.is_grad_enabled()
        passes = 1 + goes_back + bool(weights)
        flops = sum(model_flops(shape, own, passes) for shape, own in work)
        cut_off = tree_map(_cut_off, arguments)
        self.noted.append(Call(part, forward, weights, cut_off, goes_back, flops))


class Measured:
    """A wire's training whose steps are timed, and followed by what they are compared with."""

    def __init__(self, experiment: Experiment, task: WireTask, first: int, rows: int) -> None:
        self._experiment, self._task, self._first = experiment, task, first
        self._plain = PlainLoop(experiment, task, rows)
        # Later than the loop, whose copy of the wire is not to be watched.
        self._calls = Calls(task.module, task._receivers)
        self._started: np.ndarray | None = None
        self.times: dict[str, list[np.ndarray]] = defaultdict(list)
        self.flops: list[float] = []
        self.matmul: list[float] = []
        self.questions: list[int] = []

    @property
    def module(self) -> nn.Module:
        return self._task.module

    def losses(self, step: int, _: Part = WHOLE, /) -> tuple[Losses, Counts]:
        if self._started is not None:
            self.times["step"].append(clock() - self._started)
            self._compare(self._first + step - 1)
        self._calls.noted.clear()
        self._started = clock()
        self._calls.is_noting = True
        losses = self._task.losses(self._first + step)
        self._calls.is_noting = False
        return losses

    def dev(self) -> dict[str, float]:
        return {}

    def _compare(self, step: int) -> None:
        most = self._experiment.training.max_questions_per_passage
        passages = self._task._passages[None]
        _, indices = self._task.order.batch(step)
        asked = [len(next(iter(passages[index].questions.values()))) for index in indices]
        self.questions.append(sum(min(most, count) for count in asked))
        seconds = dict.fromkeys(("encoder", "receivers", "teachers"), np.zeros(2))
        for call in self._calls.noted:
            with self._task._autocast():
                seconds[call.part] = seconds[call.part] + timed(call.repeat)
        for part, own in seconds.items():
            self.times[part].append(own)
        self.times["bare"].append(sum(seconds.values()))
        self.flops.append(sum(call.flops for call in self._calls.noted))
        count = self.questions[-1]
        self.times["straightforward"].append(timed(lambda: self._plain.step(count)))
        self.times["optimiser"].append(timed(self._plain.update))
        precision = getattr(torch, self._experiment.training.precision)
        self.matmul.append(matmul_flops(self._experiment.device, precision))


class PlainLoop:
    """A training that takes one question a row."""

    def __init__(self, experiment: Experiment, task: WireTask, rows: int) -> None:
        self._experiment, self._task, self._rows = experiment, task, rows
        self._wire = copy.deepcopy(task.module)
        trained = [(n, p) for n, p in self._wire.named_parameters() if p.requires_grad]
        self._adamw = torch.optim.AdamW([p for _, p in trained], lr=1e-4)
        # Those of the project, to see what they take by themselves.
        self._optimisers = make_optimisers(trained, 1e-4, 1e-4)
        self._draw = random.Random(1)
        self._pairs = [
            (passage, number)
            for passage in task._passages[None]
            for number in range(len(next(iter(passage.questions.values()))))
        ]

    def step(self, num_questions: int) -> None:
        pairs = self._draw.sample(self._pairs, num_questions)
        self._adamw.zero_grad()
        for start in range(0, num_questions, self._rows):
            rows = pairs[start : start + self._rows]
            with self._task._autocast():
                loss = self._loss(rows)
            (loss * len(rows) / num_questions).backward()
        self._adamw.step()

    def update(self) -> None:
        for optimiser in self._optimisers:
            optimiser.step()

    def _loss(self, pairs: Sequence[tuple[Any, int]]) -> Tensor:
        ratios = self._draw.choices(self._experiment.wire.target_ratios, k=len(pairs))
        sources = self._wire.read([passage.encoder_ids for passage, _ in pairs])
        latents = self._wire.latents(sources, ratios)
        settings, losses = self._experiment.training, []
        for receiver in self._task._receivers:
            name = receiver.name
            soft = self._wire.soft_tokens(name, latents)
            prefixes = [own[real] for own, real in zip(soft.embeddings, soft.mask, strict=True)]
            asked = [passage.questions[name][number] for passage, number in pairs]
            logits, labels, loss = self._read(receiver, prefixes, asked)
            loss = settings.cross_entropy_weight * loss
            if settings.kl_weight:
                texts = [receiver.embed(passage.text_ids[name]) for passage, _ in pairs]
                asked = [passage.text_questions[name][number] for passage, number in pairs]
                with torch.no_grad():
                    given, places, _ = self._read(receiver, texts, asked)
                student, teacher = (
                    F.log_softmax(own[:, :-1][at[:, 1:] != IGNORED].float(), -1)
                    for own, at in ((logits, labels), (given, places))
                )
                kl = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
                loss = loss + settings.kl_weight * kl
            losses.append(loss)
        return torch.stack(losses).mean()

    def _read(
        self, receiver: Receiver, prefixes: Sequence[Tensor], asked: Sequence[tuple[list, list]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and labels of whole rows, and the loss of the answers."""
        head = receiver.embed(receiver.prompt.head_ids)
        rows, labels = [], []
        for prefix, (question, answer) in zip(prefixes, asked, strict=True):
            row = torch.cat([head, prefix.to(head.dtype), receiver.embed([*question, *answer])])
            rows.append(row)
            ignored = [IGNORED] * (len(row) - len(answer))
            labels.append(torch.tensor([*ignored, *answer], device=row.device))
        mask = pad_sequence([torch.ones_like(own) for own in labels], batch_first=True)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        output = receiver.model(
            inputs_embeds=pad_sequence(rows, batch_first=True),
            attention_mask=mask,
            labels=targets,
            use_cache=False,
        )
        return output.logits, targets, output.loss


def _layers(rows: int, length: int) -> Work:
    return Work(rows * length, rows * length**2)


def _within(context: AbstractContextManager, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    with context:
        return forward(*args, **kwargs)


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _cut_off(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of an experiment with data, receivers")
    parser.add_argument("--wire", help="name of the wire (default: the experiment's)")
    parser.add_argument("--steps", type=int, default=30, help="steps to time (default: 30)")
    parser.add_argument(
        "--rows", type=int, default=16, help="rows at once of the straightforward loop"
    )
    options = parser.parse_args()
    whole = load_experiment(options.results / "config.yaml")
    layout = Layout(whole.experiment, options.results.parent)
    experiment = whole.of_wire(options.wire or whole.wire.name)
    torch.set_num_threads(experiment.threads)
    seed = experiment.seeds[0]
    torch.manual_seed(seed)
    receivers = [load_receiver(experiment, layout, own.name) for own in experiment.readers]
    wire = make_wire(experiment, layout, receivers, seed)
    task = WireTask(experiment, layout, wire, receivers, seed)
    settings = experiment.training
    grown = settings.alignment_steps + settings.text_steps
    grown += int(settings.ratio_growth * task.num_steps)
    measured = Measured(experiment, task, grown, options.rows)
    # The last step has no next one that ends it.
    num_steps = WARM_UP_STEPS + options.steps + 1
    schedule = Schedule(num_steps, 1, 1e-4, 1e-4, checkpoint_interval_seconds=NEVER_SECONDS)
    with (
        tempfile.TemporaryDirectory() as folder,
        StateDirectory(Path(folder) / "run", Identity({}, "")) as state,
    ):
        fit(measured, schedule, state)
    print(json.dumps(_outcome(experiment, measured, options.rows), indent=2))


def _outcome(experiment: Experiment, measured: Measured, rows: int) -> dict[str, Any]:
    times = {name: np.array(own[WARM_UP_STEPS:]) for name, own in measured.times.items()}
    questions = np.array(measured.questions[WARM_UP_STEPS:])
    flops, matmul = (np.array(own[WARM_UP_STEPS:]) for own in (measured.flops, measured.matmul))
    # Each step is set against what was measured right after it.
    ratios = {
        "step_over_bare": times["step"] / times["bare"],
        "step_over_bare_and_optimiser": times["step"] / (times["bare"] + times["optimiser"]),
        "straightforward_over_step": times["straightforward"] / times["step"],
    }
    seconds = {name: np.median(own, axis=0) for name, own in (times | ratios).items()}
    rate = np.median(matmul)
    return {
        "machine": computing_facts(),
        "threads": torch.get_num_threads(),
        "precision": experiment.training.precision,
        "steps": len(questions),
        "questions_per_step": float(questions.mean()),
        "straightforward_rows": rows,
        **{
            name: {"seconds": float(own[0]), "cpu_seconds": float(own[1])}
            for name, own in seconds.items()
            if name not in ratios
        },
        **{
            name: {"by_clock": float(seconds[name][0]), "by_cpu_time": float(seconds[name][1])}
            for name in ratios
        },
        "matmul_flops": float(rate),
        "step_flops": float(np.median(flops)),
        "step_share_of_matmul": float(np.median(flops / times["step"][:, 0]) / rate),
        "bare_share_of_matmul": float(np.median(flops / times["bare"][:, 0]) / rate),
        "asked": {"step_over_bare": 1.2, "straightforward_over_step": 2},
    }


if __name__ == "__main__":
    main()
