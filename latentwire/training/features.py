"""Features of senders, kept on disk: computed once, read by every training that wants the same.

Shapes: S tokens of a source, K layers, H hidden width.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentwire.errors import UserError
from latentwire.files import whole_file

SOURCES_PER_SHARD = 128
# What a file has at most besides its features.
_HEADER_BYTES = 512

logger = logging.getLogger(__name__)


class FeatureCache:
    """The features of a list of sources, in shards that are named by what is in them.

    A shard is computed when one of its sources is first asked for. Several processes may do so at
    once: each writes the same values, whole, under the same name. A shard whose checksum is wrong
    is computed anew. Where a shard finds no room below the bound, those of other lists that were
    opened longest ago make way; if that is not enough, it is not kept. Sources are computed one by
    one, so that what is kept makes no difference to the values.

    Args:
        folder: where shards are, of any list and sender.
        max_bytes: most that all of them take; 0 keeps none.
        sources: token ids of the sources.
        compute: features `[1, S, K, H]` of one source.
        key: what features depend on besides the sources.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        sources: Sequence[Sequence[int]],
        compute: Callable[[Sequence[Sequence[int]]], Tensor],
        key: str,
    ) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._sources, self._compute = sources, compute
        self._paths = [
            folder / f"{_name(sources[start : start + SOURCES_PER_SHARD], key)}.safetensors"
            for start in range(0, len(sources), SOURCES_PER_SHARD)
        ]
        self._shard = cache(self._open)

    def read(self, indices: Sequence[int]) -> list[Tensor]:
        """Features `[S, K, H]` of each of these sources."""
        return [self._one(index) for index in indices]

    def _one(self, index: int) -> Tensor:
        number, place = divmod(index, SOURCES_PER_SHARD)
        shard = self._shard(number)
        if shard is None:
            return self._features(index)
        start, end = self._bounds(number)[place]
        # The file is mapped: only this part of it is read.
        return shard.get_slice("features")[start:end]

    def _features(self, index: int) -> Tensor:
        return self._compute([self._sources[index]])[0].cpu()

    def _open(self, number: int) -> Any:
        """A shard, checked; none if there is no room for it."""
        if not self._max_bytes:
            return None
        path = self._paths[number]
        shard = _open_whole(path)
        if shard is None and self._write(number, path):
            shard = _open_whole(path)
        if shard is not None:
            os.utime(path)
        return shard

    def _write(self, number: int, path: Path) -> bool:
        """Whether a shard could be kept."""
        features = torch.cat([self._features(index) for index in self._members(number)])
        if not self._make_room(features.nbytes + _HEADER_BYTES):
            return False
        try:
            with whole_file(path) as temporary:
                save_file({"features": features}, temporary, {"sha256": _digest(features)})
        except UserError as error:
            logger.warning("features of a sender are not kept: %s", error)
            return False
        # Another process may have filled the room meanwhile.
        if self._used() > self._max_bytes:
            path.unlink(missing_ok=True)
            return False
        return True

    def _make_room(self, num_bytes: int) -> bool:
        """Removes shards of other lists until there is room, or none is left."""
        others = sorted(set(self._shards()) - set(self._paths), key=lambda own: own.stat().st_mtime)
        while (is_full := self._used() + num_bytes > self._max_bytes) and others:
            others.pop(0).unlink(missing_ok=True)
        return not is_full

    def _used(self) -> int:
        return sum(path.stat().st_size for path in self._shards())

    def _shards(self) -> list[Path]:
        return list(self._folder.glob("*.safetensors"))

    def _members(self, number: int) -> range:
        start = number * SOURCES_PER_SHARD
        return range(start, min(start + SOURCES_PER_SHARD, len(self._sources)))

    def _bounds(self, number: int) -> list[tuple[int, int]]:
        """Where the features of each source of a shard begin and end."""
        lengths = (len(self._sources[index]) for index in self._members(number))
        return list(pairwise(accumulate(lengths, initial=0)))


def _name(sources: Sequence[Sequence[int]], key: str) -> str:
    return hashlib.sha256(f"{key} {[list(ids) for ids in sources]}".encode()).hexdigest()[:32]


def _digest(features: Tensor) -> str:
    return hashlib.sha256(features.numpy().tobytes()).hexdigest()


def _open_whole(path: Path) -> Any:
    """A shard's mapped file; none if there is none, or it is not what was written."""
    try:
        shard = safe_open(path, framework="pt")
        if _digest(shard.get_tensor("features")) == (shard.metadata() or {}).get("sha256"):
            return shard
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        pass
    logger.warning("%s is damaged; its features are computed again", path)
    return None
