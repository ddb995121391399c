"""What the trainings of an experiment will take on a machine, before they start."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from latentwire.cluster.machine import free_memory_bytes, matmul_flops, save_bytes_per_second
from latentwire.cluster.profile import read_profile, signal_lead_seconds
from latentwire.cluster.slurm import has_slurm, show_partition
from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.planning.training import Memory, TrainingPlan, plan_memory, plan_training
from latentwire.training.progress import format_seconds

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What there is to train on; none where that is not known.

    Attributes:
        memory_bytes: free on the device.
        flops: operations per second in products of matrices.
        save_bytes_per_second: of a training state.
        grace_seconds: time from the signal to the end, by what sets it.
    """

    memory_bytes: int | None
    flops: float | None
    save_bytes_per_second: float | None
    grace_seconds: dict[str, int]


def print_plan(
    experiment: Experiment,
    layout: Layout,
    shapes: Mapping[str, Path],
    profile: Path,
    memory_gib: float | None,
    flops: float | None,
    processes: int,
    as_json: bool,
) -> None:
    """Prints what every training takes.

    Args:
        experiment: the experiment.
        layout: where it keeps its files.
        shapes: configurations of models to use instead of their own, by name.
        profile: folder of the Snakemake profile that says how long before its end a job is told.
        memory_gib: memory of another machine's device; none is this one's.
        flops: operations per second of another machine's device; none is this one's, measured.
        processes: that train together, each on a device of its own.
        as_json: print JSON instead of text.

    Raises:
        UserError: if a training needs more memory than there is, or a model's shape is not known.
    """
    machine = Machine(
        _device_memory(experiment, memory_gib),
        _device_flops(experiment) if flops is None else flops,
        _save_rate(layout),
        _grace_seconds(profile),
    )
    trainings = [
        plan_training(experiment, layout, wire, shapes, processes) for wire in experiment.wires
    ]
    if as_json:
        peaks = ({"peak_bytes": own.memory.peak} for own in trainings)
        told = [asdict(own) | peak for own, peak in zip(trainings, peaks, strict=True)]
        plan = {"machine": asdict(machine), "trainings": told}
        print(json.dumps(plan, indent=2))
    else:
        print("\n".join(line for own in trainings for line in _lines(own, machine)))
    refusals = [
        _refusal(experiment.of_wire(own.wire), own.memory, machine.memory_bytes)
        for own in trainings
        if machine.memory_bytes is not None and own.memory.peak > machine.memory_bytes
    ]
    if refusals:
        raise UserError("\n".join(refusals))


def check_memory(experiment: Experiment, layout: Layout, wire: str) -> None:
    """Makes sure that a wire's training fits into the memory that is free on the device.

    A process of several counts its own share.

    Raises:
        UserError: if it does not.
    """
    available = free_memory_bytes(experiment.device)
    if available is None:
        return
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if experiment.device == "cpu":
        available //= processes
    memory = plan_memory(experiment, layout, wire, processes, enough=available)
    if memory.peak > available:
        raise UserError(_refusal(experiment.of_wire(wire), memory, available))


def _refusal(own: Experiment, memory: Memory, available: int) -> str:
    parts = ", ".join(f"{text} {size / GIB:.1f}" for text, size in _parts(memory))
    return (
        f"training the wire {own.wire.name!r} takes {memory.peak / GIB:.1f} GiB at its peak, but "
        f"{available / GIB:.1f} GiB are free on {own.device} ({parts}; not all at once). "
        f"Less is taken with {'; or '.join(_changes(own, memory, available))}"
    )


def _changes(own: Experiment, memory: Memory, available: int) -> Iterator[str]:
    """Settings that make a training smaller, those that cost least first."""
    settings = own.training
    if not settings.checkpoint_activations:
        yield "training.checkpoint_activations: true"
    for index, receiver in enumerate(own.receivers):
        if receiver in own.readers and receiver.dtype == "float32":
            yield f"receivers.{index}.dtype: bfloat16"
    if settings.precision == "float32":
        yield "training.precision: bfloat16"
    if settings.kl_weight and settings.teacher_top_k is None:
        yield "training.teacher_top_k: 64"
    if settings.receivers_per_step == "all" and len(own.readers) > 1:
        yield "training.receivers_per_step: one"
    parts = _enough_parts(memory, settings.micro_batches, available)
    if parts is not None and parts <= settings.passages_per_step:
        yield f"training.micro_batches: {parts}"
    # Receivers are shared out or quantised, not both.
    if memory.receivers > memory.peak / 4 and not settings.shard_receivers:
        if not any(receiver.is_quantised for receiver in own.readers):
            yield "training.shard_receivers: true, on several GPUs"
        for receiver in own.readers:
            if receiver.dtype != "nf4":
                fewer = "nf4" if receiver.dtype == "int8" else "int8"
                yield f"receivers.{own.receivers.index(receiver)}.dtype: {fewer}"
    if memory.passages > memory.peak / 4:
        yield "fewer training passages (the section data)"
    if own.wire.encoder.lora_rank is None and not own.wire.encoder_of:
        yield "wire.encoder.lora_rank: 16, which trains less"
    yield "a smaller wire.encoder.backbone; smaller or fewer receivers (wire.receivers)"


def _enough_parts(memory: Memory, micro_batches: int, available: int) -> int | None:
    """The power of two of parts of a step whose activations fit; none if gradients alone do not."""
    activations = (memory.step - memory.gradients) * micro_batches
    for kept in range(1, 16):
        room = available - memory.held - (1 + kept) * memory.gradients
        if activations <= room * 2**kept:
            return 2**kept
    return None


def _parts(memory: Memory) -> list[tuple[str, int]]:
    parts = [
        ("frozen receivers", memory.receivers),
        ("frozen senders", memory.senders),
        ("encoder and adapters", memory.wire),
        ("optimiser", memory.optimiser),
        ("copy for saving", memory.saving),
        ("rows and token ids", memory.passages),
        ("CUDA itself", memory.cuda),
        ("activations of the encoder", memory.encoder_activations),
        ("activations of the receivers", memory.receiver_activations),
        ("gradients", memory.gradients),
        ("gradients of parts before", memory.kept_gradients),
    ]
    return [(text, size) for text, size in parts if size]


def _lines(training: TrainingPlan, machine: Machine) -> Iterator[str]:
    memory, parameters = training.memory, training.parameters
    yield f"wire {training.wire}, seeds {', '.join(map(str, training.seeds))}"
    yield f"  lengths     {training.lengths}; {training.padding:.0%} of positions are padding"
    counts = ", ".join(f"{name} {_short(count)}" for name, count in parameters.items())
    yield f"  parameters  {counts}"
    free = machine.memory_bytes
    of = "" if free is None else f" of {free / GIB:.1f} that are free"
    yield f"  memory      {memory.peak / GIB:.2f} GiB at the peak{of}; not all at once:"
    yield from (f"              {size / GIB:8.2f}  {text}" for text, size in _parts(memory))
    yield (
        f"              of the receivers' {memory.logits / GIB:.2f} are logits of one of them, "
        f"{memory.teacher_logits / GIB:.2f} those of its teacher"
    )
    flops = ", ".join(f"{name} {_short(count)}" for name, count in training.flops.items() if count)
    yield (
        f"  step        {_short(sum(training.flops.values()))}FLOP: {flops}; "
        f"{_short(training.computed_flops)} with padding, repetition and the optimiser"
    )
    yield f"  time        {_time(training, machine)}"
    yield f"  saves       {_saves(training, machine)}"


def _time(training: TrainingPlan, machine: Machine) -> str:
    if training.num_steps is None or training.total_flops is None:
        return "not known: the number of steps depends on the data, which are not prepared"
    steps = f"{training.num_steps:,} steps"
    if machine.flops is None:
        return f"{steps}; give --flops where the device is not here"
    seconds = training.total_flops / machine.flops
    return (
        f"{steps} take at least {format_seconds(seconds)} for each seed, at the "
        f"{_short(machine.flops)}FLOP/s of a product of matrices"
    )


def _saves(training: TrainingPlan, machine: Machine) -> str:
    size, rate = training.state_bytes, machine.save_bytes_per_second
    text = f"{size / GIB:.2f} GiB each"
    if rate is None:
        return f"{text}; the disk cannot be written, so its rate is not known"
    seconds = size / rate
    text += f", {format_seconds(seconds)} at {rate / GIB:.2f} GiB/s"
    for setting, grace in machine.grace_seconds.items():
        verdict = "" if seconds < grace else ", TOO LITTLE: work since the last save is lost"
        text += f"; {setting} leaves {grace} s{verdict}"
    return text


def _short(number: float) -> str:
    """Three digits and a prefix of the SI, as in 1.24 G."""
    power = max(0, int(math.log10(number) // 3)) if number else 0
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}".rstrip()


def _device_memory(experiment: Experiment, gib: float | None) -> int | None:
    return free_memory_bytes(experiment.device) if gib is None else int(gib * GIB)


def _device_flops(experiment: Experiment) -> float | None:
    if experiment.device == "cuda" and not torch.cuda.is_available():
        return None
    return matmul_flops(experiment.device, getattr(torch, experiment.training.precision))


def _save_rate(layout: Layout) -> float | None:
    try:
        return save_bytes_per_second(layout.existing_folder)
    except OSError:
        return None


def _grace_seconds(folder: Path) -> dict[str, int]:
    """Seconds from the signal to the end of a job, by what sets them."""
    grace = {}
    try:
        profile = read_profile(folder)
    except UserError:
        return {}
    lead = signal_lead_seconds(profile)
    if lead is not None:
        grace[f"--signal of {folder}"] = lead
    partition = str((profile.get("default-resources") or {}).get("slurm_partition"))
    if has_slurm() and (facts := show_partition(partition)):
        grace[f"GraceTime of {partition}"] = int(facts.get("GraceTime", 0))
    return grace
