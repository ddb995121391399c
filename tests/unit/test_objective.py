"""Losses against formulas written by hand."""

import pytest
import torch

from latentwire.config import Training
from latentwire.receivers.packing import pack_questions
from latentwire.training.objective import (
    Totals,
    alignment_loss,
    alignment_targets,
    answer_loss,
    guard_loss,
    kl_divergence,
    likely_tokens,
)

PACKED = pack_questions([[([1], [2, 3, 4]), ([1, 1], [5])], [([1], [2, 2])]], pad_id=0)
LOGITS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def nll():
    probabilities = LOGITS.double().exp()
    probabilities /= probabilities.sum(1, keepdim=True)
    return [-probabilities[i, token].log().item() for i, token in enumerate([2, 3, 4, 5, 2, 2])]


def test_cross_entropy_and_kl():
    losses = answer_loss(LOGITS, TEACHER, PACKED, Training(steps=1, kl_weight=0.5))
    p = TEACHER.double().softmax(1)
    q = LOGITS.double().softmax(1)
    kl = (p * (p.log() - q.log())).sum(1).mean().item()
    assert losses["cross_entropy"].item() == pytest.approx(sum(nll()) / 6, abs=1e-5)
    assert losses["kl"].item() == pytest.approx(kl, abs=1e-5)
    assert losses["loss"].item() == pytest.approx(sum(nll()) / 6 + 0.5 * kl, abs=1e-5)


def test_first_token_and_k_token_terms():
    settings = Training(steps=1, first_token_weight=0.5, k_token_depth=2, kl_weight=0)
    losses = answer_loss(LOGITS, None, PACKED, settings)
    values = nll()
    first = (values[0] + values[3] + values[4]) / 3
    depth = (values[0] + values[1] + values[3] + values[4] + values[5]) / 5
    assert losses["first_token"].item() == pytest.approx(first, abs=1e-5)
    assert losses["k_token"].item() == pytest.approx(depth, abs=1e-5)
    assert losses["loss"].item() == pytest.approx(sum(values) / 6 + 0.5 * first + depth, abs=1e-5)


def test_kl_of_equal_distributions_is_zero():
    assert kl_divergence(LOGITS, LOGITS + 3.0).item() == pytest.approx(0, abs=1e-6)


def kl_of_likely(count, student=LOGITS):
    return kl_divergence(likely_tokens(TEACHER, count), student)


def test_the_kl_of_likely_tokens_keeps_all_others_as_one():
    p, q = TEACHER.double().softmax(1), LOGITS.double().softmax(1)
    total = 0.0
    for own, student in zip(p, q, strict=True):
        likely = sorted(range(8), key=lambda token: -own[token])[:3]
        rest = 1 - own[likely].sum(), 1 - student[likely].sum()
        pairs = [*zip(own[likely], student[likely], strict=True), rest]
        total += sum(a * (a / b).log() for a, b in pairs).item()
    assert kl_of_likely(3).item() == pytest.approx(total / 6, abs=1e-5)


def test_the_kl_of_likely_tokens_grows_to_that_of_all():
    whole = kl_divergence(TEACHER, LOGITS).item()
    values = [kl_of_likely(count).item() for count in range(1, 10)]
    assert values[:8] == sorted(values[:8])
    assert values[0] < 0.9 * whole
    assert values[7:] == pytest.approx([whole] * 2, abs=1e-5)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_gradient_of_likely_tokens_is_that_of_their_probabilities(count, scale):
    """Also of a student that is all but sure, whose rest is no more than rounding."""
    student = (scale * LOGITS).requires_grad_()
    kl_of_likely(count, student).backward()
    p, q = TEACHER.double().softmax(1), student.detach().double().softmax(1)
    is_likely = torch.zeros(6, 8, dtype=torch.bool)
    is_likely = is_likely.scatter(1, TEACHER.topk(count).indices, True)
    rest = [(own * ~is_likely).sum(1, keepdim=True) for own in (p, q)]
    expected = torch.where(is_likely, q - p, q - q * rest[0] / rest[1].clamp(min=1e-30)) / 6
    assert student.grad.isfinite().all()
    if scale == 1:
        torch.testing.assert_close(student.grad.double(), expected, atol=1e-6, rtol=1e-4)


def test_alignment_is_the_error_to_the_mean_embedding_of_each_token():
    soft_tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    embeddings = torch.tensor([[[1.0, 1.0], [3.0, 1.0], [2.0, 2.0], [7.0, 7.0]]])
    # Two embeddings belong to the first soft token, one to the second, none to the third; the last
    # embedding is padding.
    targets, found = alignment_targets(embeddings, torch.tensor([[0, 0, 1, 3]]), 3)
    loss = alignment_loss(soft_tokens, targets, found, [0])
    targets = [2.0, 1.0, 2.0, 2.0]
    errors = [(a - b) ** 2 for a, b in zip([1.0, 2.0, 3.0, 4.0], targets, strict=True)]
    assert loss.item() == pytest.approx(sum(errors) / sum(t**2 for t in targets))


def test_the_guard_is_what_another_message_costs_an_answer_above_none_and_a_margin():
    other, none = (
        -logits.double().softmax(1)[range(6), PACKED.target_ids].log()
        for logits in (LOGITS, TEACHER)
    )
    extra = [(other - none)[own].mean().item() for own in ([0, 1, 2], [3], [4, 5])]
    margin = sorted(extra)[1] - 0.1
    expected = sum(max(0, own - margin) for own in extra) / 3
    assert sum(own > margin for own in extra) == 2
    guard = guard_loss(LOGITS, TEACHER, PACKED, margin)
    assert guard.item() == pytest.approx(expected, abs=1e-5)
    assert guard_loss(LOGITS, TEACHER, PACKED, max(extra) + 0.1).item() == 0


def test_parts_of_a_step_add_up_to_its_losses():
    questions = [[([1], [2, 3, 4]), ([1, 1], [5])], [([1], [2, 2])]]
    settings = Training(steps=1, first_token_weight=0.5, k_token_depth=2, kl_weight=0.7)
    whole = answer_loss(LOGITS, TEACHER, PACKED, settings)
    whole["guard"] = guard_loss(LOGITS, TEACHER, PACKED, -10.0)
    totals = Totals.of((answer for own in questions for _, answer in own), settings.k_token_depth)
    sums = dict.fromkeys(whole, 0.0)
    for row, rows in zip(questions, (slice(0, 4), slice(4, 6)), strict=True):
        packed = pack_questions([row], pad_id=0)
        part = answer_loss(LOGITS[rows], TEACHER[rows], packed, settings, totals)
        part["guard"] = guard_loss(LOGITS[rows], TEACHER[rows], packed, -10.0, totals)
        sums = {name: sums[name] + part[name] for name in sums}
    for name, value in whole.items():
        torch.testing.assert_close(sums[name], value)


def test_parts_of_an_alignment_add_up_to_it():
    generator = torch.Generator().manual_seed(0)
    soft_tokens, embeddings = (torch.randn(3, 4, 2, generator=generator) for _ in range(2))
    index = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 4], [2, 4, 4, 4]])
    targets, found = alignment_targets(embeddings, index, 4)
    whole = alignment_loss(soft_tokens, targets, found, [0, 1, 2])
    # What is read alone is padded less.
    parts = [
        alignment_loss(soft_tokens[:1], targets, found, [0]),
        alignment_loss(soft_tokens[1:, :3], targets, found, [1, 2]),
    ]
    torch.testing.assert_close(sum(parts), whole)
