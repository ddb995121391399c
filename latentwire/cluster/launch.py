"""Runs the workflow's head, Snakemake, as a small job of its own.

Such a job may be preempted like any other. It comes back, and then must not run beside what its
earlier self left: jobs that still run, and Snakemake's lock.
"""

import contextlib
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedSubmissionError

from latentwire.cluster.lease import Lease, Owner, read_owner
from latentwire.cluster.profile import read_profile, slurm_faults
from latentwire.cluster.slurm import (
    JOB_ID,
    has_slurm,
    is_cancelled,
    jobs_of_run,
    requeue_if_taken,
)
from latentwire.config import Experiment
from latentwire.configuration import dump_yaml
from latentwire.errors import UserError
from latentwire.files import read_json, write_json, write_text
from latentwire.layout import Layout

LOCKS = Path(".snakemake/locks")
HEAD = {"timeout_min": 12 * 60, "mem_gb": 4, "cpus_per_task": 1, "slurm_signal_delay_s": 120}
# A head on this machine has no limit; one of a cluster may reach its limit as often as it takes.
_NO_LIMIT_MINUTES, _MANY_LIMITS = 365 * 24 * 60, 1000
_POLL_SECONDS, _ATTEND_SECONDS, _END_SECONDS = 5.0, 0.5, 30.0

logger = logging.getLogger(__name__)


def launch(
    experiment: Experiment, layout: Layout, cluster: str, profile: Path | None, target: str
) -> None:
    """Submits the head of the workflow and says how to follow it.

    Args:
        experiment: fixed from here on, whatever becomes of its file.
        layout: that of the workflow in the working directory.
        cluster: where the head runs: `slurm`, or `local` for this machine.
        profile: where the stages run; that of the cluster if none is given.
        target: a rule or a file.

    Raises:
        UserError: if this is not the workflow's directory, the profile has faults, a head of the
            experiment is there already, or SLURM refuses the job.
    """
    profile = profile or Path("profiles") / cluster
    settings = read_profile(profile)
    uses_slurm = settings.get("executor") == "slurm"
    _check(layout, cluster, profile, slurm_faults(settings) if uses_slurm else [])
    name = _run_name(layout)
    _refuse_second_head(layout, name)
    config = layout.launch / "config.yaml"
    write_text(config, dump_yaml(experiment))
    command = [sys.executable, "-m", "snakemake", target]
    command += ["--profile", str(profile), "--configfile", str(config)]
    command += ["--slurm-jobname-prefix", name] if uses_slurm else []
    head = Head(str(layout.root), str(layout.launch), name if uses_slurm else None, command)
    job = _submit(head, layout.launch, cluster, _head_name(name), settings)
    logger.info("head %s is on its way; to follow it: tail -F %s", job.job_id, job.paths.stdout)
    end = "scancel" if cluster == "slurm" else "kill"
    logger.info("to end it and the jobs that it submitted: %s %s", end, job.job_id)


class Head(submitit.helpers.Checkpointable):
    """What submitit starts, and starts again after a preemption or a time limit.

    Submitit pickles it, so it holds nothing but strings.

    Args:
        root: the experiment's folder.
        folder: for files of heads.
        jobs: what the names of the jobs that Snakemake submits start with; none without SLURM.
        command: that of Snakemake.
    """

    def __init__(self, root: str, folder: str, jobs: str | None, command: list[str]) -> None:
        self._root, self._folder, self._jobs, self._command = root, folder, jobs, command
        # Submitit hides the GPUs from a job on this machine that asks for none.
        self._visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")

    def __call__(self) -> None:
        """Runs the workflow to its end.

        Raises:
            UserError: if the workflow fails.
        """
        _log_to_terminal()
        # Submitit would pass over the signal that ends a job.
        asked_to_end: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
        lease = Lease(Path(self._folder) / "lease")
        lease.acquire()
        try:
            self._wait_for_predecessor()
            self._clear_own_lock()
            process = subprocess.Popen(
                self._command, env=self._environment(), start_new_session=True
            )
            try:
                self._attend(process, lease, asked_to_end)
            finally:
                _end(process)
            self._record.unlink(missing_ok=True)
        finally:
            lease.release()
        if process.returncode != 0:
            raise UserError(f"the workflow ended with {process.returncode}; the reason is above")

    @property
    def _record(self) -> Path:
        """What a successor must know of this head's Snakemake."""
        return Path(self._folder) / "snakemake.json"

    def _wait_for_predecessor(self) -> None:
        """Waits for what an earlier head started: a job behind a lease would hold GPUs idle."""
        seen: list[str] = []
        while running := [*self._snakemake_of_predecessor(), *self._jobs_of_predecessor()]:
            if running != seen:
                logger.info("waiting for %s of an earlier head", ", ".join(running))
            seen = running
            time.sleep(_POLL_SECONDS)

    def _snakemake_of_predecessor(self) -> Iterator[str]:
        if self._record.is_file():
            owner = Owner(**read_json(self._record)["owner"])
            # SLURM starts a job again once all its processes have ended.
            is_own = owner.slurm_job_id is not None and owner.slurm_job_id == os.environ.get(JOB_ID)
            if not is_own and not owner.is_gone():
                yield f"Snakemake, {owner},"

    def _jobs_of_predecessor(self) -> Iterator[str]:
        if self._jobs is None:
            return
        jobs = jobs_of_run(f"{self._jobs}_")
        if jobs is None:
            yield "SLURM, which does not answer, for the jobs"
            return
        yield from (f"job {job}" for job, name in jobs.items() if name != _head_name(self._jobs))

    def _clear_own_lock(self) -> None:
        """Removes the lock that an earlier head's Snakemake left, and no other."""
        if self._record.is_file():
            noted = read_json(self._record)["locks"]
            for name, identity in self._locks().items():
                if noted.get(name) == identity:
                    logger.info("clearing %s, left by an earlier head", LOCKS / name)
                    (LOCKS / name).unlink()

    def _attend(self, process: subprocess.Popen, lease: Lease, asked_to_end: list[int]) -> None:
        """Notes Snakemake's lock, waits for its end, and ends it if we are asked to end."""
        owner, before = asdict(Owner(pid=process.pid)), self._locks()
        noted = None
        while process.poll() is None and not asked_to_end:
            lease.check()
            own = {name: lock for name, lock in self._locks().items() if before.get(name) != lock}
            if own != noted:
                write_json(self._record, {"owner": owner, "locks": own})
                noted = own
            time.sleep(_ATTEND_SECONDS)
        if asked_to_end:
            requeue_if_taken()
            if is_cancelled():
                logger.warning("ending the workflow and the jobs that it submitted, as asked")
                # Snakemake cancels its jobs on an interrupt, and leaves them on other signals.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
            process.wait()

    def _locks(self) -> dict[str, list[int]]:
        """Snakemake's locks of the experiment's files; what tells each from others of its name."""
        locks = {}
        for path in LOCKS.glob("*.lock"):
            # Its Snakemake may end while we look.
            with contextlib.suppress(OSError):
                if f"{self._root}/" in path.read_text(encoding="utf-8"):
                    status = path.stat()
                    locks[path.name] = [status.st_ino, status.st_mtime_ns]
        return locks

    def _environment(self) -> dict[str, str]:
        """Ours without what describes our own job, which Snakemake's jobs would take for theirs."""
        ours = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", "CUDA_VISIBLE_DEVICES")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        if "SLURM_CONF" in os.environ:
            kept["SLURM_CONF"] = os.environ["SLURM_CONF"]
        if self._visible_gpus is not None:
            kept["CUDA_VISIBLE_DEVICES"] = self._visible_gpus
        return kept


def _check(layout: Layout, cluster: str, profile: Path, faults: list[str]) -> None:
    if not Path("Snakefile").is_file() or layout.results != Path("results"):
        raise UserError(
            "launch runs the workflow of the working directory, whose results are in results/; go "
            "to the folder that holds the Snakefile, and leave --results out"
        )
    if cluster == "slurm" and not has_slurm():
        raise UserError("--cluster slurm, but there is no sbatch here; log in to the cluster")
    if faults:
        raise UserError("\n  ".join([f"the profile {profile} would not do:", *faults]))


def _run_name(layout: Layout) -> str:
    """What the names of the jobs of an experiment in this directory start with."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", layout.experiment)[:30]
    return f"{readable}-{hashlib.sha256(str(layout.root.resolve()).encode()).hexdigest()[:8]}"


def _head_name(run: str) -> str:
    return f"{run}_head"


def _refuse_second_head(layout: Layout, name: str) -> None:
    jobs = jobs_of_run(f"{name}_") or {} if has_slurm() else {}
    heads = [job for job, title in jobs.items() if title == _head_name(name)]
    owner = read_owner(layout.launch / "lease")
    head = f"SLURM job {heads[0]}" if heads else owner if owner and not owner.is_gone() else None
    if head is not None:
        raise UserError(
            f"{layout.experiment} has a head already: {head}. Its log is in {layout.launch}; end "
            "it to launch another"
        )


def _submit(
    head: Head, folder: Path, cluster: str, name: str, settings: dict[str, Any]
) -> submitit.Job:
    executor = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=_MANY_LIMITS)
    executor.update_parameters(**HEAD, name=name, stderr_to_stdout=True)
    if cluster == "slurm":
        defaults = settings.get("default-resources", {})
        executor.update_parameters(
            slurm_partition=defaults.get("slurm_partition"),
            slurm_account=defaults.get("slurm_account"),
            slurm_additional_parameters={"requeue": True},
        )
    else:
        executor.update_parameters(timeout_min=_NO_LIMIT_MINUTES)
    try:
        with _away_from_terminal():
            return executor.submit(head)
    except (FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise UserError(f"SLURM refuses the head: {error}") from error


@contextlib.contextmanager
def _away_from_terminal() -> Iterator[None]:
    """Lets what is started outlive the terminal, and not hold a pipe open that we write to."""
    streams = (0, 1, 2)
    ours = [os.dup(stream) for stream in streams]
    nothing = os.open(os.devnull, os.O_RDWR)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for stream in streams:
            os.dup2(nothing, stream)
        yield
    finally:
        signal.signal(signal.SIGHUP, hang_up)
        for stream, own in zip(streams, ours, strict=True):
            os.dup2(own, stream)
        for descriptor in (nothing, *ours):
            os.close(descriptor)


def _log_to_terminal() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("latentwire")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)


def _end(process: subprocess.Popen) -> None:
    """Ends Snakemake and what it runs on this machine; jobs that it submitted go on."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
