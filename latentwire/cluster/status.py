"""How far each training of an experiment is, and where it runs."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentwire.cluster.lease import read_owner
from latentwire.layout import Layout
from latentwire.training.history import History
from latentwire.training.loop import METRICS
from latentwire.training.progress import format_seconds
from latentwire.training.state import LEASE, saved_slots, saved_step


@dataclass(frozen=True)
class RunStatus:
    """One training that is not finished.

    Attributes:
        run: its name.
        step: steps done, as far as its metrics and saves tell.
        num_steps: steps in all.
        steps_per_second: since its last start; none before its first line of metrics.
        seconds_left: at that rate.
        saved_step: steps done at the last save; none if nothing is saved.
        saved_at: when that was, UTC.
        restarts: starts after the first.
        ended: what ended the start before the last, if it started more than once.
        owner: who trains it; none if nobody does.
    """

    run: str
    step: int
    num_steps: int
    steps_per_second: float | None
    seconds_left: float | None
    saved_step: int | None
    saved_at: str | None
    restarts: int
    ended: str | None
    owner: str | None


def print_status(layout: Layout, as_json: bool) -> None:
    """Prints the experiment's trainings that are not finished, and this machine's GPUs."""
    runs, gpus = run_statuses(layout), gpu_statuses()
    if as_json:
        print(json.dumps({"runs": [asdict(run) for run in runs], "gpus": gpus}, indent=2))
        return
    if not runs:
        print(f"{layout.experiment}: no training is under way or interrupted")
    for run in runs:
        print(_line(run))
    for gpu in gpus:
        print(
            f"GPU {gpu['name']}: {gpu['used_percent']}% busy, "
            f"{gpu['memory_used_mib']:,} of {gpu['memory_mib']:,} MiB"
        )


def run_statuses(layout: Layout) -> list[RunStatus]:
    """The trainings that have a state folder, by name."""
    folders = sorted(layout.state("any").parent.glob("*/"))
    return [status for status in map(_run_status, folders) if status is not None]


def gpu_statuses() -> list[dict[str, Any]]:
    """Name, use in percent and memory of each GPU here; none without nvidia-smi."""
    query = "--query-gpu=name,utilization.gpu,memory.used,memory.total"
    try:
        shown = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    keys = ("used_percent", "memory_used_mib", "memory_mib")
    rows = ([part.strip() for part in line.split(",")] for line in shown.splitlines())
    return [{"name": name, **_numbers(keys, values)} for name, *values in rows]


def _numbers(keys: Sequence[str], values: Sequence[str]) -> dict[str, int | None]:
    """nvidia-smi has words for what a GPU cannot tell."""
    return {
        key: int(value) if value.isdigit() else None
        for key, value in zip(keys, values, strict=True)
    }


def _run_status(folder: Path) -> RunStatus | None:
    starts = History(folder).starts()
    if not starts:
        # An evaluation, or a training that has not begun.
        return None
    row, last = _last_row(folder / METRICS), starts[-1]
    newest = max(saved_slots(folder), key=saved_step, default=None)
    saved = None if newest is None else saved_step(newest)
    step = max(row.get("step", 0), last["step"], saved or 0)
    steps_since = row.get("step", 0) - last["step"]
    rate = steps_since / row["seconds"] if steps_since > 0 else None
    owner = read_owner(folder / LEASE)
    return RunStatus(
        run=folder.name,
        step=step,
        num_steps=last["num_steps"],
        steps_per_second=rate,
        seconds_left=(last["num_steps"] - step) / rate if rate else None,
        saved_step=saved,
        saved_at=None if newest is None else _time(newest),
        restarts=len(starts) - 1,
        ended=starts[-2]["ended"] if len(starts) > 1 else None,
        owner=None if owner is None or owner.is_gone() else str(owner),
    )


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of metrics; its writer may be writing another."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        lines = []
    return json.loads(lines[-1]) if lines else {}


def _time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _line(run: RunStatus) -> str:
    parts = [f"{run.run}: step {run.step} of {run.num_steps}"]
    if run.steps_per_second and run.seconds_left is not None and run.owner:
        parts.append(f"{run.steps_per_second:.2f} steps/s")
        parts.append(f"{format_seconds(run.seconds_left)} left")
    parts.append(
        "nothing saved yet"
        if run.saved_step is None
        else f"saved after step {run.saved_step} at {run.saved_at}"
    )
    ended = f" (the last one after: {run.ended})" if run.ended else ""
    parts.append(f"{run.restarts} restarts{ended}")
    parts.append(run.owner or "nobody trains it; run the workflow again to go on")
    return ", ".join(parts)
