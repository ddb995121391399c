"""What SLURM says of jobs and nodes, and what a stage does when SLURM takes its nodes away."""

import gc
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

from latentwire.errors import UserError

JOB_ID = "SLURM_JOB_ID"
# A job in one of these states may have processes.
_RUNNING = "RUNNING COMPLETING CONFIGURING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING".split()
_PATIENCE_SECONDS = 30
# SLURM sends the signal of `--signal=TERM@120` up to a minute early.
_NEAR_LIMIT_SECONDS = 300
_KILLED_WITHIN_SECONDS = 600

logger = logging.getLogger(__name__)


def requeue_if_taken(wait_seconds: float = _KILLED_WITHIN_SECONDS) -> None:
    """Queues this job again if SLURM is taking its nodes away, and waits to be killed.

    SLURM does not queue a job again that leaves by itself. One that was cancelled, or stopped by
    its user, stays as it is; so does everything outside SLURM.
    """
    job_id = os.environ.get(JOB_ID)
    if job_id is None:
        return
    # SLURM ends the job by another TERM, and would call it failed if it left at that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reason = why_taken(show_job(job_id))
    if reason is None:
        return
    _free_gpu()
    # Of processes that train together one asks, and all wait.
    if os.environ.get("RANK", "0") == "0":
        asked = run_command("scontrol", "requeue", job_id)
        if asked.returncode != 0:
            logger.error("SLURM does not queue job %s again: %s", job_id, asked.stderr.strip())
            return
    logger.warning("%s; job %s is queued again and goes on from here", reason, job_id)
    time.sleep(wait_seconds)


def is_cancelled() -> bool:
    """Whether whoever asks us to end wants us to end for good, rather than to start again.

    For processes that SLURM started itself: Snakemake hides from its stages how often that was.
    """
    job_id = os.environ.get(JOB_ID)
    if job_id is None:
        return True
    # SLURM counts a restart when it decides on it.
    restarts = show_job(job_id).get("Restarts")
    return restarts is not None and restarts == os.environ.get("SLURM_RESTART_COUNT", "0")


def why_taken(job: Mapping[str, str]) -> str | None:
    """Why SLURM is about to end a running job, or none if it is not.

    Args:
        job: the fields of `scontrol show job`.
    """
    if job.get("JobState") != "RUNNING":
        return None
    preempted, started = job.get("PreemptTime", ""), job.get("StartTime", "")
    # Not that of an earlier start; times are ISO 8601, or words.
    if preempted[:1].isdigit() and preempted >= started:
        return "the job is preempted"
    limit, run_time = (parse_seconds(job.get(key, "")) for key in ("TimeLimit", "RunTime"))
    if limit is not None and run_time is not None and limit - run_time <= _NEAR_LIMIT_SECONDS:
        return "the time limit is near"
    return None


def show_job(job_id: str) -> dict[str, str]:
    """The fields of `scontrol show job`; none if SLURM does not answer."""
    shown = run_command("scontrol", "show", "job", job_id)
    return parse_fields(shown.stdout) if shown.returncode == 0 else {}


def show_partition(name: str) -> dict[str, str]:
    """The fields of `scontrol show partition`; none if there is none or no answer."""
    shown = run_command("scontrol", "show", "partition", name)
    return parse_fields(shown.stdout) if shown.returncode == 0 else {}


def parse_fields(text: str) -> dict[str, str]:
    """`Key=value` pairs of what scontrol shows of one thing; a value ends at white space."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(\S*)", text))


def parse_seconds(duration: str) -> int | None:
    """Seconds of `[days-]hours:minutes:seconds`; none for a time that is no number."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", duration)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def is_job_running(job_id: str) -> bool | None:
    """Whether a job may have processes; none if SLURM is not here or does not answer."""
    if not has_slurm():
        return None
    shown = run_command("squeue", "--noheader", "--jobs", job_id, "--format", "%T")
    if shown.returncode != 0:
        # SLURM forgets a job some minutes after its end.
        return False if "Invalid job id" in shown.stderr else None
    return any(state in _RUNNING for state in shown.stdout.split())


def jobs_of_run(prefix: str) -> dict[str, str] | None:
    """Own jobs that have not ended and whose names start so; none if SLURM does not answer.

    Returns:
        Names by job id.
    """
    shown = run_command("squeue", "--me", "--noheader", "--format", "%i %j")
    if shown.returncode != 0:
        return None
    jobs = (line.split(maxsplit=1) for line in shown.stdout.splitlines())
    return {job: name.strip() for job, name in jobs if name.startswith(prefix)}


def refuse_login_node() -> None:
    """Makes sure that nobody trains where people log in.

    Raises:
        UserError: on a machine of a SLURM cluster that is none of its nodes, outside a job.
    """
    if os.environ.get(JOB_ID) or not has_slurm():
        return
    # Fails where the commands are installed but no cluster is.
    nodes = run_command("sinfo", "--noheader", "--Node", "--format", "%n %N")
    if nodes.returncode == 0 and _host_name() not in nodes.stdout.split():
        raise UserError(
            f"{_host_name()} is a login node of a SLURM cluster, where nothing is trained. Run "
            "`snakemake --profile profiles/slurm`, or this verb inside a job (`srun`, `sbatch`); "
            "--force trains here all the same"
        )


def refuse_retry_of_cancelled() -> None:
    """Makes sure that this job is not one that was cancelled and submitted again.

    Snakemake retries a cancelled job as if it had failed. Its jobs bear the name of the run, and in
    the comment what they are for. SLURM remembers ended jobs for some minutes (MinJobAge).

    Raises:
        UserError: if it is.
    """
    job_id = os.environ.get(JOB_ID)
    job = show_job(job_id) if job_id else {}
    if "Comment" not in job:
        return
    name = ("--name", job["JobName"], "--states", "CANCELLED")
    shown = run_command("squeue", "--me", "--noheader", *name, "--format", "%i %k")
    for line in shown.stdout.splitlines():
        cancelled, _, comment = line.partition(" ")
        if comment.strip() == job["Comment"]:
            raise UserError(
                f"job {cancelled} of this run was cancelled; run the workflow again to go on"
            )


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None


def _host_name() -> str:
    return socket.gethostname().partition(".")[0]


def _free_gpu() -> None:
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def run_command(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's commands; one that is missing or hangs has failed."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
