"""A receiver's own hidden states when it reads text: what it would have to tell as a sender.

Shapes: B examples, T positions of the prompt, D hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.data.tables import Example
from latentwire.receivers.packing import pad_rows
from latentwire.receivers.receiver import Receiver

POOLINGS = ("last", "mean")


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
