"""Time of random reads from a store of many messages.

    python benchmarks/store_read.py

100,000 messages of 16 latents of width 256 as int8; 5,000 keys are read at random, each message
checked and turned into numbers.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from latentwire import Latents, LatentStore

NUM_READS, BATCH = 5_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    latents = Latents.quantise(torch.randn(16, 256), 8.0, bytes(16))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        started = time.perf_counter()
        with LatentStore(path) as store:
            for start in range(0, options.messages, BATCH):
                numbers = range(start, min(start + BATCH, options.messages))
                store.put([(f"passage-{number}", latents) for number in numbers], "int8")
        seconds = time.perf_counter() - started
        size = path.stat().st_size / 2**20
        print(f"{options.messages} messages written in {seconds:.1f} s, {size:.0f} MiB")
        draw = random.Random(1)
        with LatentStore(path) as store:
            times = []
            for _ in range(NUM_READS):
                key = f"passage-{draw.randrange(options.messages)}"
                started = time.perf_counter()
                store.get(key)
                times.append(1000 * (time.perf_counter() - started))
    times.sort()
    print(
        f"{NUM_READS} random reads: median {statistics.median(times):.3f} ms, 99th percentile "
        f"{times[int(0.99 * NUM_READS)]:.3f} ms, longest {times[-1]:.3f} ms"
    )


if __name__ == "__main__":
    main()
