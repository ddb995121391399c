"""The stage `receiver`: a folder of its own for a bundled, pretrained, local or hub model."""

import logging
from pathlib import Path
from typing import Any, cast

from torch import nn

from latentwire.config import Experiment, ReceiverSource
from latentwire.config import Receiver as ReceiverConfig
from latentwire.errors import UserError
from latentwire.files import copy_files, write_json
from latentwire.hub import download
from latentwire.layout import Layout
from latentwire.receivers.loading import (
    BUNDLED,
    DESCRIPTION,
    open_model,
    open_tokenizer,
    weights_checksum,
)
from latentwire.receivers.pretrain import pretrain_receiver

logger = logging.getLogger(__name__)


def build_receiver(experiment: Experiment, layout: Layout, name: str) -> None:
    """Prepares one receiver and describes it in `receiver.json`, written last.

    Raises:
        UserError: if the model or its tokenizer cannot be had.
    """
    settings = next(receiver for receiver in experiment.receivers if receiver.name == name)
    directory = layout.receiver(name)
    if settings.source == ReceiverSource.bundled:
        _copy_bundled(name, directory)
        _describe(directory, settings)
    elif settings.source == ReceiverSource.pretrain:
        pretrain_receiver(experiment, layout, name, lambda: _describe(directory, settings))
    elif settings.path is not None:
        _describe(directory, settings, str(settings.path.resolve()))
    elif settings.repo_id is not None and settings.revision is not None:
        commit = resolve_commit(settings.repo_id, settings.revision)
        _describe(directory, settings, settings.repo_id, commit)


def _describe(
    directory: Path, settings: ReceiverConfig, model: str = ".", revision: str | None = None
) -> None:
    location = model if revision else str((directory / model).resolve())
    write_json(
        directory / DESCRIPTION,
        {
            "name": settings.name,
            "source": settings.source,
            "model": model,
            "revision": revision,
            **_facts(location, revision, settings),
        },
    )


def _facts(location: str, revision: str | None, settings: ReceiverConfig) -> dict[str, Any]:
    tokenizer = open_tokenizer(location, revision)
    model = open_model(location, revision, settings.dtype)
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight.float()
    norms = embedding.norm(dim=1)
    logger.info(
        "%s: %s, %d parameters", settings.name, type(model).__name__, model.num_parameters()
    )
    return {
        "architecture": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "max_positions": model.config.max_position_embeddings,
        "embedding_rms": embedding.square().mean().sqrt().item(),
        "embedding_norm_mean": norms.mean().item(),
        "embedding_norm_max": norms.max().item(),
        "weights_sha256": weights_checksum(location),
    }


def _copy_bundled(name: str, directory: Path) -> None:
    bundled = BUNDLED / name
    if not bundled.is_dir():
        available = sorted(path.name for path in BUNDLED.glob("*/")) if BUNDLED.is_dir() else []
        raise UserError(
            f"receivers: no bundled receiver is called {name!r}; there are {available}. Use one of "
            "these names, or another `source`"
        )
    copy_files(bundled, directory)


def resolve_commit(repo_id: str, revision: str) -> str:
    """The commit hash of a revision, from the hub or its local cache.

    Raises:
        UserError: if the repository cannot be reached and is not in the cache.
    """
    # The snapshot folder is named after the commit; one small file is enough to learn it.
    return download(repo_id, revision, ["config.json"]).name
