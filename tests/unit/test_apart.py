"""Losses whose backward pass is made at once, against one backward pass through all of them."""

import weakref

import torch
from torch import nn

from latentwire.training.apart import losses_apart


def models():
    torch.manual_seed(0)
    encoder, *adapters = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 5)
    adapters[1].bias.requires_grad_(False)
    return encoder, adapters


def gradients(losses, encoder, adapters):
    # As where several parts of a step are averaged.
    (torch.stack([own["loss"] for own in losses]).mean() / 3).backward()
    return [p.grad for module in (encoder, *adapters) for p in module.parameters()]


def test_gradients_are_those_of_one_backward_pass():
    inputs = torch.randn(2, 3)
    encoder, adapters = models()
    latents = encoder(inputs)
    joint = [{"loss": adapter(latents).square().sum()} for adapter in adapters]
    expected = gradients(joint, encoder, adapters)

    encoder, adapters = models()
    latents = encoder(inputs)
    apart = [
        losses_apart(
            lambda given, adapter=adapter: {"loss": adapter(given).square().sum()},
            latents,
            [*adapter.parameters()],
        )
        for adapter in adapters
    ]
    assert [own["loss"].item() for own in apart] == [own["loss"].item() for own in joint]
    found = gradients(apart, encoder, adapters)
    assert (
        [own is None for own in found] == [own is None for own in expected] == [False] * 5 + [True]
    )
    for own, other in zip(found[:5], expected[:5], strict=True):
        torch.testing.assert_close(own, other)


def test_an_encoder_that_is_frozen_gets_no_gradient_and_its_adapter_does():
    encoder, (adapter, _) = models()
    latents = encoder(torch.randn(2, 3)).detach()
    losses = losses_apart(
        lambda given: {"loss": adapter(given).sum()}, latents, [*adapter.parameters()]
    )
    losses["loss"].backward()
    assert adapter.weight.grad is not None


def test_what_losses_were_made_of_is_gone_before_the_next_are_made():
    _, (adapter, _) = models()
    made = []

    def losses_of(given):
        hidden = adapter(given).tanh()
        made.append(weakref.ref(hidden))
        return {"loss": hidden.square().sum(), "other": hidden.sum()}

    latents = torch.randn(2, 4, requires_grad=True)
    losses = losses_apart(losses_of, latents, [*adapter.parameters()])
    assert made[0]() is None
    assert not losses["other"].requires_grad
    assert losses["loss"].requires_grad
