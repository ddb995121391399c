"""A lease on a folder: one process works there at a time, on whatever machine it runs.

Its owner renews a counter in a file. Others judge the owner by watching the counter change: the
clocks of two machines disagree, and file locks do not reach across every network file system.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from latentwire.cluster.slurm import is_job_running
from latentwire.errors import UserError

MISSED_RENEWALS = 3
_POLLS_PER_RENEWAL = 10
_RENEWALS_PER_MESSAGE = 6

logger = logging.getLogger(__name__)


class LeaseLostError(UserError):
    """Another process has taken the work over."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    # Two containers on one host may each have a process of that number.
    pid_namespace: str = field(default_factory=lambda: _pid_namespace())
    slurm_job_id: str | None = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __str__(self) -> str:
        job = f" (SLURM job {self.slurm_job_id})" if self.slurm_job_id else ""
        return f"process {self.pid} on {self.host}{job}"

    def is_gone(self) -> bool:
        """Whether it is certain that the process has ended."""
        here = (socket.gethostname(), _pid_namespace())
        if (self.host, self.pid_namespace) == here:
            return _has_ended(self.pid)
        return self.slurm_job_id is not None and is_job_running(self.slurm_job_id) is False


class Lease:
    """The right to work in a folder.

    The owner writes into the file that it made and keeps open; who takes over puts another file in
    its place. An owner that was stopped meanwhile renews a file that nobody sees any more.

    Args:
        path: the file of the lease.
        interval_seconds: time between renewals.
    """

    def __init__(self, path: Path, interval_seconds: float = 10.0) -> None:
        self.owner = Owner()
        self.waited_for: Owner | None = None
        self._path, self._interval = path, interval_seconds
        self._counter = 0
        self._descriptor = -1
        self._ended = threading.Event()
        self._renewals = threading.Thread(target=self._renew, daemon=True)

    def acquire(self) -> None:
        """Waits until the folder is free or its owner is gone, then renews until the release.

        Raises:
            UserError: if the folder cannot be written.
        """
        try:
            while not self._create() and not self._take_over():
                pass
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}. Make the folder writable or free "
                "space, then run the stage again"
            ) from error
        self._renewals.start()

    def check(self) -> None:
        """Makes sure that the lease is still held.

        Raises:
            LeaseLostError: if it is not.
        """
        owner = read_owner(self._path)
        if owner is None or owner.token != self.owner.token:
            taker = f"{owner} has taken over" if owner else f"{self._path} is gone"
            raise LeaseLostError(
                f"this process was silent for {MISSED_RENEWALS * self._interval:g} s or more, and "
                f"{taker}; it stops without writing"
            )

    def release(self) -> None:
        """Gives the lease up, if it is still held."""
        self._ended.set()
        self._renewals.join()
        os.close(self._descriptor)
        with contextlib.suppress(LeaseLostError):
            self.check()
            self._path.unlink()

    def _create(self) -> bool:
        # Whoever released the lease may have removed the folder, too.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        self._write()
        return True

    def _take_over(self) -> bool:
        """Whether the lease was taken from an owner that is gone, rather than released by it."""
        seen = self._watch()
        if seen is None:
            return False
        temporary = self._path.with_name(f".{self._path.name}.{self.owner.token}")
        self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._write()
        if _read(self._path) == seen:
            temporary.replace(self._path)
            # Of several that take over at once the last one has it, as each of them sees.
            time.sleep(self._interval / _POLLS_PER_RENEWAL / 2)
            with contextlib.suppress(LeaseLostError):
                self.check()
                logger.warning("took over from %s", _parse(seen) or "an unknown owner")
                return True
        temporary.unlink(missing_ok=True)
        os.close(self._descriptor)
        return False

    def _watch(self) -> bytes | None:
        """Waits; the lease of an owner that is gone, or none once the owner has released it."""
        seen, polls, renewals = _read(self._path), 0, 0
        while (content := _read(self._path)) is not None:
            owner = _parse(content)
            if content != seen:
                seen, polls, renewals = content, 0, renewals + 1
            if owner is not None and polls % _POLLS_PER_RENEWAL == 0 and owner.is_gone():
                return content
            if polls > MISSED_RENEWALS * _POLLS_PER_RENEWAL:
                return content
            if owner is not None and polls == 1 and renewals % _RENEWALS_PER_MESSAGE == 0:
                logger.info(
                    "%s works in %s; waiting until it ends or misses %d renewals of its lease, one "
                    "every %g s",
                    owner,
                    self._path.parent,
                    MISSED_RENEWALS,
                    self._interval,
                )
            self.waited_for = owner or self.waited_for
            polls += 1
            time.sleep(self._interval / _POLLS_PER_RENEWAL)
        return None

    def _renew(self) -> None:
        while not self._ended.wait(self._interval):
            self._counter += 1
            try:
                self._write()
            except OSError as error:
                logger.warning("cannot renew %s: %s", self._path, error.strerror)

    def _write(self) -> None:
        # Always of one length, so that it is overwritten whole.
        content = json.dumps({"counter": f"{self._counter:012}", **asdict(self.owner)}) + "\n"
        os.pwrite(self._descriptor, content.encode(), 0)
        os.fsync(self._descriptor)


def read_owner(path: Path) -> Owner | None:
    """Who holds the lease of a file, if anyone does."""
    content = _read(path)
    return _parse(content) if content is not None else None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> Owner | None:
    try:
        facts = json.loads(content)
        return Owner(**{key: facts[key] for key in Owner.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        # Its writer was killed before, or is writing now.
        return None


def _has_ended(pid: int) -> bool:
    try:
        # A process that nobody has waited for is listed, without words.
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
