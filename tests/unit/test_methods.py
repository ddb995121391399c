"""What takes the place of the source."""

import pytest
import torch

from latentwire.evaluation.methods import (
    control_payloads,
    derangement,
    head_ids,
    random_span_ids,
)
from latentwire.wire.payload import Latents

WIRE_ID = b"0123456789abcdef"


@pytest.mark.parametrize("seed", range(20))
def test_strangers_come_from_other_passages_and_each_once(seed):
    owners = ["a", "a", "a", "b", "c", "c", "d", "e"]
    strangers = derangement(owners, seed)
    assert sorted(strangers) == list(range(len(owners)))
    assert all(owners[own] != owners[other] for own, other in enumerate(strangers))


def test_no_derangement_where_one_passage_holds_most():
    with pytest.raises(ValueError, match="3 of 5"):
        derangement(["a", "a", "a", "b", "c"], seed=1)


def test_heads_reach_the_ratio_together_and_are_never_empty():
    texts = [[*range(length)] for length in (11, 13, 10, 14, 12) * 20]
    heads = head_ids(texts, 8)
    assert all(head == text[: len(head)] for head, text in zip(heads, texts, strict=True))
    assert {len(head) for head in heads} == {1, 2}
    assert 8 <= sum(map(len, texts)) / sum(map(len, heads)) < 8.1
    assert head_ids([[7]], 16) == [[7]]


def test_a_random_span_is_a_piece_of_the_text_as_long_as_its_head():
    texts = [[*range(40)], [*range(100, 116)], [*range(200, 204)]]
    spans = random_span_ids(texts, 4, seed=1)
    assert spans == random_span_ids(texts, 4, seed=1)
    assert [len(span) for span in spans] == [len(head) for head in head_ids(texts, 4)]
    assert all(
        span == text[text.index(span[0]) :][: len(span)]
        for span, text in zip(spans, texts, strict=True)
    )
    starts = {random_span_ids(texts, 4, seed)[0][0] for seed in range(200)}
    assert starts == set(range(31))


@pytest.fixture
def payloads():
    torch.manual_seed(0)
    return [
        Latents.quantise(torch.randn(length, 8) * length, 4, WIRE_ID).to_bytes("fp16")
        for length in (2, 3, 5)
    ]


def read(payloads):
    return [Latents.from_bytes(payload).values for payload in payloads]


def test_controls_keep_the_length_of_messages_and_replace_what_they_say(payloads):
    real = read(payloads)
    zero, mean, noise = (
        read(control_payloads(f"control_{name}", payloads, [1, 2, 0], seed=1))
        for name in ("zero", "mean", "noise")
    )
    shapes = [values.shape for values in real]
    for control in (zero, mean, noise):
        assert [values.shape for values in control] == shapes
    assert not any(values.any() for values in zero)
    centre = torch.cat(real).mean(0)
    assert all(torch.allclose(row, centre, atol=1e-2) for values in mean for row in values)
    for own, other in zip(real, noise, strict=True):
        assert torch.allclose(own.norm(dim=-1), other.norm(dim=-1), rtol=1e-2)
        cosine = torch.cosine_similarity(own, other, dim=-1)
        assert cosine.abs().max() < 0.95


def test_strangers_take_turns_and_real_messages_stay(payloads):
    assert control_payloads("control_shuffled", payloads, [1, 2, 0], 1) == [
        *payloads[1:],
        payloads[0],
    ]
    assert control_payloads("latent", payloads, [1, 2, 0], 1) == payloads
