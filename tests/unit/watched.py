"""Makes a training tell what each of its processes does, and lets a test hit one at a step.

Imported by the process that trains, as `kills` prepares it. It is asked by variables:
WATCHED, the folder to tell in; STRIKE, `signal:step:rank` of a blow.
"""

import hashlib
import json
import os
from functools import partial
from pathlib import Path

import torch
from torch.distributed.launcher import api

from latentwire.cluster import torchrun
from latentwire.training import loop, wire

FOLDER = Path(os.environ["WATCHED"])
STRIKE = [int(part) for part in os.environ.get("STRIKE", "0:-1:-1").split(":")]
# The default optimiser computes in bfloat16, which makes much of a rounding.
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-6}


def _tell(name, **facts):
    with (FOLDER / f"{name}-{_rank()}.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def _rank():
    return int(os.environ.get("RANK", "0"))


def _adamw(parameters, _, rate, *__):
    # The schedule sets the rate of the first of two groups of two optimisers.
    halves = [[p for name, p in parameters if ("adapters" in name) is own] for own in (True, False)]
    return [torch.optim.AdamW(half, lr=rate, weight_decay=0.0, **ADAMW) for half in halves]


losses, read_latents, fit = wire.WireTask.losses, wire.WireTask._read_latents, wire.fit
current = {"step": -1}


def _losses(task, step):
    number, at, rank = STRIKE
    if (step, _rank()) == (at, rank):
        os.kill(os.getpid(), number)
    current["step"] = step
    random_before = torch.get_rng_state()
    outcome = losses(task, step)
    # What is drawn from the global generator would hang on the number of processes.
    assert torch.equal(torch.get_rng_state(), random_before)
    return outcome


def _read_latents(task, receiver, latents, passages, *arguments, **options):
    if torch.is_grad_enabled():
        questions = [p.questions[receiver.name] for p in passages]
        asked = [
            [p.encoder_ids, own] for p, own in zip(passages, questions, strict=True) if own[0][1]
        ]
        answers = [
            hashlib.sha256(json.dumps([receiver.name, *row]).encode()).hexdigest() for row in asked
        ]
        tokens = sum(len(answer) for own in questions for _, answer in own)
        _tell("order", step=current["step"], read=answers, tokens=tokens)
    return read_latents(task, receiver, latents, passages, *arguments, **options)


def _fit(task, schedule, state):
    try:
        return fit(task, schedule, state)
    finally:
        digest = hashlib.sha256()
        for parameter in task.module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        _tell("weights", digest=digest.hexdigest())


wire.WireTask.losses, wire.WireTask._read_latents, wire.fit = _losses, _read_latents, _fit
loop.make_optimisers = _adamw
torchrun._LEADER_FIRST_SECONDS = 0.5
# Processes that are launched are watched, too.
api.LaunchConfig = partial(api.LaunchConfig, start_method="fork")
