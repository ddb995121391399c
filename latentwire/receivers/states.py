"""A receiver's own hidden states when it reads text: what it has to tell as a sender.

Shapes: B examples, S tokens of the longest source, T positions of the prompt, K layers, D hidden
width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.data.tables import Example
from latentwire.errors import UserError
from latentwire.receivers.packing import pad_rows
from latentwire.receivers.receiver import Receiver

POOLINGS = ("last", "mean")


def check_layers(key: str, layers: Sequence[int], senders: Sequence[Receiver]) -> None:
    """Refuses layers that a sender does not have, given the key that asks for them.

    Raises:
        UserError: if there is such a layer.
    """
    for sender in senders:
        most = sender.model.config.num_hidden_layers
        if unknown := [layer for layer in layers if not 0 <= layer <= most]:
            raise UserError(
                f"{key}: {unknown[0]} is no layer of {sender.name!r}, which has 0 (embeddings) to "
                f"{most}"
            )


@torch.no_grad()
def token_states(
    sender: Receiver, source_ids: Sequence[Sequence[int]], layers: Sequence[int]
) -> Tensor:
    """States `[B, S, K, D]` of source tokens behind each layer, 0 for embeddings; 0 where padded.

    The sender reads the head of its prompt and the sources, and nothing behind them. Layers above
    the highest one that is asked for are not run; the norm behind the last is no part of it.
    """
    prompt = sender.prompt
    rows = [[*prompt.head_ids, *source] for source in source_ids]
    ids, mask = (part.to(sender.device) for part in pad_rows(rows, sender.pad_id))
    states: dict[int, Tensor] = {0: sender.model.get_input_embeddings()(ids)}
    with _kept(sender, layers, states):
        sender.model.model(inputs_embeds=states[0], attention_mask=mask.long(), use_cache=False)
    head = len(prompt.head_ids)
    chosen = torch.stack([states[layer][:, head:] for layer in layers], dim=2).float()
    return chosen * mask[:, head:, None, None]


@contextmanager
def _kept(sender: Receiver, layers: Sequence[int], states: dict[int, Tensor]) -> Iterator[None]:
    """Notes what these layers give for the length of a block, in which none above them is run."""

    def note(layer: int, _module: nn.Module, _args: object, output: Any) -> None:
        states[layer] = output[0] if isinstance(output, tuple) else output

    stack, config = sender.model.model.layers, sender.model.config
    hooks = [
        stack[layer - 1].register_forward_hook(partial(note, layer)) for layer in layers if layer
    ]
    num_layers = config.num_hidden_layers
    try:
        config.num_hidden_layers = max(layers)
        yield
    finally:
        config.num_hidden_layers = num_layers
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def pooled_states(
    sender: Receiver, examples: Sequence[Example], layers: Sequence[int]
) -> dict[tuple[int, str], Tensor]:
    """States `[B, D]` of each layer, 0 for embeddings: `last` of the token that the answer follows,
    `mean` over the source.
    """
    prompt = sender.prompt
    source_ids = prompt.source_ids([example.context for example in examples])
    question_ids = prompt.question_ids([example.question for example in examples])
    rows = [
        [*prompt.head_ids, *source, *question]
        for source, question in zip(source_ids, question_ids, strict=True)
    ]
    ids, mask = (part.to(sender.device) for part in pad_rows(rows, sender.pad_id))
    output = sender.model.model(
        input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True
    )
    last = mask.sum(1) - 1
    place = torch.arange(ids.shape[1], device=sender.device) - len(prompt.head_ids)
    lengths = torch.tensor([len(own) for own in source_ids], device=sender.device)
    in_source = ((place >= 0) & (place < lengths[:, None])).float()
    weights = in_source / in_source.sum(1, keepdim=True)
    states: dict[tuple[int, str], Tensor] = {}
    for layer in layers:
        hidden = output.hidden_states[layer].float()
        states[layer, "last"] = hidden[torch.arange(len(hidden)), last]
        states[layer, "mean"] = torch.einsum("bt,btd->bd", weights, hidden)
    return states
