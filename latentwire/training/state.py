"""The state of a training run on disk: two slots written in turn, each whole and checksummed.

Beside the slots lie the run's lease and its history: every start, and how each ended.
"""

import contextlib
import hashlib
import io
import json
import logging
import random
import struct
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
import torch

from latentwire.cluster.lease import Lease
from latentwire.cluster.machine import computing_facts
from latentwire.errors import UserError
from latentwire.files import discard_partial, whole_file, write_json
from latentwire.training.history import RESUMES, History, finished_by
from latentwire.training.hostcopy import HostCopy
from latentwire.training.processes import agree, is_leader, leader_only, num_processes

LEASE = "lease.json"
_SLOTS = ("slot0.pt", "slot1.pt")
# The SHA-256 of all that follows it, and the number of steps done.
_HEADER = struct.Struct(">32sQ")
_DIGEST_BYTES = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What a saved run must have in common with the one that goes on from it.

    Attributes:
        science: settings and inputs that decide what is computed, threads among them; nested.
        code: fingerprint of the code.
        resume_across_code: go on although the code has changed.
    """

    science: dict[str, Any]
    code: str
    resume_across_code: bool = False

    @property
    def digest(self) -> str:
        content = json.dumps([self.science, self.code], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class StateDirectory:
    """Saves and loads the state of one run, for the one process that holds its lease.

    Use as a context, from before the run's models are loaded until its artefact is in place. Of
    processes that train together the leader holds the lease; the others only load.

    Args:
        path: folder of the run; undeclared to the workflow, so that no failed attempt deletes it.
        identity: what must be the same for a run to go on.
        lease_interval_seconds: time between renewals of the lease.
    """

    def __init__(
        self, path: Path, identity: Identity, lease_interval_seconds: float = 10.0
    ) -> None:
        self.path = path
        self._identity = identity
        # Plain values only: the state must load without running any type of a library's own.
        self._science = json.loads(json.dumps(identity.science))
        self._machine = {**computing_facts(), "processes": num_processes()}
        self._lease = Lease(path / LEASE, lease_interval_seconds)
        self._history = History(path)
        self._changed: dict[str, list[Any]] = {}
        self._saved: tuple[int, dict[str, Any]] | None = None
        self._copy = HostCopy()
        self._copied = threading.Event()
        self._copied.set()
        self._pending: futures.Future[None] | None = None
        self._slot = 0

    def __enter__(self) -> Self:
        """Waits for the lease, and reads the newest whole state.

        Raises:
            UserError: if the folder cannot be written, every slot is damaged, the saved run is
                another than this one, or it has started there several times and never came further.
        """
        with contextlib.ExitStack() as refusal:
            if is_leader():
                self._lease.acquire()
                refusal.callback(self._lease.release)
                discard_partial(self.path)
                self._saved = self._read()
                self._history.check_progress(self._saved[0] if self._saved else 0)
            agree()
            if not is_leader():
                self._saved = self._read()
            # Until all have read them, no slot is written.
            agree()
            refusal.pop_all()
        return self

    @leader_only
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # A save that was begun is finished, whatever ended the training.
        if self._pending is not None:
            futures.wait([self._pending])
        if error is not None:
            # What ended it is what matters, not that the disk has no room to note it.
            with contextlib.suppress(UserError):
                self._lease.check()
                self._history.end(error)
        self._lease.release()
        # Not empty where the run goes on, or where another process has come to wait.
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def is_done(self, artefact: Path) -> bool:
        """Whether the process that held the lease before has just written this run's artefact."""
        owner = self._lease.waited_for
        done = owner is not None and finished_by(artefact, owner.token, self._identity.digest)
        return bool(agree(int(done)))

    @leader_only
    def begin(self, step: int, num_steps: int) -> None:
        """Notes that the run starts, or goes on, after so many steps."""
        self._history.begin(step, num_steps, self._lease.owner, self._changed)

    @leader_only
    def prepare(self, state: dict[str, Any]) -> None:
        """Takes the memory that saving a state will need, meanwhile."""
        self._start(self._copy.prepare, state)

    @leader_only
    def save(self, step: int, state: dict[str, Any], wait: bool = False) -> None:
        """Copies a state, and writes it to the slot that does not hold the newest one, meanwhile.

        Args:
            step: steps that are done.
            state: tensors, numbers, strings and dictionaries and lists of them; tensors may change
                after `wait_for_copy`.
            wait: return once it is on disk.

        Raises:
            UserError: if this save or the one before fails, for want of space for example; the
                newest state on disk stays whole.
            LeaseLostError: if another process has taken the run over; nothing is written.
        """
        self.wait()
        self._lease.check()
        content = {
            **state,
            "science": self._science,
            "code": self._identity.code,
            "machine": self._machine,
            "random": _random_state(),
        }
        slot, self._slot = self._slot, 1 - self._slot
        if wait:
            # Training stands still, and needs no copy.
            self._start(self._write, slot, step, content)
            self.wait()
        else:
            self._copied.clear()
            self._start(self._copy_and_write, slot, step, content)

    def wait_for_copy(self) -> None:
        """Waits until the state that a save was begun with may change."""
        self._copied.wait()

    def poll(self) -> None:
        """Raises what went wrong with a save that has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for a save that was begun, and raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """What was saved when the context was entered, and its step; none if nothing was.

        Restores random states.
        """
        saved, self._saved = self._saved, None
        if saved is not None:
            _restore_random_state(saved[1].pop("random"))
        return saved

    @leader_only
    def finish(self, artefact: Path) -> None:
        """Leaves a record of the run beside its artefact, which is in place, and ends the state."""
        self._lease.check()
        write_json(
            artefact / RESUMES,
            self._history.summary(self._lease.owner.token, self._identity.digest),
        )
        for path in self.path.iterdir():
            if path.name != LEASE:
                path.unlink()

    def _read(self) -> tuple[int, dict[str, Any]] | None:
        saved = saved_slots(self.path)
        whole = [path for path in saved if _is_whole(path)]
        for path in saved:
            if path not in whole:
                logger.warning("training state %s is damaged; using the other slot", path)
        if saved and not whole:
            raise UserError(
                f"the training state in {self.path} is damaged in every slot. Delete the folder to "
                "train from the start"
            )
        if not whole:
            return None
        newest = max(whole, key=saved_step)
        self._slot = 1 - _SLOTS.index(newest.name)
        with newest.open("rb") as file:
            file.seek(_HEADER.size)
            content = io.BytesIO(file.read())
        state = torch.load(content, map_location="cpu", weights_only=True)
        self._check_identity(state)
        return saved_step(newest), state

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Starts work beside the training, in a thread that ends with it.

        One that stayed would keep the threads that torch started for it. OpenMP counts them, and
        lets threads sleep at every barrier once there are more than cores: steps took half as long
        again.
        """
        executor = futures.ThreadPoolExecutor(1, "save")
        self._pending = executor.submit(work, *arguments)
        executor.shutdown(wait=False)

    def _copy_and_write(self, slot: int, step: int, content: dict[str, Any]) -> None:
        try:
            copied = self._copy.of(content)
        finally:
            self._copied.set()
        self._write(slot, step, copied)

    def _write(self, slot: int, step: int, content: dict[str, Any]) -> None:
        with whole_file(self.path / _SLOTS[slot]) as temporary:
            with temporary.open("wb") as file:
                _write_slot(file, step, content)
            self._lease.check()

    def _check_identity(self, state: dict[str, Any]) -> None:
        science = differences(state.pop("science"), self._science)
        if science:
            raise UserError(
                f"the training state in {self.path} belongs to another run; these differ:\n"
                f"{_lines(science)}\n"
                "Restore the settings to go on, or delete the folder to train from the start"
            )
        code = differences({"code": state.pop("code")}, {"code": self._identity.code})
        if code and not self._identity.resume_across_code:
            raise UserError(
                f"the training state in {self.path} was saved by other code; these differ:\n"
                f"{_lines(code)}\n"
                "Restore the code to go on, delete the folder to train from the start, or set "
                "training.resume_across_code: true where the change does not matter; it is recorded"
            )
        machine = differences(state.pop("machine"), self._machine)
        self._changed = code | machine
        if self._changed:
            logger.warning(
                "going on with a training state saved elsewhere; bits may differ:\n%s",
                _lines(self._changed),
            )


def saved_slots(directory: Path) -> list[Path]:
    """The slots in a run's folder that hold a state, whole or not."""
    return [path for path in (directory / name for name in _SLOTS) if path.exists()]


def saved_step(path: Path) -> int:
    """The number of steps that a slot was saved after; it can be believed if the slot is whole."""
    with path.open("rb") as file:
        _, step = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
    return step


def differences(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Values that differ between two nested dictionaries, by dotted key: that saved, that now."""
    differing: dict[str, list[Any]] = {}
    for key in sorted(saved.keys() | now.keys()):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            nested = differences(old, new)
            differing |= {f"{key}.{inner}": values for inner, values in nested.items()}
        elif old != new:
            differing[key] = [old, new]
    return differing


def _lines(differing: dict[str, list[Any]]) -> str:
    return "\n".join(
        f"  {key}: saved {old!r}, now {new!r}" for key, (old, new) in differing.items()
    )


def _write_slot(file: BinaryIO, step: int, content: dict[str, Any]) -> None:
    hashing = _Hashing(file)
    file.seek(_DIGEST_BYTES)
    hashing.write(step.to_bytes(_HEADER.size - _DIGEST_BYTES))
    try:
        torch.save(content, cast(BinaryIO, hashing))
    except RuntimeError as error:
        # torch tells of a full disk in words of its own.
        raise hashing.error or error from error
    file.seek(0)
    file.write(hashing.digest.digest())


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        digest = file.read(_DIGEST_BYTES)
        return hashlib.file_digest(file, "sha256").digest() == digest


class _Hashing:
    """Hashes what is written to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        try:
            return self._file.write(block)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
