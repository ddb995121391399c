"""What it costs a receiver to read latents, against the text that they stand for.

    python benchmarks/prefill.py results/pocket/wires/shared/seed1

A receiver reads a source and a question and says its first token: the source once as text, and once
as latents, without and with the time in which an encoder makes them. Sources are random tokens, as
long for the encoder as for the receiver; no time depends on which they are. Prints JSON: for each
length medians in seconds, and how many times the text takes what the latents take.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from timing import timed

from latentwire import Wire
from latentwire.cluster.machine import computing_facts
from latentwire.receivers.receiver import Source

QUESTION_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wire", type=Path, help="folder of a wire")
    parser.add_argument("--receiver", help="its name (default: each of the wire's)")
    parser.add_argument("--ratio", type=float, default=4.0, help="target ratio (default: 4)")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[128, 256, 512, 1024, 2048, 4000],
        help="tokens of the source",
    )
    parser.add_argument("--batch", type=int, default=1, help="sources at once (default: 1)")
    parser.add_argument("--repetitions", type=int, default=15, help="of each (default: 15)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    wire = Wire.from_pretrained(options.wire, options.device)
    outcome = {
        name: [
            measure(wire, name, options.ratio, length, options.batch, options.repetitions)
            for length in options.lengths
        ]
        for name in ([options.receiver] if options.receiver else wire.receivers)
    }
    facts = {"machine": computing_facts(), "threads": options.threads, "batch": options.batch}
    print(json.dumps(facts | {"ratio": options.ratio, "receivers": outcome}, indent=2))


@torch.no_grad()
def measure(
    wire: Wire, name: str, ratio: float, length: int, batch: int, repetitions: int
) -> dict[str, float]:
    receiver = wire.receiver(name).receiver
    vocabulary = min(wire.encoder.backbone.config.vocab_size, receiver.model.config.vocab_size)
    ids = torch.randint(3, vocabulary, (batch, length)).tolist()
    questions = [[torch.randint(3, vocabulary, (QUESTION_TOKENS,)).tolist()] for _ in ids]

    def encode() -> Source:
        return wire.soft_tokens(name, wire.latents(wire.read(ids), [ratio] * batch))

    soft_tokens, text = encode(), receiver.text_source(ids)
    calls: dict[str, Callable[[], object]] = {
        "text": lambda: receiver.generate(text, questions, 1),
        "latents": lambda: receiver.generate(soft_tokens, questions, 1),
        "encode": encode,
    }
    times: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(1 + repetitions):
        for way, call in calls.items():
            seconds, _ = timed(call)
            times[way].append(float(seconds))
    # The first of each warms up.
    medians = {way: statistics.median(own[1:]) for way, own in times.items()}
    return {
        "tokens": length,
        "soft_tokens": int(soft_tokens.mask.sum(1).max()),
        **{f"{way}_seconds": seconds for way, seconds in medians.items()},
        "text_over_latents": medians["text"] / medians["latents"],
        "text_over_encode_and_latents": medians["text"] / (medians["encode"] + medians["latents"]),
    }


if __name__ == "__main__":
    main()
