"""What each method puts in the place of the source."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

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


def head_ids(source_ids: Sequence[list[int]], ratio: float) -> list[list[int]]:
    """The first tokens of each source, as many as the ratio allows and at least one."""
    return [ids[: max(1, int(len(ids) / ratio))] for ids in source_ids]


def encode_payloads(
    wire: Wire,
    sources: Sequence[str],
    forms: Sequence[tuple[float, str]],
    batch_size: int,
) -> tuple[dict[tuple[float, str], list[bytes]], dict[tuple[float, str], float]]:
    """Byte forms of all sources at every ratio and dtype, and the seconds per source of each.

    A source is read once for all forms; every form is charged the whole reading.
    """
    payloads: dict[tuple[float, str], list[bytes]] = {form: [] for form in forms}
    seconds = dict.fromkeys(forms, 0.0)
    source_ids = wire.source_ids(sources)
    for start in range(0, len(sources), batch_size):
        started = time.perf_counter()
        read = wire.read(source_ids[start : start + batch_size])
        reading = time.perf_counter() - started
        for ratio, dtype in forms:
            started = time.perf_counter()
            messages = wire.messages(read, ratio)
            payloads[ratio, dtype] += [message.to_bytes(dtype) for message in messages]
            seconds[ratio, dtype] += reading + time.perf_counter() - started
    return payloads, {form: total / len(sources) for form, total in seconds.items()}


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
