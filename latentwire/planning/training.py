"""What the training of a wire takes, on whatever machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from latentwire.config import Experiment
from latentwire.layout import Layout
from latentwire.planning.cost import (
    FLOAT32_BYTES,
    StepWork,
    WireShape,
    newton_schulz_flops,
    optimiser_bytes,
    state_bytes,
    step_flops,
)
from latentwire.planning.lengths import Lengths, expected_lengths
from latentwire.planning.memory import step_memory
from latentwire.planning.models import (
    Models,
    build_models,
    frozen_bytes,
    model_shape,
    num_bytes,
    num_parameters,
)
from latentwire.planning.steps import StepShape, step_shape, step_work
from latentwire.training.batches import BatchOrder
from latentwire.training.optimisers import make_optimisers
from latentwire.training.parts import parts_of_each, shares

# Layers keep 10 to 20 states of the width of a token's.
_AMPLE = 50
# CUDA's context and libraries, and the gaps between tensors.
_CUDA_BYTES = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes that a process takes on its device.

    Attributes:
        receivers: their frozen weights.
        senders: theirs.
        wire: weights of encoder and adapters.
        optimiser: Muon's momentum and AdamW's moments.
        saving: on the CPU, the copy from which a state is saved.
        passages: on the CPU, rows and token ids of all passages.
        cuda: on a GPU, what CUDA takes itself.
        gradients: of all that is trained, at the end of the backward pass.
        kept_gradients: those of parts of a step that were read before.
        updates: what the optimiser needs for the largest parameter.
        encoder_activations: what the encoder keeps for the backward pass.
        receiver_activations: what the receivers keep.
        logits: those of a receiver at the answers, among what it keeps.
        teacher_logits: what is kept of those of the same receiver that reads the text.
        step: the most at any moment of a forward and backward pass.
    """

    receivers: int
    senders: int
    wire: int
    optimiser: int
    saving: int
    passages: int
    cuda: int
    gradients: int
    kept_gradients: int
    updates: int
    encoder_activations: int
    receiver_activations: int
    logits: int
    teacher_logits: int
    step: int

    @property
    def held(self) -> int:
        """What is there all the time, however small a step is."""
        weights = self.receivers + self.senders + self.wire
        return weights + self.optimiser + self.saving + self.passages + self.cuda

    @property
    def peak(self) -> int:
        """The most at any moment: activations are gone when the optimiser begins."""
        return self.held + max(self.step + self.kept_gradients, self.gradients + self.updates)


@dataclass(frozen=True)
class TrainingPlan:
    """What a wire's training takes, on whatever machine.

    Attributes:
        wire: its name.
        seeds: trainings of it.
        lengths: what the lengths of batches are estimated from.
        parameters: weights by what has them, and how many are trained.
        memory: of each process.
        state_bytes: a saved state.
        padding: share of the positions that are read in vain.
        flops: operations of a step by what they are for, no padding or recomputation among them.
        computed_flops: operations of a step and process with these and the optimiser's.
        num_steps: of one training; none if that depends on data that are not prepared.
        total_flops: operations of one training and process, measures on dev aside.
    """

    wire: str
    seeds: list[int]
    lengths: str
    parameters: dict[str, int]
    memory: Memory
    state_bytes: int
    padding: float
    flops: dict[str, float]
    computed_flops: float
    num_steps: int | None
    total_flops: float | None


def plan_memory(
    experiment: Experiment, layout: Layout, wire: str, processes: int = 1, enough: float = 0
) -> Memory:
    """Memory of a wire's training, without the rest of its plan.

    Args:
        experiment: the whole experiment.
        layout: where its data and receivers are, if they are prepared.
        wire: the wire's name.
        processes: that share each step.
        enough: bytes below which a rough estimate will do, which is far too much and takes no time.

    Raises:
        UserError: if a model's shape is not known.
    """
    own, lengths = experiment.of_wire(wire), expected_lengths(experiment, layout, wire)
    with FakeTensorMode():
        models = build_models(experiment, layout, wire, {})
        parts = _in_parts(own, lengths, _epoch(_order(own, lengths)), processes)
        return _memory(own, models, lengths, parts, processes, enough)


def plan_training(
    experiment: Experiment,
    layout: Layout,
    wire: str,
    shapes: Mapping[str, Path],
    processes: int = 1,
) -> TrainingPlan:
    """What a wire's training takes.

    Args:
        experiment: the whole experiment.
        layout: where its data and receivers are, if they are prepared.
        wire: the wire's name.
        shapes: configurations of models to use instead of their own, by name.
        processes: that share each step.

    Raises:
        UserError: if a model's shape is not known.
    """
    own, lengths = experiment.of_wire(wire), expected_lengths(experiment, layout, wire)
    settings, order = own.training, _order(own, lengths)
    batches, num_steps = _epoch(order), settings.steps
    parts = _in_parts(own, lengths, batches, processes)
    if settings.epochs is not None and lengths.is_whole:
        num_steps = order.num_steps(settings.epochs)
    with FakeTensorMode():
        models = build_models(experiment, layout, wire, shapes)
        shape = _wire_shape(own, models)
        matrices, others = _trained(models.wire)
        parameters = {
            "encoder": num_parameters(models.wire.encoder),
            "adapters": num_parameters(models.wire.adapters),
            "trained": _count(matrices) + _count(others),
            **{name: num_parameters(model) for name, model in models.receivers.items()},
        }
        updates = sum(newton_schulz_flops(*matrix.shape) for matrix in matrices)
        memory = _memory(own, models, lengths, parts, processes)
    everything = step_work(own, lengths, range(len(lengths.source)), padded=False)
    padded = [step_work(own, lengths, indices, padded=True) for indices in parts]
    flops = step_flops(shape, everything, settings)
    computed = [step_flops(shape, work, settings, with_repetition=True) for work in padded]
    # Each process updates all weights.
    per_step = sum(sum(own.values()) for own in computed) / len(batches) / processes + updates
    reading = sum(own["receivers"] + own["teachers"] for own in computed) / len(batches) / processes
    return TrainingPlan(
        wire=wire,
        seeds=own.seeds,
        lengths=lengths.origin,
        parameters=parameters,
        memory=memory,
        state_bytes=state_bytes(_count(matrices), _count(others)),
        padding=1 - _positions(everything) / sum(map(_positions, padded)),
        flops={name: value / len(batches) for name, value in flops.items()},
        computed_flops=per_step,
        num_steps=num_steps,
        # In alignment no receiver reads.
        total_flops=num_steps and num_steps * per_step - settings.alignment_steps * reading,
    )


def _order(own: Experiment, lengths: Lengths) -> BatchOrder:
    return BatchOrder(lengths.cost.tolist(), own.training.passages_per_step, own.seeds[0])


def _epoch(order: BatchOrder) -> list[list[int]]:
    """The batches of the first epoch."""
    return [order.batch(step)[1] for step in range(order.num_steps(1))]


def _in_parts(
    own: Experiment, lengths: Lengths, batches: Sequence[Sequence[int]], processes: int
) -> list[list[int]]:
    """What is read at a time, one part of a step after the other."""
    each = parts_of_each(own.training.micro_batches, processes)
    return [
        [batch[index] for index in part]
        for batch in batches
        for part in shares(lengths.cost[batch].tolist(), each * processes)
        if part
    ]


def _positions(work: StepWork) -> float:
    return work.encoder.tokens + sum(own.tokens for own in work.students.values())


def _trained(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that Muon trains, and those of AdamW."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices, others = make_optimisers(named, 1.0, 1.0)
    return matrices.param_groups[0]["params"], others.param_groups[0]["params"]


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _memory(
    own: Experiment,
    models: Models,
    lengths: Lengths,
    parts: Sequence[Sequence[int]],
    processes: int,
    enough: float = 0,
) -> Memory:
    """Memory of a training; the models lose their layers."""
    largest = max(parts, key=lambda part: len(part) * lengths.cost[part].max())
    shape = step_shape(own, lengths, largest)
    logits = max(
        FLOAT32_BYTES * read.targets * models.receivers[name].config.vocab_size
        for name, read in shape.readings.items()
    )
    matrices, others = _trained(models.wire)
    counts = _count(matrices), _count(others)
    gradients = FLOAT32_BYTES * sum(counts)
    # They are added by halves.
    kept = ceil(log2(parts_of_each(own.training.micro_batches, processes)))
    is_cpu = own.device == "cpu"
    memory = Memory(
        receivers=_frozen_bytes(
            own, models.receivers, processes if own.training.shard_receivers else 1
        ),
        senders=_frozen_bytes(own, models.senders),
        wire=num_bytes(models.wire),
        optimiser=optimiser_bytes(*counts),
        saving=state_bytes(*counts) if is_cpu else 0,
        passages=lengths.host_bytes if is_cpu else 0,
        cuda=0 if is_cpu else _CUDA_BYTES,
        gradients=gradients,
        kept_gradients=kept * gradients,
        # Two of its size at a time.
        updates=2 * FLOAT32_BYTES * max(p.numel() for p in [*matrices, *others]),
        encoder_activations=0,
        receiver_activations=0,
        logits=logits,
        teacher_logits=_teacher_bytes(own, shape, logits),
        step=_ample_bytes(models, shape, logits),
    )
    if memory.peak < enough:
        return memory
    step = step_memory(models, own, shape)
    return replace(
        memory,
        encoder_activations=step.encoder,
        receiver_activations=step.receivers,
        step=step.peak,
    )


def _teacher_bytes(own: Experiment, shape: StepShape, logits: int) -> int:
    """What is kept of a teacher's logits; a likely token is an index and a number."""
    settings = own.training
    if not settings.kl_weight:
        return 0
    if settings.teacher_top_k is None:
        return logits
    targets = max(read.targets for read in shape.readings.values())
    return min(logits, targets * settings.teacher_top_k * (FLOAT32_BYTES + 8))


def _ample_bytes(models: Models, shape: StepShape, logits: int) -> int:
    """More than any step takes: a multiple of the states of all tokens in all layers."""
    positions = shape.source + max(
        own.head + own.text + max(own.asked, own.text_asked) for own in shape.readings.values()
    )
    trunks: list[Any] = [models.wire.encoder.backbone, *models.receivers.values()]
    width = sum(own.config.num_hidden_layers * own.config.hidden_size for own in trunks)
    return _AMPLE * (FLOAT32_BYTES * width * shape.rows * positions + logits)


def _frozen_bytes(own: Experiment, models: Mapping[str, PreTrainedModel], shares: int = 1) -> int:
    dtypes = {receiver.name: receiver.dtype for receiver in own.receivers}
    return sum(frozen_bytes(model, dtypes[name], shares) for name, model in models.items())


def _wire_shape(own: Experiment, models: Models) -> WireShape:
    encoder = models.wire.encoder
    is_low_rank = own.wire.encoder.lora_rank is not None
    return WireShape(
        encoder=model_shape(encoder.backbone),
        encoder_passes=1 if own.wire.encoder_of else 2 if is_low_rank else 3,
        latent_parameters=num_parameters(models.wire) - num_parameters(encoder.backbone),
        receivers={name: model_shape(model) for name, model in models.receivers.items()},
    )
