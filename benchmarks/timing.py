"""The clocks of the benchmarks beside it."""

import time
from collections.abc import Callable

import numpy as np
import torch


def clock() -> np.ndarray:
    """Seconds by the clock, and of the CPU time of all threads."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def timed(call: Callable[[], object]) -> np.ndarray:
    """What a call takes on both."""
    started = clock()
    call()
    return clock() - started
