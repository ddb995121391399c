"""Several questions about one source in one sequence.

Shapes: B sources, P prefix positions (prompt head and source), Q packed positions, T targets.

All questions of a source are laid out behind its prefix. A position sees the prefix and the
earlier positions of its own question, never another question, and positions are counted as if each
question stood alone. The outcome is therefore the same as for one question per sequence, at the
cost of reading the source once.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

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
    ids: list[list[int]] = [[] for _ in rows]
    segments: list[list[int]] = [[] for _ in rows]
    offsets: list[list[int]] = [[] for _ in rows]
    targets: list[tuple[int, int, int, int]] = []
    num_answers = 0
    for row_index, row in enumerate(rows):
        for segment, (question, answer) in enumerate(row):
            tokens = [*question, *answer[:-1]]
            first = len(ids[row_index]) + len(question) - 1
            targets += [
                (row_index, first + i, token, num_answers) for i, token in enumerate(answer)
            ]
            num_answers += 1
            ids[row_index] += tokens
            segments[row_index] += [segment] * len(tokens)
            offsets[row_index] += range(len(tokens))
    columns = torch.tensor(targets, dtype=torch.long).view(-1, 4).T.contiguous()
    padded = (pad_rows(own, pad)[0] for own, pad in ((ids, pad_id), (segments, -1), (offsets, 0)))
    return PackedQuestions(*padded, *columns)


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
