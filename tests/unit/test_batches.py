"""The order of passages: pure, complete, and little of it padding."""

import random

from latentwire.training.batches import BatchOrder

LENGTHS = [random.Random(0).choice([20, 50, 110]) + i % 7 for i in range(2000)]


def test_order_is_a_pure_function_of_seed_and_step():
    order = BatchOrder(LENGTHS, 16, seed=3)
    late = order.batch(170)
    fresh = BatchOrder(LENGTHS, 16, seed=3)
    assert fresh.batch(170) == late
    assert BatchOrder(LENGTHS, 16, seed=4).batch(170) != late


def test_every_epoch_sees_each_passage_once():
    order = BatchOrder(LENGTHS, 16, seed=3)
    steps = order.num_steps(1)
    for epoch in range(2):
        batches = [order.batch(epoch * steps_of(order, epoch) + step) for step in range(steps)]
        if epoch == 0:
            seen = sorted(index for _, indices in batches for index in indices)
            assert seen == list(range(len(LENGTHS)))
    assert order.batch(steps)[0] == 1


def steps_of(order, epochs):
    return order.num_steps(epochs) if epochs else 0


def test_batches_hold_about_the_same_tokens_and_little_padding():
    order = BatchOrder(LENGTHS, 16, seed=3)
    batches = [order.batch(step)[1] for step in range(order.num_steps(1))]
    tokens = [sum(LENGTHS[i] for i in batch) for batch in batches]
    padded = [max(LENGTHS[i] for i in batch) * len(batch) for batch in batches]
    assert sum(padded) / sum(tokens) < 1.1
    assert max(tokens) < 2 * sum(tokens) / len(tokens)
