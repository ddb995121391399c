"""The memory of a training step, found by running one on tensors that take none.

The step is the real one, forward and backward, under torch's FakeTensorMode, in which tensors have
shapes and types alone. One layer of each model runs; what it keeps for the backward pass counts for
each of the model's layers.

Shapes: B rows, S source tokens, M latents, Q positions behind the source, T answer tokens.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from latentwire.config import Experiment, Training
from latentwire.planning.cost import FLOAT32_BYTES
from latentwire.planning.models import Models
from latentwire.planning.steps import StepShape
from latentwire.receivers.checkpointing import checkpoint_layers
from latentwire.receivers.packing import PackedQuestions
from latentwire.receivers.receiver import Receiver, Source
from latentwire.training.apart import losses_apart
from latentwire.training.objective import Teacher, answer_loss, guard_loss, teacher_of
from latentwire.training.parts import Losses
from latentwire.wire.encoder import Encoder
from latentwire.wire.reading import LatentBatch
from latentwire.wire.wire import Wire

# "Repeat the text." and what a chat template sets around it.
_REQUEST_TOKENS = 16


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step, beside weights and optimiser state.

    Attributes:
        encoder: what the encoder keeps for its backward pass.
        receivers: what the receiver that keeps most of all keeps, logits and losses among it.
        peak: the most at any moment, with all that is made and dropped on the way.
    """

    encoder: int
    receivers: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, as operations make and drop them.

    Attributes:
        now: bytes now.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def watch(self, *modules: nn.Module) -> int:
        """Counts the tensors of modules too, and says how many bytes there are now."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._add(tensor)
        return self.now

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage.nbytes()).atexit = False

    def _drop(self, num_bytes: int) -> None:
        self.now -= num_bytes


def step_memory(models: Models, experiment: Experiment, shape: StepShape) -> StepMemory:
    """Memory of a training's largest step. Call it, and make the models, under FakeTensorMode.

    Args:
        models: they lose all of their layers but two.
        experiment: as the wire sees it.
        shape: of that step.
    """
    settings, receivers = experiment.training, models.receivers
    if settings.receivers_per_step == "one":
        largest = max(receivers, key=lambda name: receivers[name].num_parameters())
        receivers = {largest: receivers[largest]}
    step = _Step(models.wire, receivers, settings)
    phases = [step.run(shape)]
    if settings.text_steps:
        phases.append(step.run(_writing(shape, settings.repeat_share), kl=False))
    return max(phases, key=lambda memory: memory.peak)


class _Step:
    """A step as `WireTask` makes it, of two layers of each model."""

    def __init__(
        self, wire: Wire, receivers: Mapping[str, PreTrainedModel], settings: Training
    ) -> None:
        self._wire, self._receivers, self._live = wire, receivers, LiveBytes()
        # Which targets are the first of an answer is not known without values.
        self._settings = settings.model_copy(update={"k_token_depth": 0, "first_token_weight": 0.0})
        self._layers = [
            _FewLayers(model, self._live) for model in (wire.encoder.backbone, *receivers.values())
        ]
        if settings.checkpoint_activations:
            checkpoint_layers(wire.encoder.backbone)
            for name, model in receivers.items():
                _receiver(name, model, 0).checkpoint_activations()

    def run(self, shape: StepShape, kl: bool = True) -> StepMemory:
        live, wire, encoder_layers = self._live, self._wire, self._layers[0]
        with live:
            live.peak = weights = live.watch(wire, *self._receivers.values())
            with self._autocast():
                latents = _encode(wire.encoder, shape)
            kept = [live.now + encoder_layers.kept_by_others]
            peaks, losses = [live.peak + encoder_layers.kept_by_others], []
            for name, layers in zip(self._receivers, self._layers[1:], strict=True):

                def losses_of(values: Tensor, name: str = name) -> Losses:
                    loss = self._read(name, replace(latents, values=values), shape, kl)
                    kept.append(live.now + kept_by_others())
                    return {"loss": loss}

                def kept_by_others(own: _FewLayers = layers) -> int:
                    return encoder_layers.kept_by_others + own.kept_by_others

                live.peak = live.now
                adapter = [*wire.adapter(name).parameters()]
                losses.append(losses_apart(losses_of, latents.values, adapter)["loss"])
                peaks.append(live.peak + kept_by_others())
            live.peak = live.now
            torch.stack(losses).mean().backward()
            # The encoder's gradients come while its activations go.
            others = max(encoder_layers.kept_by_others, encoder_layers.gradients_of_others)
            peaks.append(live.peak + others)
            wire.zero_grad()
        for layers in self._layers:
            layers.kept_by_others = 0
        encoder, most = kept[0] - weights, max(kept) - weights
        return StepMemory(encoder, most - encoder, max(peaks) - weights)

    def _autocast(self) -> torch.autocast:
        # Copies of weights that are kept for the backward pass are kept without a cache too.
        is_half = self._settings.precision == "bfloat16"
        return torch.autocast("cpu", torch.bfloat16, enabled=is_half, cache_enabled=False)

    def _read(self, name: str, latents: LatentBatch, shape: StepShape, kl: bool) -> Tensor:
        """The loss of a receiver that reads the latents."""
        own, settings = shape.readings[name], self._settings
        receiver = _receiver(name, self._receivers[name], own.head)
        packed = _packed(shape.rows, own.asked, own.targets)
        with self._autocast():
            # What soft tokens add to keys and values is kept nowhere.
            soft_tokens = replace(self._wire.soft_tokens(name, latents), deep=())
            logits = receiver.answer_logits(soft_tokens, packed)
            teacher: Teacher | None = None
            if kl and settings.kl_weight:
                with torch.no_grad():
                    text = _text_source(receiver, shape.rows, own.text)
                    asked = _packed(shape.rows, own.text_asked, own.targets)
                    teacher = teacher_of(receiver.answer_logits(text, asked), settings)
            loss = answer_loss(logits, teacher, packed, settings)["loss"]
            if settings.guard_weight:
                with torch.no_grad():
                    nothing = _text_source(receiver, shape.rows, 0)
                    no_message = receiver.answer_logits(nothing, packed)
                others = soft_tokens.select(range(shape.rows))
                logits = receiver.answer_logits(others, packed)
                loss = loss + guard_loss(logits, no_message, packed, settings.guard_margin)
        return loss


class _FewLayers:
    """Cuts a model down to its first two layers, and counts what the others would take.

    All are like the first but for the last one, which may do less.

    Attributes:
        kept_by_others: bytes that they would keep for the backward pass.
        gradients_of_others: bytes of the gradients of their weights.
    """

    def __init__(self, model: nn.Module, live: LiveBytes) -> None:
        layers = next(
            module
            for module in model.modules()
            if isinstance(module, nn.ModuleList)
            and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
        )
        self.kept_by_others = 0
        self._live, self._num_others = live, max(0, len(layers) - 2)
        trained = (p.numel() for p in layers[2:].parameters() if p.requires_grad)
        self.gradients_of_others = FLOAT32_BYTES * sum(trained)
        del layers[2:]
        layers[0].register_forward_pre_hook(self._enter)
        layers[0].register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self._before = self._live.now

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        if any(value.requires_grad for value in tree_leaves(output)):
            self.kept_by_others += self._num_others * (self._live.now - self._before)


def _encode(encoder: Encoder, shape: StepShape) -> LatentBatch:
    """Latents as the encoder has them, though pooled anyhow."""
    mask = torch.ones(shape.rows, shape.source, dtype=torch.bool)
    sources = encoder.read(encoder.embed(mask.long()), mask, cast(Any, None))
    # The states of all layers stand side by side, if they are asked for.
    missing = encoder.project.in_features - sources.hidden.shape[-1]
    hidden = F.pad(sources.hidden, (0, missing)) if missing else sources.hidden
    is_real = torch.ones(shape.rows, shape.latents, dtype=torch.bool)
    if encoder.config.num_latents is None:
        weights = torch.ones(shape.rows, shape.latents, shape.source)
        pooled = weights.to(hidden.dtype) @ hidden
    else:
        pooled = hidden[:, -shape.latents :]
    latents = encoder.project(pooled)
    for layer in getattr(encoder, "pooled_attention", ()):
        latents = layer(latents, hidden, mask, is_real.float())
    return LatentBatch(latents, is_real, torch.ones(shape.rows))


def _receiver(name: str, model: PreTrainedModel, head: int) -> Receiver:
    tokenizer = SimpleNamespace(eos_token_id=0, pad_token_id=0)
    prompt = SimpleNamespace(head_ids=(0,) * head)
    return Receiver(name, model, cast(Any, tokenizer), cast(Any, prompt))


def _text_source(receiver: Receiver, rows: int, length: int) -> Source:
    mask = torch.ones(rows, length, dtype=torch.bool)
    return Source(receiver.model.get_input_embeddings()(mask.long()), mask)


def _packed(rows: int, length: int, targets: int) -> PackedQuestions:
    ids, places = torch.zeros(rows, length).long(), torch.zeros(targets).long()
    return PackedQuestions(ids, ids, ids, places, places, places, places)


def _writing(shape: StepShape, repeat_share: float) -> StepShape:
    """A step in which receivers repeat texts, or go on with three quarters of them at the most."""
    share = repeat_share + 0.75 * (1 - repeat_share)
    readings = {
        name: replace(own, asked=own.text + _REQUEST_TOKENS, targets=int(share * own.text_targets))
        for name, own in shape.readings.items()
    }
    return replace(shape, readings=readings)
