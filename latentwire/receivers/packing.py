"""Several questions about one source in one sequence.

Shapes: B sources, P prefix positions (prompt head and source), Q packed positions, T targets.

All questions of a source are laid out behind its prefix. A position sees the prefix and the
earlier positions of its own question, never another question, and positions are counted as if each
question stood alone. The outcome is therefore the same as for one question per sequence, at the
cost of reading the source once.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class PackedQuestions:
    """Questions with their answers, packed row by row.

    Attributes:
        ids: `[B, Q]` token ids.
        segments: `[B, Q]` index of the question within its row, -1 where padded.
        offsets: `[B, Q]` position within the question.
        target_rows, target_columns: `[T]` where each answer token is predicted: the position
            before it.
        target_ids: `[T]` the answer tokens, end-of-sequence included.
        target_answers: `[T]` the number of the answer that each target belongs to, counted over
            the rows in order.
    """

    ids: Tensor
    segments: Tensor
    offsets: Tensor
    target_rows: Tensor
    target_columns: Tensor
    target_ids: Tensor
    target_answers: Tensor

    @property
    def starts_answer(self) -> Tensor:
        """`[T]`, true at the first target of each answer."""
        starts = torch.ones_like(self.target_answers, dtype=torch.bool)
        starts[1:] = self.target_answers[1:] != self.target_answers[:-1]
        return starts

    def to(self, device: torch.device) -> "PackedQuestions":
        return PackedQuestions(
            *(value.to(device, non_blocking=True) for value in vars(self).values())
        )


def pack_questions(
    rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], pad_id: int
) -> PackedQuestions:
    """Packs `(question ids, answer ids)` pairs of each row.

    The last answer token is predicted but never read, so it takes no position.
    """
    pairs = [pair for row in rows for pair in row]
    row = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    asked, answered = (np.array([len(pair[i]) for pair in pairs], np.int64) for i in (0, 1))
    lengths = asked + np.maximum(answered - 1, 0)
    row_lengths = np.bincount(row, lengths, len(rows)).astype(np.int64)
    starts = _starts(lengths) - _starts(row_lengths)[row]
    number = np.arange(len(pairs))
    offsets = _count_up(lengths)
    places = np.repeat(row, lengths), np.repeat(starts, lengths) + offsets

    def padded(values: np.ndarray, padding: int) -> Tensor:
        laid_out = np.full((len(rows), row_lengths.max(initial=0)), padding)
        laid_out[places] = values
        return torch.from_numpy(laid_out)

    tokens = chain.from_iterable(ids for pair in pairs for ids in (pair[0], pair[1][:-1]))
    targets = chain.from_iterable(answer for _, answer in pairs)
    columns = np.repeat(starts + asked - 1, answered) + _count_up(answered)
    return PackedQuestions(
        ids=padded(np.fromiter(tokens, np.int64, len(offsets)), pad_id),
        # A row's questions are counted from its first.
        segments=padded(np.repeat(number - row.searchsorted(row), lengths), -1),
        offsets=padded(offsets, 0),
        target_rows=torch.from_numpy(np.repeat(row, answered)),
        target_columns=torch.from_numpy(columns),
        target_ids=torch.from_numpy(np.fromiter(targets, np.int64, len(columns))),
        target_answers=torch.from_numpy(np.repeat(number, answered)),
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where each of several runs begins that follow one another."""
    return lengths.cumsum() - lengths


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """Counts from 0 within each of several runs that follow one another."""
    return np.arange(lengths.sum()) - np.repeat(_starts(lengths), lengths)


def lay_out(values: Iterable[T], groups: Iterable[Collection[object]]) -> list[list[T]]:
    """Puts flat values, for example questions tokenised in one call, into rows as long as groups.

    Raises:
        ValueError: if the values are more or fewer than the groups hold.
    """
    flat = list(values)
    sizes = [len(group) for group in groups]
    if sum(sizes) != len(flat):
        raise ValueError(f"{len(flat)} values for groups of {sum(sizes)}")
    rest = iter(flat)
    return [list(islice(rest, size)) for size in sizes]


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-pads token ids; returns ids `[B, S]` and the mask of real tokens `[B, S]`."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.view(len(rows), width), torch.arange(width) < lengths[:, None]


def packed_positions(prefix_spacing: Tensor, packed: PackedQuestions) -> Tensor:
    """Position ids `[B, P + Q]`: every question continues its own row's prefix.

    Args:
        prefix_spacing: `[B, P]` positions from each element of the prefix to the next, 0 where
            padded; a mask of text is such.
        packed: the questions.
    """
    starts = F.pad(prefix_spacing.cumsum(1), (1, 0)).long()
    return torch.cat([starts[:, :-1], starts[:, -1:] + packed.offsets], dim=1)


def packed_segments(prefix_mask: Tensor, packed: PackedQuestions) -> Tensor:
    """Segments `[B, P + Q]`: -2 in the prefix, the question's number behind it, -1 where padded."""
    return torch.cat([torch.where(prefix_mask, -2, -1), packed.segments], dim=1)


def packed_attention_mask(prefix_mask: Tensor, packed: PackedQuestions) -> Tensor:
    """Boolean mask `[B, 1, P + Q, P + Q]`, true where a position may look."""
    # Every question may see the prefix, segment -2; padding sees only itself.
    segments = packed_segments(prefix_mask, packed)
    length = segments.shape[1]
    queries, keys = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    visible = (keys == -2) | ((keys == queries) & (keys >= 0))
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    return ((visible & causal) | itself)[:, None]
