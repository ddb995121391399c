"""Latents as bytes: what travels from the encoder's side to a receiver's.

Shapes: M latents of width L; a row of integers is cut into G groups of `_GROUP` values, of which
the last may be shorter.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from latentwire.errors import UserError

_MAGIC, _VERSION, _GROUP = b"LWIRE", 1, 32
# magic, version, dtype, values of a group, wire id, ratio, number of latents, latent_dim,
# CRC-32 of header and body
_HEADER = struct.Struct("<5sBBH16sfIII")


class PayloadDtype(IntEnum):
    """How values are written; the numbers stand in the header."""

    fp16 = 1
    int8 = 2
    int4 = 3

    @property
    def largest(self) -> int:
        """The largest integer of a code; codes are symmetric."""
        return {PayloadDtype.int8: 127, PayloadDtype.int4: 7}[self]


@dataclass(frozen=True)
class Header:
    """What a message says of itself.

    Attributes:
        dtype: how its values are written.
        ratio: the target ratio that was asked for.
        wire_id: 16 bytes that name the encoder which wrote it.
        num_latents: M.
        latent_dim: L.
    """

    dtype: PayloadDtype
    ratio: float
    wire_id: bytes
    num_latents: int
    latent_dim: int

    @classmethod
    def read(cls, payload: bytes) -> "Header":
        """Reads the header of a whole message, sizes and checksum checked.

        Raises:
            UserError: if the payload is not a message, is of a newer version, or is damaged.
        """
        if len(payload) < _HEADER.size or not payload.startswith(_MAGIC):
            raise UserError("this is not a LatentWire message: it does not start with its header")
        *fields, checksum = _HEADER.unpack_from(payload)
        _, version, code, group, wire_id, ratio, num_latents, latent_dim = fields
        if version != _VERSION:
            raise UserError(
                f"message version {version} is not known; this program reads {_VERSION}"
            )
        if code not in list(PayloadDtype):
            raise UserError(f"message dtype {code} is not known; known are {_names()}")
        kind = PayloadDtype(code)
        if group != (0 if kind == PayloadDtype.fp16 else _GROUP):
            raise UserError(f"the message has groups of {group} values, not {_GROUP}")
        if not (num_latents and latent_dim and math.isfinite(ratio) and ratio >= 1):
            raise UserError(
                f"the message is malformed: {num_latents} latents of width {latent_dim} at a ratio "
                f"of {ratio:g}; it must hold some, at a ratio of 1 or more"
            )
        body = memoryview(payload)[_HEADER.size :]
        if len(body) != num_latents * _row_bytes(latent_dim, kind):
            raise UserError(
                f"the message says {num_latents} x {latent_dim} {kind.name} values, but "
                f"{len(body)} bytes follow its header: it was cut or altered"
            )
        if zlib.crc32(body, zlib.crc32(_HEADER.pack(*fields, 0))) != checksum:
            raise UserError("the message is damaged: its checksum does not match")
        # Six digits are what single precision holds, so that 3.3 is read as it was written.
        return cls(kind, float(f"{ratio:.6g}"), wire_id, num_latents, latent_dim)


@dataclass(frozen=True)
class Latents:
    """A message.

    Attributes:
        values: `[M, L]`, float32, exactly what the fp16 form carries, or the form that it was read
            from.
        ratio: the target ratio that was asked for.
        wire_id: 16 bytes that name the encoder which wrote it.
        num_chunks: parts that a text longer than the encoder's window was read in; none is not
            known, as of a message that was read from bytes.
    """

    values: Tensor
    ratio: float
    wire_id: bytes
    num_chunks: int | None = None

    @classmethod
    def quantise(cls, values: Tensor, ratio: float, wire_id: bytes) -> "Latents":
        """Makes a message of a wire's output, rounded as fp16 rounds it."""
        return cls(values.detach().cpu().half().float(), ratio, wire_id)

    def to_bytes(self, dtype: str = "fp16") -> bytes:
        """The message as bytes, little-endian, row by row.

        Args:
            dtype: `fp16`; or `int8` or `int4`, integers times a scale for each group of 32 values
                of a row, its largest magnitude over 127 or 7, as fp16. The scales come first.

        Raises:
            UserError: if a value does not fit in fp16, or the dtype is not known.
        """
        if dtype not in PayloadDtype.__members__:
            raise UserError(f"payload dtype {dtype!r} is not known; known are {_names()}")
        if not torch.isfinite(self.values.half()).all():
            raise UserError("latents hold values that fp16 cannot carry; the wire has diverged")
        kind = PayloadDtype[dtype]
        values = self.values.numpy()
        is_integer = kind != PayloadDtype.fp16
        body = _to_integers(values, kind) if is_integer else values.astype("<f2").tobytes()
        fields = [
            _MAGIC,
            _VERSION,
            kind,
            _GROUP if is_integer else 0,
            self.wire_id,
            self.ratio,
            *values.shape,
        ]
        checksum = zlib.crc32(_HEADER.pack(*fields, 0) + body)
        return _HEADER.pack(*fields, checksum) + body

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Latents":
        """Reads a message; sizes are checked before anything is allocated.

        Raises:
            UserError: if the payload is not a message, is of a newer version, or is damaged.
        """
        header = Header.read(payload)
        body = memoryview(payload)[_HEADER.size :]
        shape = (header.num_latents, header.latent_dim)
        if header.dtype == PayloadDtype.fp16:
            values = np.frombuffer(body, "<f2").astype(np.float32).reshape(shape)
        else:
            values = _from_integers(body, shape, header.dtype)
        if not np.isfinite(values).all():
            raise UserError("the message is malformed: it holds values that are not finite")
        return cls(torch.from_numpy(values), header.ratio, header.wire_id)


def _names() -> str:
    return ", ".join(PayloadDtype.__members__)


def _num_groups(latent_dim: int) -> int:
    return -(-latent_dim // _GROUP)


def _row_bytes(latent_dim: int, kind: PayloadDtype) -> int:
    if kind == PayloadDtype.fp16:
        return 2 * latent_dim
    codes = latent_dim if kind == PayloadDtype.int8 else -(-latent_dim // 2)
    return 2 * _num_groups(latent_dim) + codes


def _to_integers(values: np.ndarray, kind: PayloadDtype) -> bytes:
    num_latents, latent_dim = values.shape
    groups = np.zeros((num_latents, _num_groups(latent_dim), _GROUP), np.float32)
    groups.reshape(num_latents, -1)[:, :latent_dim] = values
    scales = (np.abs(groups).max(-1) / kind.largest).astype("<f2")
    divisors = scales.astype(np.float32)[..., None]
    # A group of zeros has a scale of zero and codes of zero.
    codes = np.divide(groups, divisors, out=np.zeros_like(groups), where=divisors > 0)
    codes = codes.round().clip(-kind.largest, kind.largest).astype(np.int8)
    codes = codes.reshape(num_latents, -1)[:, :latent_dim]
    return scales.tobytes() + (
        codes.tobytes() if kind == PayloadDtype.int8 else _pack_nibbles(codes).tobytes()
    )


def _from_integers(body: memoryview, shape: tuple[int, int], kind: PayloadDtype) -> np.ndarray:
    num_latents, latent_dim = shape
    num_groups = _num_groups(latent_dim)
    end = 2 * num_latents * num_groups
    scales = np.frombuffer(body[:end], "<f2").astype(np.float32).reshape(num_latents, num_groups)
    if kind == PayloadDtype.int8:
        codes = np.frombuffer(body[end:], np.int8).reshape(shape)
    else:
        packed = np.frombuffer(body[end:], np.uint8).reshape(num_latents, -1)
        codes = _unpack_nibbles(packed)[:, :latent_dim]
    return codes * scales.repeat(_GROUP, axis=1)[:, :latent_dim]


def _pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes of a row in a byte, the earlier one in its low half."""
    nibbles = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).astype(np.uint8) & 15
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def _unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return ((nibbles ^ 8).astype(np.int8)) - 8
