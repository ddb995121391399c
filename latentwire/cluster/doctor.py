"""Whether this machine can run an experiment: what to know, what is wrong, and how to mend it."""

import getpass
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from latentwire.cluster.machine import free_memory_bytes, gpu_names, package_versions
from latentwire.cluster.profile import read_profile, slurm_faults
from latentwire.cluster.slurm import has_slurm, run_command, show_partition
from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.layout import Layout

LEAST_MEMORY_BYTES = 4 * 2**30
LEAST_DISK_BYTES = 5 * 2**30
# A save of a large state, and what else a job does on the signal.
LEAST_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        found: what is there.
        fix: how to mend it; empty where nothing is wrong.
        is_fatal: whether the experiment cannot run so.
    """

    name: str
    found: str
    fix: str = ""
    is_fatal: bool = True

    @property
    def verdict(self) -> str:
        if not self.fix:
            return "ok"
        return "FAIL" if self.is_fatal else "note"


def print_checks(experiment: Experiment, layout: Layout, profile: Path, as_json: bool) -> None:
    """Prints all checks.

    Raises:
        UserError: if one of them fails.
    """
    checks = run_checks(experiment, layout, profile)
    if as_json:
        print(
            json.dumps([asdict(check) | {"verdict": check.verdict} for check in checks], indent=2)
        )
    else:
        for check in checks:
            fix = f"\n           {check.fix}" if check.fix else ""
            print(f"{check.verdict:4}  {check.name}: {check.found}{fix}")
    failed = [check.name for check in checks if check.verdict == "FAIL"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}; each says how to "
            "mend it"
        )


def run_checks(experiment: Experiment, layout: Layout, profile: Path) -> list[Check]:
    """Everything that is checked, in the order in which it would stop an experiment."""
    return [
        Check("configuration", f"experiment {experiment.experiment}"),
        *_software(),
        _device(experiment),
        _threads(experiment),
        _memory(),
        _disk(layout),
        _hub(experiment),
        *_profile(profile),
        *_slurm(profile),
    ]


def _software() -> Iterator[Check]:
    yield Check("python", sys.version.split()[0])
    try:
        wanted = [Requirement(line) for line in requires("latentwire") or []]
    except PackageNotFoundError:
        yield Check(
            "packages",
            "latentwire is not installed here",
            "run `make test`, then `source .venv/bin/activate`",
        )
        return
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    versions = package_versions(tuple(one.name for one in wanted))
    for one in wanted:
        found = versions[one.name]
        fits = found is not None and one.specifier.contains(found, prereleases=True)
        fix = (
            "" if fits else f"needs {one.specifier}: `pip install --requirement requirements.lock`"
        )
        yield Check(one.name, found or "missing", fix)


def _device(experiment: Experiment) -> Check:
    import torch

    names = gpu_names()
    if not names:
        fix = "" if experiment.device == "cpu" else "run on a machine with a GPU, or --device cpu"
        return Check("device", f"{experiment.device}; torch finds no GPU", fix)
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Check("device", f"{experiment.device}; {len(names)} x {names[0]}, {gib:.0f} GiB")


def _threads(experiment: Experiment) -> Check:
    cpus = len(os.sched_getaffinity(0))
    fix = (
        ""
        if experiment.threads <= cpus
        else "ask for more cores (--cpus-per-task); setting --threads makes it another experiment"
    )
    return Check("threads", f"{experiment.threads}, on {cpus} cores", fix, is_fatal=False)


def _memory() -> Check:
    free = free_memory_bytes("cpu") or 0
    fix = "" if free >= LEAST_MEMORY_BYTES else "end other programs, or ask for more (--mem)"
    return Check("memory", f"{free / 2**30:.1f} GiB free", fix, is_fatal=False)


def _disk(layout: Layout) -> Check:
    folder = layout.existing_folder
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.0f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", f"{folder} cannot be written", "choose another folder by --results")
    fix = "" if free >= LEAST_DISK_BYTES else "free space, or choose another folder by --results"
    return Check("disk", found, fix)


def _hub(experiment: Experiment) -> Check:
    from huggingface_hub import get_token

    uses_hub = experiment.data.source not in ("pocket", "json") or any(
        receiver.repo_id for receiver in experiment.receivers
    )
    if get_token():
        return Check("hub", "logged in")
    if not uses_hub:
        return Check("hub", "not logged in, and nothing is fetched from there")
    return Check("hub", "not logged in", "for gated models run `hf auth login`", is_fatal=False)


def _profile(folder: Path) -> Iterator[Check]:
    try:
        faults = slurm_faults(read_profile(folder))
    except UserError as error:
        yield Check(str(folder), str(error), "give another by --profile", is_fatal=False)
        return
    for fault in faults:
        key, _, fix = fault.partition(": ")
        yield Check(f"{folder}: {key}", "wrong or missing", fix)
    if not faults:
        yield Check(str(folder), "every key that a job needs")


def _slurm(profile: Path) -> Iterator[Check]:
    if not has_slurm():
        yield Check("slurm", "not here")
        return
    if run_command("scontrol", "ping").returncode != 0:
        yield Check("slurm", "its commands are here, but no controller answers", is_fatal=False)
        return
    try:
        defaults = read_profile(profile).get("default-resources") or {}
    except UserError:
        return
    yield _partition(str(defaults.get("slurm_partition")))
    yield _account(str(defaults.get("slurm_account")))
    yield _requeue()


def _partition(name: str) -> Check:
    facts = show_partition(name)
    if not facts:
        known = run_command("sinfo", "--noheader", "--format", "%R").stdout.split()
        fix = f"set slurm_partition to one of {', '.join(known)}"
        return Check("partition", f"SLURM knows no {name!r}", fix)
    found = f"{name}, preemption {facts.get('PreemptMode')}, grace {facts.get('GraceTime')} s"
    if facts.get("PreemptMode") == "CANCEL":
        return Check(
            "partition",
            found,
            "jobs are cancelled, not queued again: ask for PreemptMode=REQUEUE, or count on "
            "`retries` of the profile",
            is_fatal=False,
        )
    grace = facts.get("GraceTime", "0")
    if "REQUEUE" in facts.get("PreemptMode", "") and int(grace) < LEAST_GRACE_SECONDS:
        return Check(
            "partition",
            found,
            f"a large state may take longer to save: ask for GraceTime={LEAST_GRACE_SECONDS} or "
            "lower training.checkpoint_interval_seconds",
            is_fatal=False,
        )
    return Check("partition", found)


def _account(name: str) -> Check:
    user = getpass.getuser()
    command = ("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}")
    shown = run_command(*command, "format=account")
    accounts = sorted(set(shown.stdout.split())) if shown.returncode == 0 else []
    if not accounts:
        return Check("account", f"{name}; there is no accounting database to check it with")
    fix = "" if name in accounts else f"set slurm_account to one of {', '.join(accounts)}"
    return Check("account", name if not fix else f"{user} may not use {name!r}", fix)


def _requeue() -> Check:
    shown = run_command("scontrol", "show", "config").stdout
    lines = (line.partition(" = ") for line in shown.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    keys = ("PreemptType", "JobRequeue", "KillWait")
    return Check("preemption", ", ".join(f"{key} {facts.get(key)}" for key in keys))
