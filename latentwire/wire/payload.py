"""Latents as bytes: what travels from the encoder's side to a receiver's."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentwire.errors import UserError

_MAGIC, _VERSION = b"LWIRE", 1
_DTYPES = {"fp16": 1}
# magic, version, dtype, wire id, ratio, number of latents, latent_dim, CRC-32 of header and values
_HEADER = struct.Struct("<5sBB16sfIII")


@dataclass(frozen=True)
class Latents:
    """A message.

    Attributes:
        values: `[M, L]`, float32, exactly what the byte form carries.
        ratio: the target ratio that was asked for.
        wire_id: 16 bytes that name the wire which wrote it.
    """

    values: Tensor
    ratio: float
    wire_id: bytes

    @classmethod
    def quantise(cls, values: Tensor, ratio: float, wire_id: bytes) -> "Latents":
        """Makes a message of a wire's output, rounded as the byte form rounds it."""
        return cls(values.detach().cpu().half().float(), ratio, wire_id)

    def to_bytes(self) -> bytes:
        """Header and little-endian fp16 values, row by row.

        Raises:
            UserError: if a value does not fit in fp16.
        """
        if not torch.isfinite(self.values.half()).all():
            raise UserError("latents hold values that fp16 cannot carry; the wire has diverged")
        body = self.values.numpy().astype("<f2").tobytes()
        num_latents, latent_dim = self.values.shape
        fields = [
            _MAGIC,
            _VERSION,
            _DTYPES["fp16"],
            self.wire_id,
            self.ratio,
            num_latents,
            latent_dim,
        ]
        checksum = zlib.crc32(_HEADER.pack(*fields, 0) + body)
        return _HEADER.pack(*fields, checksum) + body

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Latents":
        """Reads a message; sizes are checked before anything is allocated.

        Raises:
            UserError: if the payload is not a message, is of a newer version, or is damaged.
        """
        if len(payload) < _HEADER.size or not payload.startswith(_MAGIC):
            raise UserError("this is not a LatentWire message: it does not start with its header")
        *fields, checksum = _HEADER.unpack_from(payload)
        _, version, dtype, wire_id, ratio, num_latents, latent_dim = fields
        if version != _VERSION:
            raise UserError(
                f"message version {version} is not known; this program reads {_VERSION}"
            )
        if dtype not in _DTYPES.values():
            raise UserError(f"message dtype {dtype} is not known; known are {_DTYPES}")
        body = payload[_HEADER.size :]
        if len(body) != num_latents * latent_dim * 2:
            raise UserError(
                f"the message says {num_latents} x {latent_dim} fp16 values, but "
                f"{len(body)} bytes follow its header: it was cut or altered"
            )
        if zlib.crc32(_HEADER.pack(*fields, 0) + body) != checksum:
            raise UserError("the message is damaged: its checksum does not match")
        values = np.frombuffer(body, "<f2").astype(np.float32).reshape(num_latents, latent_dim)
        return cls(torch.from_numpy(values), ratio, wire_id)
