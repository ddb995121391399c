"""The stages `evaluate-text` and `evaluate-wire`: test questions answered by every method.

Beside `latentwire/baselines` this is the only place that reads the test split.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from latentwire.config import PAYLOAD_DTYPES, Experiment, Method
from latentwire.data.tables import Example, group_by_passage, read_examples, source_text
from latentwire.errors import UserError
from latentwire.evaluation.methods import (
    control_payloads,
    derangement,
    encode_payloads,
    head_ids,
    random_span_ids,
    send_latents,
    send_text,
)
from latentwire.evaluation.predict import predict, warm_up
from latentwire.evaluation.predictions import WITHOUT_RATIO
from latentwire.evaluation.shards import open_shards
from latentwire.evaluation.swaps import swap_answers
from latentwire.layout import Layout
from latentwire.receivers.loading import DESCRIPTION, latent_reader, load_receiver
from latentwire.receivers.receiver import Receiver
from latentwire.training.passages import group_sources
from latentwire.wire.description import WEIGHTS
from latentwire.wire.wire import Wire


def evaluate_text(experiment: Experiment, layout: Layout, receiver_name: str) -> None:
    """Evaluates the methods that need a receiver alone.

    Raises:
        UserError: if data or receiver are missing.
    """
    receiver = load_receiver(experiment, layout, receiver_name)
    examples = read_examples(layout.split("test"))
    swaps = swap_answers(examples, experiment.evaluation.seed)
    warm_up(experiment, receiver, examples)
    inputs = [layout.receiver(receiver_name) / DESCRIPTION]
    stage = f"evaluate_text-{receiver_name}"
    methods, num_ratios = experiment.evaluation.text_methods, len(experiment.wire.target_ratios)
    num_parts = sum(1 if method in WITHOUT_RATIO else num_ratios for method in methods)
    with open_shards(experiment, layout, stage, inputs, __name__, num_parts) as shards:
        for method in methods:
            is_swap = method == Method.control_swap
            groups = group_by_passage(swaps.examples if is_swap else examples)
            contexts = [group[0].context for group in groups]
            ids = receiver.prompt.source_ids(contexts)
            output = layout.predictions(method, receiver_name)
            for ratio, kept, texts in _texts(method, receiver, ids, contexts, experiment):
                answer = partial(
                    predict,
                    experiment,
                    receiver,
                    groups,
                    contexts,
                    ids,
                    partial(send_text, receiver, kept, texts),
                    ratio=ratio,
                    swapped=swaps.answers if is_swap else None,
                )
                shards.answer(method, receiver_name, output, f"{method}-{ratio}", answer)


def _texts(
    method: Method,
    receiver: Receiver,
    ids: list[list[int]],
    contexts: list[str],
    experiment: Experiment,
) -> Iterator[tuple[float | None, list[list[int]], list[str]]]:
    """What a method leaves of each source: target ratio, token ids and text."""
    if method in (Method.text, Method.control_swap):
        yield None, ids, contexts
    elif method == Method.closed_book:
        yield None, [[] for _ in ids], [""] * len(ids)
    else:
        for ratio in experiment.wire.target_ratios:
            kept = (
                head_ids(ids, ratio)
                if method == Method.truncate_head
                else random_span_ids(ids, ratio, experiment.evaluation.seed)
            )
            yield ratio, kept, receiver.tokenizer.batch_decode(kept)


@dataclass(frozen=True)
class _Encoded:
    """Sources and their messages.

    Attributes:
        groups: the questions of each source.
        sources: the texts.
        payloads: by target ratio and dtype the byte form of each message.
        seconds: by target ratio and dtype the time that each message takes.
    """

    groups: list[list[Example]]
    sources: list[str]
    payloads: dict[tuple[float, str], list[bytes]]
    seconds: dict[tuple[float, str], list[float]]


def _encoded(
    experiment: Experiment,
    wire: Wire,
    examples: Sequence[Example],
    dtypes: Iterable[str],
    sender: str | None,
) -> _Encoded:
    groups = group_sources(examples, wire.config.source_mode)
    sources = [source_text(group[0], wire.config.source_mode) for group in groups]
    forms = [(ratio, dtype) for ratio in experiment.wire.target_ratios for dtype in dtypes]
    return _Encoded(
        groups,
        sources,
        *encode_payloads(wire, sources, forms, experiment.evaluation.batch_passages, sender),
    )


def evaluate_wire(
    experiment: Experiment, layout: Layout, seed: int, only: tuple[Method, str] | None = None
) -> None:
    """Evaluates the experiment's wire, from all senders, at all ratios.

    Args:
        only: the method and the receiver to ask; none asks all that the wire is trained for, by
            all its methods.

    Raises:
        UserError: if data, receivers or wire are missing, or the wire was trained with another
            anchor than the experiment's.
    """
    wire_name = experiment.wire.name
    wire = Wire.from_pretrained(layout.wire(wire_name, seed), experiment.device)
    evaluation = experiment.evaluation
    examples = read_examples(layout.split("test"))
    methods = [only[0]] if only else evaluation.wire_methods
    dtypes = {method: PAYLOAD_DTYPES.get(method, "fp16") for method in methods}
    forms = dict.fromkeys(dtypes[method] for method in methods if method != Method.control_swap)
    swaps = swap_answers(examples, evaluation.seed)
    senders: list[str | None] = [*experiment.wire.sender_names] or [None]
    real: dict[str | None, _Encoded] = {}
    changed: dict[str | None, _Encoded] = {}
    for sender in senders:
        if forms:
            real[sender] = _encoded(experiment, wire, examples, forms, sender)
        if Method.control_swap in dtypes:
            changed[sender] = _encoded(experiment, wire, swaps.examples, ["fp16"], sender)
    owners = [group[0].passage_id for group in group_sources(examples, wire.config.source_mode)]
    strangers = derangement(owners, evaluation.seed)
    asked_for = [only[1]] if only else [reader.name for reader in experiment.readers]
    inputs = [layout.receiver(name) / DESCRIPTION for name in asked_for]
    inputs.append(layout.wire(wire_name, seed) / WEIGHTS)
    stage = "-".join(["evaluate_wire", wire_name, f"seed{seed}", *(only or [])])
    ratios = experiment.wire.target_ratios
    num_parts = len(asked_for) * len(dtypes) * len(senders) * len(ratios)
    with open_shards(experiment, layout, stage, inputs, __name__, num_parts) as shards:
        for name in asked_for:
            receiver = latent_reader(experiment, load_receiver(experiment, layout, name))
            _check_anchor(wire, receiver)
            warm_up(experiment, receiver, examples)
            for method, dtype in dtypes.items():
                is_swap = method == Method.control_swap
                output = layout.predictions(method, name, wire_name, seed)
                for sender, ratio in product(senders, ratios):
                    asked = (changed if is_swap else real)[sender]
                    ids = receiver.prompt.source_ids(asked.sources)
                    sent = control_payloads(
                        method, asked.payloads[ratio, dtype], strangers, evaluation.seed
                    )
                    answer = partial(
                        predict,
                        experiment,
                        receiver,
                        asked.groups,
                        asked.sources,
                        ids,
                        partial(send_latents, wire, receiver.name, sent),
                        ratio=ratio,
                        wire=wire_name,
                        encode_seconds=asked.seconds[ratio, dtype],
                        question_aware=wire.config.source_mode == "prompt",
                        swapped=swaps.answers if is_swap else None,
                        sender=sender,
                    )
                    part = [name, method, *([sender] if sender else []), str(ratio)]
                    shards.answer(method, name, output, "-".join(part), answer)


def _check_anchor(wire: Wire, receiver: Receiver) -> None:
    trained = wire.receivers[receiver.name].anchor_ids
    if trained != receiver.prompt.anchor_ids:
        raise UserError(
            f"prompt.anchor_text: the wire was trained with an anchor of the tokens {trained}, not "
            f"{receiver.prompt.anchor_ids} ({receiver.prompt.anchor!r}); use the text it was "
            "trained with"
        )
