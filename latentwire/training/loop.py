"""The training loop that every trained part shares: schedule, saves, signals, metrics, resume."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentwire.cluster.machine import keep_freed_memory
from latentwire.errors import Interrupted
from latentwire.training.optimisers import learning_rate_factor, make_optimisers
from latentwire.training.parts import WHOLE, Counts, Losses, Part, add_gradients, own_parts
from latentwire.training.processes import (
    agree,
    apart,
    copy_from_leader,
    is_leader,
    sum_gradients,
    sum_losses,
)
from latentwire.training.progress import MetricsLog, Progress
from latentwire.training.state import StateDirectory

METRICS = "metrics.jsonl"

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained. Steps are pure functions of their number, so that a run can resume."""

    @property
    def module(self) -> nn.Module:
        """What is trained; its parameters that require gradients."""

    def losses(self, step: int, part: Part = WHOLE, /) -> tuple[Losses, Counts]:
        """What a part adds to the losses of a step, `loss` the one to minimise; and counts.

        The losses of all parts add up to the step's. A part that has nothing to read has none. The
        counts, `examples` and `tokens`, are the step's.
        """

    def dev(self) -> dict[str, float]:
        """Measures on the dev split; empty if the task has none."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; everything counts steps except the interval of saves.

    Attributes:
        micro_batches: parts that a step is read in.
        shard_receivers: whether no process can compute without the others, so that all measure.
    """

    num_steps: int
    warmup_steps: int
    matrix_learning_rate: float
    other_learning_rate: float
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    micro_batches: int = 1
    shard_receivers: bool = False
    log_every_steps: int = 20
    dev_every_steps: int = 500
    checkpoint_interval_seconds: float = 300


def fit(task: Task, schedule: Schedule, state: StateDirectory) -> Path:
    """Trains a task to its last step, from its saved state if there is one.

    Processes that train together take every step together, and stop together.

    A save that fails ends the training: a run that cannot be saved may lose all it does from then
    on. What was saved before stays.

    Returns:
        The metrics file in the state folder, one JSON line per logged step.

    Raises:
        Interrupted: after TERM, INT or USR1, once the state is saved at a step boundary.
        UserError: if the saved state cannot be continued, or none can be saved.
    """
    keep_freed_memory()
    parameters = [(name, p) for name, p in task.module.named_parameters() if p.requires_grad]
    optimisers = make_optimisers(
        parameters,
        schedule.matrix_learning_rate,
        schedule.other_learning_rate,
        schedule.weight_decay,
    )
    first_step, examples, text = _resume(task, optimisers, state)
    trainable = [parameter for _, parameter in parameters]
    copy_from_leader(trainable)
    parts = own_parts(schedule.micro_batches)
    state.begin(first_step, schedule.num_steps)
    metrics = MetricsLog(state.path / METRICS, text) if is_leader() else None
    progress = Progress(first_step, schedule.num_steps)
    last_save, logged_tokens, logged_at = time.monotonic(), 0, 0.0

    def content() -> dict[str, Any]:
        return {
            "examples": examples,
            "metrics": metrics.text if metrics else "",
            "module": _trained_state(task.module),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        }

    with _SignalFlag() as stop:
        for step in range(first_step, schedule.num_steps):
            factor = learning_rate_factor(step, schedule.num_steps, schedule.warmup_steps)
            rates = (schedule.matrix_learning_rate, schedule.other_learning_rate)
            for optimiser, rate in zip(optimisers, rates, strict=True):
                optimiser.param_groups[0]["lr"] = rate * factor
            read = add_gradients(partial(task.losses, step), parts, trainable)
            sum_gradients(trainable)
            norm = nn.utils.clip_grad_norm_(trainable, schedule.max_gradient_norm)
            # What a save holds changes from here on alone.
            state.wait_for_copy()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            _, counts = read[0]
            examples += counts["examples"]
            logged_tokens += counts["tokens"]
            done = step + 1
            is_last = done == schedule.num_steps
            is_logged = done % schedule.log_every_steps == 0 or is_last
            losses = sum_losses([own for own, _ in read]) if is_logged else {}
            is_measured = is_logged and (done % schedule.dev_every_steps == 0 or is_last)
            measured: dict[str, float] = {}
            if is_measured and (metrics or schedule.shard_receivers):
                with apart():
                    measured = task.dev()
            if metrics and is_logged:
                row: dict[str, float] = {"step": done, "examples": examples, **losses}
                row |= {
                    "learning_rate": rates[0] * factor,
                    "gradient_norm": norm.item(),
                    **measured,
                }
                progress.report(done, row)
                seconds = progress.seconds
                row["seconds"] = round(seconds, 3)
                row["tokens_per_second"] = round(logged_tokens / (seconds - logged_at))
                metrics.write(row)
                logged_tokens, logged_at = 0, seconds
            if step == first_step and not is_last:
                state.prepare(content())
            state.poll()
            stopped_by = agree(stop.signal or 0)
            if stopped_by or is_last:
                state.save(done, content(), wait=True)
                agree()
            elif time.monotonic() - last_save > schedule.checkpoint_interval_seconds:
                state.save(done, content())
                last_save = time.monotonic()
            if stopped_by and not is_last:
                logger.warning("stopped after step %d; the state is saved", done)
                raise Interrupted(stopped_by)
    if metrics:
        metrics.close()
    return state.path / METRICS


def _trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state but for its frozen parameters, which its inputs hold."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _resume(
    task: Task, optimisers: list[torch.optim.Optimizer], state: StateDirectory
) -> tuple[int, int, str]:
    """Restores a saved run; returns its step, examples seen, and the lines of its metrics."""
    loaded = state.load()
    if loaded is None:
        return 0, 0, ""
    step, saved = loaded
    task.module.load_state_dict(task.module.state_dict() | saved["module"])
    for optimiser, optimiser_state in zip(optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(optimiser_state)
    logger.info("resuming after step %d", step)
    return step, saved["examples"], saved["metrics"]


class _SignalFlag:
    """Notes a signal for the length of the training; the old handlers come back after it."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Callable | int | None] = {}

    def __enter__(self) -> "_SignalFlag":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number)
