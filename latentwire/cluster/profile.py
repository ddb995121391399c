"""What a profile of Snakemake asks a SLURM cluster for, and what is wrong with it."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from latentwire.errors import UserError

# Names that look right and are not: the cluster's own name, and a partition of other clusters.
LOOK_ALIKES = {
    "slurm_account": {"marlowe": "marlowe-m000066"},
    "slurm_partition": {"gpu": "preempt"},
}
# What a job needs to survive preemption, and the words to write.
NEEDED_KEYS = {"slurm-requeue": True, "slurm-status-command": "squeue"}
NEEDED_EXTRA = {
    r"--signal=TERM@\d+": "--signal=TERM@120, without `B:`, so that the stage gets it",
    r"--open-mode=append": "--open-mode=append, which keeps the log of earlier starts",
}


def read_profile(folder: Path) -> dict[str, Any]:
    """The settings of a profile.

    Raises:
        UserError: if the folder holds no profile.
    """
    path = folder / "config.yaml"
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read the profile {path}: {error}; profiles/slurm and profiles/local are ours"
        ) from error
    if not isinstance(profile, dict):
        raise UserError(f"the profile {path} must hold `key: value` lines")
    return profile


def signal_lead_seconds(profile: Mapping[str, Any]) -> int | None:
    """Seconds before its time limit at which a job of a SLURM profile is told to end."""
    extra = str((profile.get("default-resources") or {}).get("slurm_extra", ""))
    found = re.search(r"--signal=(?:\w:)?\w+@(\d+)", extra)
    return int(found[1]) if found else None


def slurm_faults(profile: Mapping[str, Any]) -> list[str]:
    """What keeps jobs of a SLURM profile from starting, or from surviving; each with its fix."""
    extra = str((profile.get("default-resources") or {}).get("slurm_extra", ""))
    return [
        *_key_faults(profile),
        *(
            f"{section}.{fault}"
            for section, resources in _sections(profile)
            for fault in _resource_faults(resources)
        ),
        *(f"default-resources.slurm_extra: {fault}" for fault in _extra_faults(extra)),
    ]


def _key_faults(profile: Mapping[str, Any]) -> Iterator[str]:
    for key, needed in NEEDED_KEYS.items():
        if profile.get(key) != needed:
            yield f"{key}: {profile.get(key)!r}; set {needed!r}"
    if not profile.get("retries"):
        yield "retries: none; set 2, for jobs that end by themselves"
    for key in LOOK_ALIKES:
        if not (profile.get("default-resources") or {}).get(key):
            yield f"default-resources.{key}: missing; set the one of your cluster"


def _sections(profile: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "default-resources", profile.get("default-resources") or {}
    for rule, resources in (profile.get("set-resources") or {}).items():
        yield f"set-resources.{rule}", resources


def _resource_faults(resources: Mapping[str, Any]) -> Iterator[str]:
    for key, names in LOOK_ALIKES.items():
        value = str(resources.get(key, "")).strip("'\"")
        if value in names:
            yield f"{key}: {value!r} only looks like one; set {names[value]!r}"


def _extra_faults(extra: str) -> Iterator[str]:
    """Snakemake evaluates the value as an expression, hence quotes within quotes."""
    if not re.fullmatch(r"'[^']*'|\"[^\"]*\"", extra):
        yield f"{extra!r} needs quotes within quotes, as in \"'--signal=TERM@120'\""
        return
    words = shlex.split(extra[1:-1])
    for pattern, needed in NEEDED_EXTRA.items():
        if not any(re.fullmatch(pattern, word) for word in words):
            yield f"{extra} lacks {needed}"
