"""The stage `evaluate-relay`: what senders do without a wire, in words.

A sender that has not seen the question writes what it read, and a receiver reads that; or it reads
the question too and answers itself.
"""

import math
import time
from collections.abc import Sequence
from functools import partial

from latentwire.config import Experiment, Method
from latentwire.data.tables import Example, group_by_passage, read_examples
from latentwire.evaluation.methods import budgets, send_text
from latentwire.evaluation.predict import predict, warm_up
from latentwire.evaluation.predictions import Prediction
from latentwire.evaluation.shards import open_shards
from latentwire.layout import Layout
from latentwire.receivers.loading import DESCRIPTION, load_receiver
from latentwire.receivers.prompt import restatement_request
from latentwire.receivers.receiver import Receiver


def evaluate_relay(experiment: Experiment, layout: Layout, receiver_name: str) -> None:
    """Evaluates text from every sender of the experiment, read by one receiver.

    What a sender writes is asked for, and cut, at every target ratio, and once without a limit
    but the length of the text: that tells whether the sender can do it at all.

    Raises:
        UserError: if data, receiver or a sender are missing.
    """
    examples = read_examples(layout.split("test"))
    receiver = load_receiver(experiment, layout, receiver_name)
    warm_up(experiment, receiver, examples)
    ratios = [None, *experiment.wire.target_ratios]
    names = experiment.senders
    inputs = [layout.receiver(name) / DESCRIPTION for name in {receiver_name, *names}]
    stage = f"evaluate_relay-{receiver_name}"
    num_parts = len(names) * (len(ratios) + 1)
    with open_shards(experiment, layout, stage, inputs, __name__, num_parts) as shards:
        relayed, alone = (
            partial(shards.answer, method, receiver_name, layout.predictions(method, receiver_name))
            for method in (Method.text_relay, Method.sender_alone)
        )
        for name in names:
            sender = load_receiver(experiment, layout, name)
            for ratio in ratios:
                answer = partial(_relay, experiment, sender, receiver, examples, ratio)
                relayed(f"{name}-text_relay-{ratio}", answer)
            alone(f"{name}-sender_alone", partial(_answer_alone, experiment, sender, examples))


def _relay(
    experiment: Experiment,
    sender: Receiver,
    receiver: Receiver,
    examples: Sequence[Example],
    ratio: float | None,
) -> list[Prediction]:
    """Answers from what a sender writes about each passage."""
    groups = group_by_passage(examples)
    contexts = [group[0].context for group in groups]
    ids = receiver.prompt.source_ids(contexts)
    most = budgets(ids, ratio) if ratio else list(map(len, ids))
    shares = [budget / len(own) for budget, own in zip(most, ids, strict=True)]
    written, seconds = restate(sender, contexts, shares, experiment.evaluation.batch_passages)
    kept = [
        own[:budget] for own, budget in zip(receiver.prompt.source_ids(written), most, strict=True)
    ]
    texts = receiver.tokenizer.batch_decode(kept)
    return predict(
        experiment,
        receiver,
        groups,
        contexts,
        ids,
        partial(send_text, receiver, kept, texts),
        ratio=ratio,
        encode_seconds=seconds,
        sender=sender.name,
    )


def restate(
    sender: Receiver, texts: Sequence[str], shares: Sequence[float], batch_size: int
) -> tuple[list[str], list[float]]:
    """What a sender writes when it is asked to restate texts, and the seconds of each.

    Args:
        sender: the model.
        texts: the texts.
        shares: of the length of each text, that it may take; 1 asks for all of it.
        batch_size: texts that are restated together; each takes the mean of their time.
    """
    ids = sender.prompt.source_ids(list(texts))
    most = [math.ceil(share * len(own)) for share, own in zip(shares, ids, strict=True)]
    requests = sender.prompt.question_ids(
        [
            restatement_request(max(1, round(share * len(text.split()))) if share < 1 else math.inf)
            for text, share in zip(texts, shares, strict=True)
        ]
    )
    written: list[str] = []
    seconds: list[float] = []
    for start in range(0, len(texts), batch_size):
        batch = slice(start, start + batch_size)
        started = time.perf_counter()
        source = sender.text_source(ids[batch])
        questions = [[request] for request in requests[batch]]
        answers = sender.generate(source, questions, max(most[batch]))
        written += sender.decode(
            [own[:length] for own, length in zip(answers, most[batch], strict=True)]
        )
        seconds += [(time.perf_counter() - started) / len(answers)] * len(answers)
    return written, seconds


def _answer_alone(
    experiment: Experiment, sender: Receiver, examples: Sequence[Example]
) -> list[Prediction]:
    """A sender's own answers from the text."""
    groups = group_by_passage(examples)
    contexts = [group[0].context for group in groups]
    ids = sender.prompt.source_ids(contexts)
    send = partial(send_text, sender, ids, contexts)
    return predict(experiment, sender, groups, contexts, ids, send, ratio=None, sender=sender.name)
