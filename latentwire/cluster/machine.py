"""What a stage runs on: hardware, how fast it is, and the versions of what computes."""

import contextlib
import ctypes
import hashlib
import os
import platform
import tempfile
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The packages whose versions may move the numbers of a training.
COMPUTING = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
# mallopt(3): free memory at the end of the heap is given back from so many bytes on, none with -1;
# what is larger than this lies outside the heap, and is always given back.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


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


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees, for what it takes next, where libc is glibc.

    What is given back comes again slowly, page by page, to a virtual machine from its host. A
    training takes and frees the same memory in every step.
    """
    with contextlib.suppress(OSError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


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


def free_memory_bytes(device: str) -> int | None:
    """Memory that is free on a device, `cpu` or `cuda`; none if there is no such device."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kib * 1024


def matmul_flops(device: str, dtype: "torch.dtype") -> float:
    """Operations per second of a large product of square matrices, the best of several."""
    import torch

    size, repetitions = (8192, 10) if device == "cuda" else (1024, 4)
    matrix = torch.randn(size, size, device=device).to(dtype)
    fastest = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest


def save_bytes_per_second(folder: Path, num_bytes: int = 64 * 2**20) -> float:
    """How fast a training state is hashed and written to the disk of a folder.

    Raises:
        OSError: if the folder cannot be written.
    """
    block = os.urandom(2**20)
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(num_bytes // len(block)):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return num_bytes / (time.perf_counter() - started)
