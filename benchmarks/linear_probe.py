"""Memory and time of the linear probe on states of a large model, and whether it finds a signal.

    /usr/bin/time -v python benchmarks/linear_probe.py

50,000 states of 4,096 numbers, Gaussian but for a direction along which four labels lie apart.
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from latentwire.baselines.probe import LinearProbe

NUM_STATES, WIDTH, NUM_TEST, NUM_LABELS = 50_000, 4_096, 2_000, 4
STRENGTH = 4.0


def main() -> None:
    rng = np.random.default_rng(1)
    direction = rng.standard_normal(WIDTH, dtype=np.float32)
    direction /= np.linalg.norm(direction)
    labels = rng.integers(NUM_LABELS, size=NUM_STATES)
    with tempfile.TemporaryDirectory() as folder:
        states = np.lib.format.open_memmap(
            Path(folder) / "states.npy", "w+", dtype=np.float32, shape=(NUM_STATES, WIDTH)
        )
        for start in range(0, NUM_STATES, 1000):
            rows = slice(start, start + 1000)
            states[rows] = rng.standard_normal((len(labels[rows]), WIDTH), dtype=np.float32)
            states[rows] += STRENGTH * np.outer(labels[rows], direction)
        names = labels.astype(str)
        train, test = slice(0, NUM_STATES - NUM_TEST), slice(NUM_STATES - NUM_TEST, None)
        started = time.perf_counter()
        probe = LinearProbe(components=256, folds=3, seed=1)
        probe.fit(states[train], names[train], np.arange(NUM_STATES)[train].astype(str))
        seconds = time.perf_counter() - started
        accuracy = (probe.predict(states[test]) == names[test]).mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"accuracy {accuracy:.3f} (chance {1 / NUM_LABELS:.2f}), {seconds:.0f} s, {peak:.2f} GiB")


if __name__ == "__main__":
    main()
