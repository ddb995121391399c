"""Makes a training tell what each of its processes does, and lets a test hit one at a step.

Imported by the process that trains, as `kills` prepares it. It is asked by variables:
WATCHED, the folder to tell in; STRIKE, `signal:step:rank` of a blow; OPTIMISER, "ours" or AdamW.
"""

import hashlib
import json
import os
from functools import partial
from pathlib import Path

import torch
from torch.distributed.launcher import api
from torch.distributed.tensor import DTensor

from latentwire.cluster import torchrun
from latentwire.training import loop, wire

FOLDER = Path(os.environ["WATCHED"])
STRIKE = [int(part) for part in os.environ.get("STRIKE", "0:-1:-1").split(":")]


def _tell(name, **facts):
    with (FOLDER / f"{name}-{_rank()}.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def _rank():
    return int(os.environ.get("RANK", "0"))


def _adamw(parameters, _, rate, *__):
    """Two optimisers, as the loop expects; Muon would make much of a rounding, in bfloat16."""
    halves = [[p for name, p in parameters if ("adapters" in name) is own] for own in (True, False)]
    return [torch.optim.AdamW(half, lr=rate, betas=(0.9, 0.95)) for half in halves]


losses, read_latents, fit = wire.WireTask.losses, wire.WireTask._read_latents, wire.fit
current = {"step": -1}


def _losses(task, step, part):
    number, at, rank = STRIKE
    if (step, _rank()) == (at, rank):
        os.kill(os.getpid(), number)
    current["step"] = step
    # Below zero the guard is at work, whatever untrained models say.
    task._settings = task._settings.model_copy(update={"guard_margin": -10.0})
    random_before = torch.get_rng_state()
    outcome = losses(task, step, part)
    # What is drawn from the global generator would hang on the number of processes.
    assert torch.equal(torch.get_rng_state(), random_before)
    return outcome


def _read_latents(task, receiver, latents, passages, *arguments, **options):
    if torch.is_grad_enabled():
        questions = [p.questions[receiver.name] for p in passages]
        answers = [[answer for _, answer in own] for own in questions]
        rows = [
            json.dumps([receiver.name, passage.encoder_ids, own])
            for passage, own in zip(passages, answers, strict=True)
        ]
        read = [hashlib.sha256(row.encode()).hexdigest() for row in rows]
        tokens = sum(len(answer) for own in answers for answer in own)
        _tell("order", step=current["step"], read=read, tokens=tokens)
    return read_latents(task, receiver, latents, passages, *arguments, **options)


def _fit(task, schedule, state):
    try:
        return fit(task, schedule, state)
    finally:
        digest = hashlib.sha256()
        for parameter in task.module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        layers = [p for r in task._receivers for p in r.model.model.layers.parameters()]
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in layers)
        _tell("weights", digest=digest.hexdigest(), held=held, all=sum(p.numel() for p in layers))


wire.WireTask.losses, wire.WireTask._read_latents, wire.fit = _losses, _read_latents, _fit
if os.environ.get("OPTIMISER") != "ours":
    loop.make_optimisers = _adamw
torchrun._OTHERS_FIRST_SECONDS = 0.5
# Processes that are launched are watched, too.
api.LaunchConfig = partial(api.LaunchConfig, start_method="fork")
