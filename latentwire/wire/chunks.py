"""A text that is too long for the encoder, in parts."""

from collections.abc import Sequence


def split_tokens(ids: Sequence[int], ends: Sequence[bool], window: int) -> list[list[int]]:
    """Cuts token ids into parts of at most `window`, at sentence ends where there are any.

    Args:
        ids: token ids of a text.
        ends: whether each of them ends a sentence.
        window: the longest part; one is filled to at least half, so that none is needlessly short.
    """
    parts, start = [], 0
    while len(ids) - start > window:
        latest = next(
            (stop for stop in range(start + window, start + window // 2, -1) if ends[stop - 1]),
            start + window,
        )
        parts.append(list(ids[start:latest]))
        start = latest
    return [*parts, list(ids[start:])]
