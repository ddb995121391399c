"""Untrained pocket receivers for tests of numerics."""

import pytest
import torch
from samples import make_receiver

from latentwire.receivers.receiver import Receiver


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["llama", "qwen"])
def receiver(request) -> Receiver:
    return make_receiver(request.param)


@pytest.fixture(scope="session")
def llama() -> Receiver:
    return make_receiver("llama")
