"""What a stage runs on: hardware and the versions of what computes."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The packages whose versions may move the numbers of a training.
COMPUTING = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def computing_facts() -> dict[str, Any]:
    """What decides, besides code and settings, which bits a training computes."""
    return {
        "processor": processor_name(),
        "gpus": gpu_names(),
        "python": platform.python_version(),
        **package_versions(COMPUTING),
    }


@cache
def package_versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """The installed version of each package; none if it is not installed."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def hardware() -> dict[str, Any]:
    """System, processor, memory in bytes and GPUs of this machine."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpu_names(),
    }


def gpu_names() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def processor_name() -> str:
    """The processor's name, which Linux keeps in /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
