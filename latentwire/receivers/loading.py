"""Opening a prepared receiver folder: `receiver.json` says where the model is."""

import hashlib
import inspect
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.files import read_json
from latentwire.layout import Layout
from latentwire.receivers.prompt import Prompt
from latentwire.receivers.receiver import Receiver

DESCRIPTION = "receiver.json"
BUNDLED = Path(__file__).parents[2] / "resources" / "receivers"

# LLM.int8() (arXiv 2208.07339), and QLoRA's (arXiv 2305.14314), whose scales are quantised as well.
_QUANTISATIONS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
}

# The loading of weights is no work worth a bar of its own in a stage's log.
disable_progress_bar()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a prepared receiver.

    Raises:
        UserError: if the receiver is not prepared or has no tokenizer.
    """
    location = model_location(directory)
    return open_tokenizer(**location)


def load_receiver(
    experiment: Experiment, layout: Layout, name: str, sharded: bool = False
) -> Receiver:
    """Loads a prepared receiver, frozen, on the experiment's device; it reads text and a question.

    Args:
        experiment: it has the receiver's settings.
        layout: where it is prepared.
        name: the receiver's.
        sharded: whether the processes that train together share its layers out.

    Raises:
        UserError: if the receiver is not prepared, or its weights or tokenizer cannot be read.
    """
    settings = next(receiver for receiver in experiment.receivers if receiver.name == name)
    location = model_location(layout.receiver(name))
    # Layers that are shared out never are on one device together.
    model = open_model(
        **location, dtype=settings.dtype, device="cpu" if sharded else experiment.device
    )
    if sharded:
        # FSDP takes half a second to import, and few stages need it.
        from latentwire.receivers.sharding import shard_layers

        shard_layers(model.model.layers, experiment.device)
        nn.Module.to(model, device=torch.device(experiment.device))
    tokenizer = open_tokenizer(**location)
    prompt = Prompt(tokenizer, experiment.prompt.template, experiment.prompt.anchor_text)
    return Receiver(name, model, tokenizer, prompt)


def latent_reader(experiment: Experiment, receiver: Receiver) -> Receiver:
    """The same model, put to read latents as the wire's source mode asks.

    Where the question is inside the latents, only the anchor follows them.
    """
    if experiment.wire.source_mode == "context":
        return receiver
    prompt = Prompt(receiver.tokenizer, "{source}", experiment.prompt.anchor_text)
    return Receiver(receiver.name, receiver.model, receiver.tokenizer, prompt)


def model_location(directory: Path) -> dict[str, Any]:
    """Where a prepared receiver's model is: `location` and `revision` (none for a folder)."""
    description = read_json(directory / DESCRIPTION)
    if description["revision"] is not None:
        return {"location": description["model"], "revision": description["revision"]}
    return {"location": str((directory / description["model"]).resolve()), "revision": None}


def receiver_origin(experiment: Experiment, layout: Layout, name: str) -> dict[str, Any]:
    """Where a wire finds a prepared receiver again, and how it knows it: facts of `ReceiverFacts`.

    As `model_location` gives it, with `dtype` and `weights_sha256`.
    """
    settings = next(receiver for receiver in experiment.receivers if receiver.name == name)
    location = model_location(layout.receiver(name))
    checksum = weights_checksum(location["location"])
    return {**location, "dtype": settings.dtype, "weights_sha256": checksum}


def weights_checksum(location: str) -> str | None:
    """SHA-256 over the weight files of a folder; a hub commit already pins its files."""
    if not Path(location).is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(location).glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def named_model_location(experiment: Experiment, layout: Layout, name: str) -> dict[str, Any]:
    """Where the model is that the configuration names: a receiver, a folder or `owner/name@commit`.

    As `model_location` gives it.
    """
    if name in {receiver.name for receiver in experiment.receivers}:
        return model_location(layout.receiver(name))
    repository, _, revision = name.partition("@")
    return {"location": repository, "revision": revision or None}


def open_tokenizer(location: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder or a hub repository.

    Raises:
        UserError: if there is none, or it is not a fast tokenizer with an end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    except Exception as error:  # transformers raises many kinds for the same absence
        raise UserError(_advice(location, "tokenizer", error)) from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {location} must be a fast tokenizer with an end-of-sequence token; "
            "save one with `tokenizer.save_pretrained` from a `PreTrainedTokenizerFast`"
        )
    return tokenizer


def open_model(
    location: str, revision: str | None, dtype: str, device: str = "cpu"
) -> PreTrainedModel:
    """Loads a causal language model from safetensors, without remote code.

    Args:
        location: folder or hub repository.
        revision: commit of the repository.
        dtype: as a receiver's in the configuration.
        device: where it is put.

    Raises:
        UserError: if it cannot be loaded, or is not built as receivers must be.
    """
    options: dict[str, Any] = {"dtype": dtype}
    if dtype in _QUANTISATIONS:
        options = {"dtype": "bfloat16", **_quantised(location, dtype, device)}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            location,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            **options,
        )
    except Exception as error:  # transformers raises many kinds for the same absence
        raise UserError(_advice(location, "model", error)) from error
    trunk = getattr(model, "model", None)
    takes_embeddings = "inputs_embeds" in inspect.signature(model.forward).parameters
    if not (takes_embeddings and hasattr(trunk, "layers") and hasattr(model, "lm_head")):
        raise UserError(
            f"{location} holds a {type(model).__name__}, which cannot be a receiver: one takes "
            "`inputs_embeds`, and has its layers in `model.layers` and its head in `lm_head`, as "
            "Llama, Qwen, Mistral and Gemma do"
        )
    # Its own `to` refuses quantised models, which are where they belong already.
    nn.Module.to(model, device=torch.device(device))
    return model


def _quantised(location: str, dtype: str, device: str) -> dict[str, Any]:
    """What has the matrices of a model's layers quantised as they are read."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"{location}: `dtype: {dtype}` of a receiver needs the package bitsandbytes: pip "
            "install 'latentwire[quantised]'; or take `dtype: bfloat16`"
        )
    # It tells of every product that it computes in half precision, as it is meant to.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return {
        "quantization_config": BitsAndBytesConfig(**_QUANTISATIONS[dtype]),
        "device_map": {"": device},
    }


def _advice(location: str, part: str, error: Exception) -> str:
    if Path(location).is_dir():
        fix = (
            f"a receiver folder holds config.json, model.safetensors and tokenizer.json, as "
            f"`save_pretrained` of model and tokenizer write them; it has: "
            f"{', '.join(sorted(path.name for path in Path(location).iterdir())) or 'nothing'}"
        )
    else:
        fix = (
            "check the repository and the revision; gated models need `hf auth login` and the "
            "licence accepted on the hub; offline, download it first with `hf download`"
        )
    return f"cannot load the {part} of {location}: {error}\n{fix}"
