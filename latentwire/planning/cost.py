"""What a training costs, in operations and bytes: arithmetic alone.

A multiplication and an addition are two operations. A linear layer takes two for each weight and
token; its backward pass takes as many for the gradients of its inputs, and as many again for those
of its weights (arXiv 2001.08361).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from latentwire.config import Training

FLOAT32_BYTES = 4
# Iterations of torch.optim.Muon.
_NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class ModelShape:
    """What operations depend on.

    Attributes:
        layer_parameters: weights of its layers: all but embeddings and language-model head.
        num_layers: layers with attention.
        attention_dim: width of a layer's attention heads side by side.
        hidden_size: width of a token's state.
        vocabulary: tokens that the language-model head tells apart; 0 without a head.
        ending_parameters: those of the layers' weights that work where something is predicted
            alone, in the last layer of a receiver.
    """

    layer_parameters: int
    num_layers: int
    attention_dim: int
    hidden_size: int
    vocabulary: int = 0
    ending_parameters: int = 0


@dataclass(frozen=True)
class Work:
    """What a model reads in a step.

    Attributes:
        tokens: positions of all rows.
        squares: sum over the rows of their squared lengths.
        predictions: positions whose logits are computed.
    """

    tokens: float
    squares: float
    predictions: float = 0.0


@dataclass(frozen=True)
class StepWork:
    """What is read in a step.

    Attributes:
        encoder: by the encoder.
        latents: by every adapter.
        students: by each receiver, of latents.
        teachers: by each receiver, of the text.
    """

    encoder: Work
    latents: float
    students: Mapping[str, Work]
    teachers: Mapping[str, Work]


@dataclass(frozen=True)
class WireShape:
    """The models of a wire's training.

    Attributes:
        encoder: the encoder's backbone.
        encoder_passes: 3 if its weights are trained, 2 if updates of low rank are, 1 if nothing is.
        latent_parameters: weights that each latent passes, of the encoder's end and each adapter.
        receivers: the frozen receivers.
    """

    encoder: ModelShape
    encoder_passes: int
    latent_parameters: int
    receivers: Mapping[str, ModelShape]


def model_flops(shape: ModelShape, work: Work, passes: int) -> float:
    """Operations of a model in a step.

    Attention is counted in full, as it is computed: masks leave nothing out.

    Args:
        shape: the model.
        work: what it reads.
        passes: 1 is forward alone, 2 with gradients of inputs, 3 with those of weights too.
    """
    weights = (shape.layer_parameters - shape.ending_parameters) * work.tokens
    ending = shape.ending_parameters + shape.hidden_size * shape.vocabulary
    weights += ending * work.predictions
    # Scores and sums of values; neither has weights, so that their backward pass is always whole.
    attention = 4 * shape.num_layers * shape.attention_dim * work.squares
    return 2 * passes * weights + (attention if passes == 1 else 3 * attention)


def step_flops(
    wire: WireShape, work: StepWork, settings: Training, with_repetition: bool = False
) -> dict[str, float]:
    """Operations of a step that answers questions, by what they are for.

    Args:
        wire: the models.
        work: what they read.
        settings: which receivers read, and whether as teachers too.
        with_repetition: whether to count what activation checkpointing computes again.
    """
    again = with_repetition and settings.checkpoint_activations
    share = 1 / len(wire.receivers) if settings.receivers_per_step == "one" else 1.0

    def reading(shape: ModelShape, read: Work, passes: int) -> float:
        return model_flops(shape, read, passes) + (again and model_flops(shape, read, 1))

    flops = dict.fromkeys(("encoder", "adapters", "receivers", "teachers"), 0.0)
    flops["encoder"] = reading(wire.encoder, work.encoder, wire.encoder_passes)
    flops["adapters"] = share * 6 * wire.latent_parameters * work.latents
    for name, shape in wire.receivers.items():
        student = work.students[name]
        flops["receivers"] += share * reading(shape, student, 2)
        if settings.guard_weight:
            # The messages of others, and none.
            guard = reading(shape, student, 2) + model_flops(shape, student, 1)
            flops["receivers"] += share * guard
        if settings.kl_weight:
            flops["teachers"] += share * model_flops(shape, work.teachers[name], 1)
    return flops


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Operations with which Muon orthogonalises the update of a matrix (Jordan et al. 2024)."""
    short, long = sorted((rows, columns))
    return _NEWTON_SCHULZ_STEPS * (4.0 * short**2 * long + 2.0 * short**3)


def optimiser_bytes(matrix_parameters: int, other_parameters: int) -> int:
    """Muon's momentum of the matrices, and AdamW's two moments of all others, in float32."""
    return FLOAT32_BYTES * (matrix_parameters + 2 * other_parameters)


def state_bytes(matrix_parameters: int, other_parameters: int) -> int:
    """A training state on disk: trained weights and optimiser state."""
    trained = FLOAT32_BYTES * (matrix_parameters + other_parameters)
    return trained + optimiser_bytes(matrix_parameters, other_parameters)
