"""The wire: padding, ratios, bytes, and what a saved wire gives back."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import CONTEXTS
from transformers import AutoModel, Phi3Config, Phi3ForCausalLM

from latentwire.config import Adapter, Encoder, Pooling
from latentwire.config import Wire as WireConfig
from latentwire.errors import UserError
from latentwire.receivers.receiver import key_value_dim
from latentwire.wire.description import ReceiverFacts
from latentwire.wire.payload import Latents
from latentwire.wire.pooling import PooledAttention, group_weights, num_groups
from latentwire.wire.reading import make_adapter, receiver_facts
from latentwire.wire.sentences import Sentences, divide_sentences, find_sentences
from latentwire.wire.wire import Wire


def make_wire(receiver, positions="spread", **encoder):
    torch.manual_seed(1)
    config = receiver.model.config
    backbone = AutoModel.from_config(config, attn_implementation="sdpa")
    backbone.load_state_dict(receiver.model.model.state_dict())
    settings = WireConfig(
        latent_dim=24,
        target_ratios=[2, 4],
        encoder=Encoder(**encoder),
        adapter=Adapter(gain=3, positions=positions),
    )
    facts = receiver_facts(receiver.model, receiver.embedding_rms, [1, 2])
    wire = Wire(settings, backbone, receiver.tokenizer, {2.0: 2.1, 4.0: 4.2}, {"a.b": facts})
    wire.count_tokens(wire.source_ids(CONTEXTS), None)
    for weight in wire.parameters():
        # Some layers start as the identity, which nothing could be seen through.
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    return wire.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"pooling": "last"},
        {"pooling": "attention"},
        {"layers": "last"},
        {"bidirectional": False},
        {"pooling": "queries", "num_latents": 5},
        {"pooling": "memory", "num_latents": 5},
        {"pooling": "memory", "num_latents": 90, "bidirectional": False},
    ],
)
def test_latents_do_not_depend_on_batch_mates(receiver, encoder):
    wire = make_wire(receiver, **encoder)
    together = wire.encode(CONTEXTS, ratio=4)
    for context, latents in zip(CONTEXTS, together, strict=True):
        alone = wire.encode([context], ratio=4)[0]
        assert alone.values.shape == latents.values.shape
        torch.testing.assert_close(alone.values, latents.values, atol=2e-3, rtol=1e-3)
        read_alone = wire.latents(wire.read(wire.source_ids([context])), [4]).values[0]
        row = CONTEXTS.index(context)
        read_together = wire.latents(wire.read(wire.source_ids(CONTEXTS)), [4] * 3).values[row]
        torch.testing.assert_close(
            read_alone, read_together[: len(read_alone)], atol=1e-5, rtol=1e-5
        )


def test_causal_encoder_does_not_look_ahead(receiver):
    wire = make_wire(receiver, bidirectional=False)
    ids = wire.source_ids(CONTEXTS[:1])[0]
    changed = [*ids[:-1], ids[0]]
    before, after = (wire.read([row]).hidden[0] for row in (ids, changed))
    torch.testing.assert_close(before[:-1], after[:-1])
    both_ways = make_wire(receiver)
    before, after = (both_ways.read([row]).hidden[0] for row in (ids, changed))
    assert not torch.allclose(before[:-1], after[:-1], atol=1e-3)


def test_a_message_of_memory_tokens_begins_as_shorter_ones_do(receiver):
    wire = make_wire(receiver, pooling="memory", num_latents=12, bidirectional=False)
    longer, shorter = (wire.encode(CONTEXTS, ratio=ratio) for ratio in (2, 4))
    lengths = [len(ids) for ids in wire.source_ids(CONTEXTS)]
    for ratio, messages in ((2, longer), (4, shorter)):
        widths = torch.tensor([wire.widths[ratio]] * len(lengths))
        expected = num_groups(torch.tensor(lengths), widths).clamp(max=12)
        assert [len(message.values) for message in messages] == expected.tolist()
    for before, after in zip(shorter, longer, strict=True):
        torch.testing.assert_close(before.values, after.values[: len(before.values)])
    assert not torch.equal(longer[0].values, longer[1].values)


def test_a_soft_prompt_sees_no_source(receiver):
    wire = make_wire(receiver, pooling="memory", num_latents=12, reads_source=False)
    first, second, third = wire.encode(CONTEXTS, ratio=2)
    longest = max((first, second, third), key=lambda message: len(message.values))
    for message in (first, second, third):
        torch.testing.assert_close(message.values, longest.values[: len(message.values)])
    # Its length still follows the source: it has the budget that others have.
    assert len({len(message.values) for message in wire.encode(["a", CONTEXTS[0]], ratio=4)}) == 2


def sentences_of(mask, ends):
    return find_sentences(torch.zeros(mask.shape, dtype=torch.long), mask, ends)


def sentences_of_lengths(*lengths):
    lengths = torch.tensor(lengths)
    return Sentences(lengths, lengths, torch.ones(*lengths.shape, lengths.shape[1]).double())


def test_pooling_against_slices():
    tokens = torch.arange(10.0)
    mask = torch.tensor([[True] * 10, [True] * 7 + [False] * 3])
    whole = sentences_of(mask, torch.zeros_like(mask))
    mean, mean_mask = group_weights(mask, whole, torch.tensor([3, 2]), Pooling.mean)
    # Groups of token i: i * 3 // 10 and i * 2 // 7.
    assert (mean[0] @ tokens).tolist() == pytest.approx([1.5, 5.0, 8.0])
    assert (mean[1, :2] @ tokens).tolist() == pytest.approx([1.5, 5.0])
    assert mean_mask.tolist() == [[True, True, True], [True, True, False]]
    last, _ = group_weights(mask, whole, torch.tensor([3, 2]), Pooling.last)
    assert (last[0] @ tokens).tolist() == [3, 6, 9]
    assert (last[1, :2] @ tokens).tolist() == [3, 6]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, "aaaaaaaaaaa"),
        (2, "aaaaabbbbbb"),
        (3, "aaaaabbbccc"),
        (4, "aaabbcccddd"),
        (11, "abcdefghijk"),
    ],
)
def test_groups_keep_to_sentences(groups, expected):
    ends = torch.tensor([[index in (4, 7, 10) for index in range(11)]])
    mask = torch.ones_like(ends)
    sentences = sentences_of(mask, ends)
    weights, _ = group_weights(mask, sentences, torch.tensor([groups]), Pooling.mean)
    assert "".join("abcdefghijk"[index] for index in weights[0].argmax(0)) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_groups_are_contiguous_and_none_is_empty(ends, data):
    count = data.draw(st.integers(1, len(ends)))
    padded = torch.tensor([[*ends, False, False]])
    mask = torch.arange(padded.shape[1])[None] < len(ends)
    sentences = sentences_of(mask, padded)
    weights, _ = group_weights(mask, sentences, torch.tensor([count]), Pooling.mean)
    assert weights.sum(2).allclose(torch.ones(1, count))
    assert not weights[:, :, len(ends) :].any()
    group = weights[0, :, : len(ends)].argmax(0)
    assert ((weights > 0).sum(1)[mask] == 1).all()
    assert group.diff().ge(0).all()


def test_short_sentences_take_groups_of_a_long_one():
    first, parts = divide_sentences(sentences_of_lengths([1, 52, 1]), torch.tensor([13]))
    assert first.tolist() == [[0, 1, 12]]
    assert parts.tolist() == [[1, 11, 1]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.data())
def test_no_other_groups_have_a_smaller_sum_of_squares(lengths, data):
    count = data.draw(st.integers(1, sum(lengths)))
    sentences = sentences_of_lengths([*lengths, 0], [1] * (len(lengths) + 1))
    first, parts = (of[0].tolist() for of in divide_sentences(sentences, torch.tensor([count, 1])))
    sizes = [0.0] * count
    for begin, number, length in zip(first, parts, lengths, strict=False):
        for group in range(begin, begin + number):
            sizes[group] += length / number
    assert all(sizes)
    found = sum(size**2 for size in sizes)
    # How far a sentence is divided is not tried exhaustively.
    assert found <= 1.02 * least_sum_of_squares(tuple(lengths), count)


@cache
def least_sum_of_squares(lengths, count):
    """By trying everything: whole sentences, or one in two parts or more, as the last groups."""
    if not lengths or not count:
        return 0 if not lengths and not count else math.inf
    joined = (
        least_sum_of_squares(lengths[:begin], count - 1) + sum(lengths[begin:]) ** 2
        for begin in range(len(lengths))
    )
    divided = (
        least_sum_of_squares(lengths[:-1], count - parts) + lengths[-1] ** 2 / parts
        for parts in range(2, min(count, lengths[-1]) + 1)
    )
    return min(itertools.chain(joined, divided))


def test_sentences_end_at_their_marks(receiver):
    wire = make_wire(receiver)
    (ids,) = wire.source_ids(["Ada keeps a dog. Bo does not!"])
    begins = wire.read([ids]).sentences.index[0].diff().nonzero()[:, 0]
    assert wire.tokenizer.batch_decode([[ids[i]] for i in (*begins, -1)]) == [".", "!"]
    assert not make_wire(receiver, grouping="even").read([ids]).sentences.index.any()


def test_rarity_is_inverse_document_frequency(receiver):
    wire = make_wire(receiver)
    wire.count_tokens([[5, 5, 6], [5, 7], [5]], None)
    assert wire.encoder.rarity[[5, 6, 8]].tolist() == pytest.approx(
        [math.log(4 / 4), math.log(4 / 2), math.log(4 / 1)]
    )


def test_sentences_that_share_rare_words_share_a_latent(receiver):
    wire = make_wire(receiver)
    facts = ["keeps a dog", "plays the flute", "likes to wear red"] * 2
    others = [f"{name} {fact}." for name in ("Eve", "Dora", "Fay", "Gil") for fact in facts[:3]]
    wire.count_tokens(wire.source_ids(others), None)
    names = ["Ada", "Bo", "Cy", "Bo", "Cy", "Ada"]
    text = " ".join(f"{name} {fact}." for name, fact in zip(names, facts, strict=True))
    sources = wire.read(wire.source_ids([text]))

    def groups_of(sentences):
        """The latent that each sentence is in."""
        weights, _ = group_weights(sources.mask, sentences, torch.tensor([3]), Pooling.mean)
        begins = sentences.index[0].diff(prepend=torch.tensor([-1])) > 0
        return weights[0].argmax(0)[begins].tolist()

    assert groups_of(sources.sentences) == [0, 1, 2, 1, 2, 0]
    alike = replace(sources.sentences, likeness=torch.ones_like(sources.sentences.likeness))
    assert groups_of(alike) == [0, 0, 1, 1, 2, 2]


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=8), st.data()
)
def test_however_alike_sentences_are_each_token_is_in_one_group(sentences, data):
    ids = torch.tensor([[token for sentence in sentences for token in sentence] + [0]])
    ends = torch.tensor(
        [[i + 1 == len(own) for own in sentences for i in range(len(own))] + [False]]
    )
    mask = torch.arange(ids.shape[1])[None] < ids.shape[1] - 1
    count = data.draw(st.integers(1, ids.shape[1] - 1))
    rarity = torch.arange(6) / 5
    found = find_sentences(ids, mask, ends, rarity)
    weights, _ = group_weights(mask, found, torch.tensor([count]), Pooling.mean)
    assert weights.sum(2).allclose(torch.ones(1, count))
    assert ((weights > 0).sum(1) == mask).all()
    # Groups come in the order of their first tokens.
    assert (weights[0] > 0).long().argmax(1).diff().gt(0).all()


def test_pooled_attention_against_a_loop():
    layer, (hidden, pooled) = PooledAttention(8, 8, 2), torch.randn(2, 1, 6, 8)
    pooled, mask = pooled[:, :2], torch.arange(6)[None] < 5
    centres = torch.tensor([[0.75, 3.25]])
    assert torch.equal(layer(pooled, hidden, mask, centres), pooled)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    updated = layer(pooled, hidden, mask, centres)[0]
    for group in range(2):
        state, heads = pooled[0, group], []
        query = layer.query(state / state.square().mean().sqrt()).view(2, 4)
        for head in range(2):
            keys, values = (
                part(hidden[0, :5]).view(5, 2, 4)[:, head] for part in (layer.key, layer.value)
            )
            logits = [
                turned(query[head], centres[0, group] - place) @ key / 4**0.5
                for place, key in enumerate(keys)
            ]
            heads.append(torch.stack(logits).softmax(0) @ values)
        state = state + layer.out(torch.cat(heads))
        inner = layer.up(state / state.square().mean().sqrt())
        expected = state + layer.down(torch.nn.functional.gelu(inner))
        torch.testing.assert_close(updated[group], expected, atol=1e-4, rtol=1e-4)


def turned(vector, offset):
    """Rotates the pairs (0, 2) and (1, 3) of a vector, at rates 1 and 1/100."""
    pairs = torch.complex(vector[:2], vector[2:])
    pairs = pairs * torch.polar(torch.ones(2), offset * torch.tensor([1.0, 0.01]))
    return torch.cat([pairs.real, pairs.imag])


def test_number_of_latents_reaches_the_ratio_on_average():
    tokens = torch.arange(2, 400)
    groups = num_groups(tokens, torch.full((len(tokens),), 4.02))
    assert tokens.sum() / groups.sum() >= 4
    assert num_groups(torch.tensor([1]), torch.tensor([16.0])).tolist() == [1]


def test_soft_tokens_start_at_the_gain(receiver):
    wire = make_wire(receiver)
    source = wire.receive("a.b", wire.encode(CONTEXTS, ratio=2))
    rms = source.embeddings[source.mask].square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 3 * receiver.embedding_rms))


def test_soft_tokens_stand_where_the_text_stood(receiver):
    wire = make_wire(receiver)
    messages = wire.encode(CONTEXTS, ratio=2) + wire.encode(CONTEXTS, ratio=4)
    through_bytes = [Latents.from_bytes(message.to_bytes()) for message in messages]
    expected = [wire.widths[2.0]] * len(CONTEXTS) + [wire.widths[4.0]] * len(CONTEXTS)
    assert wire.receive("a.b", through_bytes).spacing.tolist() == pytest.approx(expected)
    consecutive = make_wire(receiver, positions="consecutive")
    assert consecutive.receive("a.b", consecutive.encode(CONTEXTS, ratio=4)).spacing is None
    # A learned query stands for no token in particular.
    queries = make_wire(receiver, pooling="queries", num_latents=5)
    assert queries.receive("a.b", queries.encode(CONTEXTS, ratio=4)).spacing is None


def test_saved_wire_gives_the_same_messages(receiver, tmp_path):
    wire = make_wire(receiver)
    wire.save_pretrained(tmp_path / "wire")
    loaded = Wire.from_pretrained(tmp_path / "wire")
    assert loaded.wire_id == wire.wire_id
    assert loaded.receivers == wire.receivers
    for before, after in zip(wire.encode(CONTEXTS, 4), loaded.encode(CONTEXTS, 4), strict=True):
        assert before.to_bytes() == after.to_bytes()


def test_damaged_weights_are_refused(receiver, tmp_path):
    make_wire(receiver).save_pretrained(tmp_path / "wire")
    make_wire(receiver, pooling="queries", num_latents=5).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "wire" / "model.safetensors")
    with pytest.raises(UserError, match="do not load"):
        Wire.from_pretrained(tmp_path / "wire")


def test_unknown_ratio_receiver_and_empty_text(receiver):
    wire = make_wire(receiver)
    with pytest.raises(UserError, match=r"ratio 3 .*\[2\.0, 4\.0\]"):
        wire.encode(CONTEXTS, ratio=3)
    with pytest.raises(UserError, match=r"'c'.*'a\.b'"):
        wire.receive("c", wire.encode(CONTEXTS, ratio=2))
    with pytest.raises(UserError, match="empty"):
        wire.encode([""], ratio=2)


def test_messages_of_another_encoder_are_refused(receiver):
    wire, same, other = (make_wire(receiver) for _ in range(3))
    same.adapters[0].log_gain.add_(1)
    other.encoder.project.weight.add_(1)
    messages = wire.encode(CONTEXTS, ratio=2)
    assert same.receive("a.b", messages).mask.any()
    with pytest.raises(UserError, match=f"wire {wire.wire_id.hex()} .* wire {other.wire_id.hex()}"):
        other.receive("a.b", messages)


def test_a_receiver_without_keys_and_values_apart_gets_no_deep_part():
    config = Phi3Config(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=8,
        pad_token_id=0,
    )
    assert key_value_dim(Phi3ForCausalLM(config).model.layers) == 0
    facts = ReceiverFacts(8, 1.0, 1, 0, 1, [1], location="receivers/phi")
    with pytest.raises(
        UserError, match=r"deep_layers: 4: the receiver receivers/phi .* set it to 0"
    ):
        make_adapter(WireConfig(), facts)
    plain = WireConfig(adapter=Adapter(deep_layers=0))
    assert make_adapter(plain, facts)(torch.zeros(2, plain.latent_dim))[1] == ()
