"""What happened to a training run: every start, where it went on, and how it ended."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from latentwire.cluster.lease import Owner
from latentwire.errors import Interrupted, UserError
from latentwire.files import read_json, write_json

RESUMES = "resumes.json"
MOST_RESTARTS = 3
_KILLED = "killed"


class History:
    """The starts of a run, kept beside its state.

    Args:
        directory: folder of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "history.json"
        self._has_begun = False

    def starts(self) -> list[dict[str, Any]]:
        """A dictionary for each start.

        Its keys: `step` and `num_steps`, steps done then and in all; `time` (UTC), `host`, `pid`
        and `slurm_job_id`; `changed`, what differed from the machine and code that saved the state;
        and `ended`, the signal or error that ended it.
        """
        return read_json(self.path) if self.path.exists() else []

    def begin(self, step: int, num_steps: int, owner: Owner, changed: dict[str, list[Any]]) -> None:
        """Adds a start."""
        start = {
            "step": step,
            "num_steps": num_steps,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": owner.host,
            "pid": owner.pid,
            "slurm_job_id": owner.slurm_job_id,
            "changed": changed,
            # Who is killed cannot say so any more.
            "ended": _KILLED,
        }
        write_json(self.path, [*self.starts(), start])
        self._has_begun = True

    def end(self, error: BaseException) -> None:
        """Notes what ended the start that was added."""
        if self._has_begun:
            starts = self.starts()
            starts[-1]["ended"] = _name(error)
            write_json(self.path, starts)

    def summary(self, token: str, identity: str) -> dict[str, Any]:
        """What is left beside the artefact.

        Args:
            token: of the lease under which the artefact was written.
            identity: of the run.
        """
        starts = self.starts()
        resumes = [
            {**{key: start[key] for key in start if key != "ended"}, "reason": before["ended"]}
            for before, start in pairwise(starts)
        ]
        return {"resumes": resumes, "identity": identity, "lease": token}

    def check_progress(self, step: int) -> None:
        """Makes sure that starting after a step has not been tried too often.

        Raises:
            UserError: if the last restarts all began there.
        """
        last = self.starts()[-MOST_RESTARTS - 1 :]
        # Whoever stops a run by hand has a reason.
        if len(last) > MOST_RESTARTS and all(
            start["step"] == step and start["ended"] != "SIGINT" for start in last
        ):
            ends = ", ".join(start["ended"] for start in last)
            raise UserError(
                f"the run has started {len(last)} times after step {step} and never saved a later "
                f"one; its starts ended by: {ends}. Mend what ends it (memory, time limit, a fault "
                f"in the log), then delete {self.path} to try again"
            )


def _name(error: BaseException) -> str:
    if isinstance(error, Interrupted):
        return error.signal.name
    return "SIGINT" if isinstance(error, KeyboardInterrupt) else type(error).__name__


def finished_by(artefact: Path, token: str, identity: str) -> bool:
    """Whether an artefact was written under a lease, by a run of that identity."""
    path = artefact / RESUMES
    if not path.exists():
        return False
    summary = read_json(path)
    return (summary["lease"], summary["identity"]) == (token, identity)
