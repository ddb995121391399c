"""The byte form of a message: what it keeps, what it costs, and what it refuses."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.errors import UserError
from latentwire.wire.payload import Latents

HEADER_BYTES = 41
DTYPES = ("fp16", "int8", "int4")


def message(num_latents=7, latent_dim=48, scale=1.0):
    values = scale * torch.randn(num_latents, latent_dim, generator=torch.manual_seed(1))
    return Latents.quantise(values, 4.0, b"w" * 16)


def sign(payload):
    """Gives an altered payload a checksum that holds."""
    header = payload[: HEADER_BYTES - 4]
    checksum = zlib.crc32(header + bytes(4) + payload[HEADER_BYTES:])
    return header + struct.pack("<I", checksum) + payload[HEADER_BYTES:]


def test_any_ratio_is_read_as_it_was_written():
    latents = Latents(message().values, 3.3, b"w" * 16)
    assert Latents.from_bytes(latents.to_bytes()).ratio == 3.3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("latent_dim", [1, 31, 32, 48, 65])
def test_what_was_read_is_written_the_same(dtype, latent_dim):
    latents = message(latent_dim=latent_dim)
    payload = latents.to_bytes(dtype)
    again = Latents.from_bytes(payload)
    assert again.to_bytes(dtype) == payload
    assert (again.ratio, again.wire_id) == (4.0, b"w" * 16)
    if dtype == "fp16":
        assert torch.equal(again.values, latents.values)


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 1e4])
def test_integers_are_off_by_half_a_step_at_most(dtype, largest, scale):
    latents = message(latent_dim=64, scale=scale)
    values = Latents.from_bytes(latents.to_bytes(dtype)).values
    step = latents.values.view(7, 2, 32).abs().amax(-1, keepdim=True) / largest
    # The scale itself is rounded to fp16, which has no number between 0 and 6e-8.
    allowed = 0.5 * step + latents.values.view(7, 2, 32).abs() * 2**-10 + largest * 2**-25
    error = (values - latents.values).view(7, 2, 32).abs()
    assert (error <= allowed).all()


@pytest.mark.parametrize(
    ("dtype", "row_bytes"), [("fp16", 2 * 48), ("int8", 48 + 2 * 2), ("int4", 24 + 2 * 2)]
)
def test_sizes(dtype, row_bytes):
    assert len(message().to_bytes(dtype)) == HEADER_BYTES + 7 * row_bytes


def test_zeros_stay_zeros():
    latents = Latents.quantise(torch.zeros(2, 33), 4.0, b"w" * 16)
    for dtype in DTYPES:
        assert torch.equal(Latents.from_bytes(latents.to_bytes(dtype)).values, latents.values)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda p: b"", "header"),
        (lambda p: b"{}" + p, "header"),
        (lambda p: p[:5] + b"\x09" + p[6:], "version 9"),
        (lambda p: p[:6] + b"\x09" + p[7:], "dtype 9 .*fp16, int8, int4"),
        (lambda p: p[:7] + b"\x09\x00" + p[9:], "groups of 9"),
        (lambda p: p[:25] + struct.pack("<f", 0.5) + p[29:], "ratio of 0.5"),
        (lambda p: p[:29] + bytes(4) + p[33:HEADER_BYTES], "0 latents"),
        (lambda p: p[:29] + b"\xff" * 8 + p[37:], "cut or altered"),
        (lambda p: p[:-1], "cut or altered"),
        (lambda p: p + b"0", "cut or altered"),
        (lambda p: p[:-1] + bytes([p[-1] ^ 1]), "checksum"),
        (lambda p: p[:10] + bytes([p[10] ^ 1]) + p[11:], "checksum"),
        (lambda p: sign(p[:-2] + np.float16(np.inf).tobytes()), "not finite"),
    ],
)
def test_damaged_payloads_are_refused(damage, error):
    with pytest.raises(UserError, match=error):
        Latents.from_bytes(damage(message().to_bytes()))


PAYLOADS = [message(num, dim).to_bytes(dtype) for dtype in DTYPES for num, dim in [(1, 1), (3, 33)]]


@settings(max_examples=10_000, deadline=None)
@given(
    payload=st.sampled_from(PAYLOADS),
    edits=st.lists(
        st.tuples(
            st.integers(0, 300), st.integers(0, 255), st.sampled_from("replace insert cut".split())
        ),
        min_size=1,
        max_size=6,
    ),
    is_signed=st.booleans(),
)
def test_altered_payloads_are_refused_or_read_but_never_crash(payload, edits, is_signed):
    altered = bytearray(payload)
    for place, value, kind in edits:
        place = min(place, len(altered))
        if kind == "insert":
            altered.insert(place, value)
        elif kind == "replace":
            altered[place : place + 1] = [value]
        else:
            del altered[place:]
    altered = bytes(altered)
    if is_signed and len(altered) >= HEADER_BYTES:
        altered = sign(altered)
    try:
        latents = Latents.from_bytes(altered)
    except UserError:
        return
    # Only a checksum that holds lets a message through.
    assert is_signed or altered == payload
    assert torch.isfinite(latents.values).all()


def test_values_that_fp16_cannot_carry_are_refused():
    with pytest.raises(UserError, match="diverged"):
        Latents.quantise(torch.full((1, 1), 1e6), 4.0, b"w" * 16).to_bytes()


def test_unknown_dtype_is_refused():
    with pytest.raises(UserError, match=r"'int2' .*fp16, int8, int4"):
        message().to_bytes("int2")
