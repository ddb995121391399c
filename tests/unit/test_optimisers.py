"""Optimisers step as those that they are made after."""

import copy

import pytest
import torch
from torch import nn

from latentwire.training import optimisers
from latentwire.training.optimisers import Muon

SHAPES = [(8, 20), (20, 8), (8, 20), (6, 6), (20, 8), (8, 20), (8, 20)]


def _matrices() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def _step(optimiser: torch.optim.Optimizer, matrices: list[nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=draw)
    # As an adapter that was not drawn.
    matrices[seed % len(matrices)].grad = None
    optimiser.step()


# All of a shape at once, and two of those of 160 numbers.
@pytest.mark.parametrize("most_together", [optimisers.MOST_TOGETHER, 320])
def test_matrices_taken_together_step_as_each_by_itself(monkeypatch, most_together) -> None:
    monkeypatch.setattr(optimisers, "MOST_TOGETHER", most_together)
    together, alone = _matrices(), _matrices()
    ours = Muon(together, lr=0.1, weight_decay=0.1)
    theirs = torch.optim.Muon(alone, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(6):
        if seed == 3:
            # What one of them saved, the other goes on from.
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        _step(ours, together, seed)
        _step(theirs, alone, seed)
        for own, other in zip(together, alone, strict=True):
            # Roundings of bfloat16, where a machine adds up in another order.
            torch.testing.assert_close(own, other, rtol=0, atol=2e-3)
