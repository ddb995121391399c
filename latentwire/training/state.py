"""The state of a training run on disk: two slots written in turn, each whole and checksummed."""

import hashlib
import io
import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentwire.errors import UserError
from latentwire.files import whole_file

_DIGEST_BYTES = 32

logger = logging.getLogger(__name__)


@dataclass
class StateDirectory:
    """Saves and loads the state of one run.

    Args:
        path: folder of the run; undeclared to the workflow, so that no failed attempt deletes it.
        identity: what must be the same for a run to go on: settings, data and code.
    """

    path: Path
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        # Plain values only: the state must load without running any type of a library's own.
        self.identity = json.loads(json.dumps(self.identity))

    def save(self, state: dict[str, Any]) -> None:
        """Writes the slot that does not hold the newest state.

        Args:
            state: tensors, numbers, strings and containers of them; with a key `step`.
        """
        buffer = io.BytesIO()
        torch.save({**state, "identity": self.identity, "random": _random_state()}, buffer)
        payload = buffer.getbuffer()
        with (
            whole_file(self._slot(state["step"])) as temporary,
            temporary.open("wb") as file,
        ):
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or none if the run has not saved yet; restores random states.

        Raises:
            UserError: if every slot is damaged, or the saved run is another than this one.
        """
        slots = sorted(self.path.glob("slot*.pt")) if self.path.is_dir() else []
        states = [state for state in map(_read_slot, slots) if state is not None]
        if slots and not states:
            raise UserError(
                f"the training state in {self.path} is damaged in every slot. Delete the folder to "
                "train from the start"
            )
        if not states:
            return None
        state = max(states, key=lambda state: state["step"])
        self._check_identity(state.pop("identity"))
        _restore_random_state(state.pop("random"))
        return state

    def remove(self) -> None:
        """Deletes the state, once the artefact is in place."""
        if self.path.is_dir():
            for path in self.path.iterdir():
                path.unlink()
            self.path.rmdir()

    def _slot(self, step: int) -> Path:
        newest = max(
            (path for path in (self.path / "slot0.pt", self.path / "slot1.pt") if path.exists()),
            key=lambda path: path.stat().st_mtime_ns,
            default=self.path / "slot1.pt",
        )
        return self.path / ("slot1.pt" if newest.name == "slot0.pt" else "slot0.pt")

    def _check_identity(self, saved: dict[str, Any]) -> None:
        differing = sorted(
            key
            for key in saved.keys() | self.identity.keys()
            if saved.get(key) != self.identity.get(key)
        )
        if differing:
            lines = "\n".join(
                f"  {key}: saved {saved.get(key)!r}, now {self.identity.get(key)!r}"
                for key in differing
            )
            raise UserError(
                f"the training state in {self.path} belongs to another run; these differ:\n"
                f"{lines}\n"
                "Restore the settings to go on, or delete the folder to train from the start"
            )


def _read_slot(path: Path) -> dict[str, Any] | None:
    content = path.read_bytes()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        logger.warning("training state %s is damaged; using the other slot", path)
        return None
    return torch.load(io.BytesIO(payload), weights_only=True)


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
