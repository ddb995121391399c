"""What each method puts in the place of the source."""

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.config import Method
from latentwire.receivers.receiver import Receiver, Source
from latentwire.wire.payload import Latents
from latentwire.wire.wire import Wire


@dataclass(frozen=True)
class Sent:
    """What a receiver gets for a batch of sources.

    Attributes:
        source: embeddings in the source's place.
        positions: how many of them each source has.
        payload_bytes: bytes sent for each source.
        is_latent: whether the positions are soft tokens.
    """

    source: Source
    positions: list[int]
    payload_bytes: list[int]
    is_latent: bool


def send_text(
    receiver: Receiver,
    source_ids: Sequence[list[int]],
    texts: Sequence[str],
    indices: Sequence[int],
) -> Sent:
    """Text, whole, cut or empty, for the sources of these indices."""
    ids = [source_ids[index] for index in indices]
    return Sent(
        receiver.text_source(ids),
        [len(own) for own in ids],
        [len(texts[index].encode()) for index in indices],
        is_latent=False,
    )


def send_latents(
    wire: Wire, receiver: str, payloads: Sequence[bytes], indices: Sequence[int]
) -> Sent:
    """Messages, read from their byte form, for the sources of these indices."""
    messages = [Latents.from_bytes(payloads[index]) for index in indices]
    return Sent(
        wire.receive(receiver, messages),
        [len(message.values) for message in messages],
        [len(payloads[index]) for index in indices],
        is_latent=True,
    )


def budgets(source_ids: Sequence[list[int]], ratio: float) -> list[int]:
    """Tokens that a text method may send of each source: at least one, and so many that all of them
    together reach the ratio without falling short of it, as messages do.
    """
    totals = [int(total / ratio) for total in itertools.accumulate(map(len, source_ids))]
    return [max(1, total - before) for before, total in itertools.pairwise([0, *totals])]


def head_ids(source_ids: Sequence[list[int]], ratio: float) -> list[list[int]]:
    """The first tokens of each source, as many as the ratio allows."""
    return [ids[:most] for ids, most in zip(source_ids, budgets(source_ids, ratio), strict=True)]


def random_span_ids(source_ids: Sequence[list[int]], ratio: float, seed: int) -> list[list[int]]:
    """As many tokens of each source as the ratio allows, in a row, from a random place on."""
    draw = random.Random(seed)
    spans = []
    for ids, most in zip(source_ids, budgets(source_ids, ratio), strict=True):
        start = draw.randint(0, max(0, len(ids) - most))
        spans.append(ids[start : start + most])
    return spans


def encode_payloads(
    wire: Wire,
    sources: Sequence[str],
    forms: Sequence[tuple[float, str]],
    batch_size: int,
    sender: str | None,
) -> tuple[dict[tuple[float, str], list[bytes]], dict[tuple[float, str], list[float]]]:
    """Byte forms of all sources at every ratio and dtype, and the seconds of each.

    A source is read once for all forms; every form is charged the whole reading, that of a sender
    included. Sources of a batch take its mean. A first reading, not counted, warms up.
    """
    payloads: dict[tuple[float, str], list[bytes]] = {form: [] for form in forms}
    seconds: dict[tuple[float, str], list[float]] = {form: [] for form in forms}
    source_ids = wire.source_ids(sources, sender)
    wire.messages(wire.read(source_ids[:batch_size], sender), forms[0][0])
    for start in range(0, len(sources), batch_size):
        batch = source_ids[start : start + batch_size]
        started = time.perf_counter()
        read = wire.read(batch, sender)
        # A GPU returns before its work is done.
        if read.hidden.is_cuda:
            torch.cuda.synchronize()
        reading = time.perf_counter() - started
        for ratio, dtype in forms:
            started = time.perf_counter()
            messages = wire.messages(read, ratio)
            payloads[ratio, dtype] += [message.to_bytes(dtype) for message in messages]
            writing = time.perf_counter() - started
            seconds[ratio, dtype] += [(reading + writing) / len(batch)] * len(batch)
    return payloads, seconds


def control_payloads(
    method: Method, payloads: Sequence[bytes], strangers: Sequence[int], seed: int
) -> list[bytes]:
    """Messages that a control puts in the place of the real ones; those of other methods stay.

    Args:
        method: `control_shuffled` sends each receiver a stranger's message; `control_zero` zeros;
            `control_mean` the mean of all latents in the place of each; `control_noise` Gaussian
            noise, every latent of its own norm.
        payloads: the real messages.
        strangers: for each message the index of another passage's.
        seed: seed of the noise.
    """
    if method == Method.control_shuffled:
        return [payloads[index] for index in strangers]
    if method not in (Method.control_zero, Method.control_mean, Method.control_noise):
        return list(payloads)
    messages = [Latents.from_bytes(payload) for payload in payloads]
    mean = torch.cat([message.values for message in messages]).mean(0)
    generator = torch.Generator().manual_seed(seed)

    def replaced(values: Tensor) -> Tensor:
        if method == Method.control_noise:
            noise = F.normalize(torch.randn(values.shape, generator=generator), dim=-1)
            return noise * values.norm(dim=-1, keepdim=True)
        return torch.zeros_like(values) if method == Method.control_zero else mean.expand_as(values)

    return [
        Latents(replaced(message.values), message.ratio, message.wire_id).to_bytes("fp16")
        for message in messages
    ]


def derangement(owners: Sequence[str], seed: int) -> list[int]:
    """For each item the index of another's, never one of the same owner.

    Items of one owner are laid side by side in a shuffled order of owners, and the order is turned
    by the size of the largest owner; every item is used once.

    Raises:
        ValueError: if one owner has more than half of the items.
    """
    groups: dict[str, list[int]] = {}
    for index, owner in enumerate(owners):
        groups.setdefault(owner, []).append(index)
    shift = max(len(group) for group in groups.values())
    if 2 * shift > len(owners):
        raise ValueError(
            f"no derangement: one of {len(groups)} passages has {shift} of {len(owners)}"
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    order = [index for name in names for index in groups[name]]
    result = [0] * len(owners)
    for place, index in enumerate(order):
        result[index] = order[(place + shift) % len(order)]
    return result
