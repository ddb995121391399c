"""What the `config.json` of a wire says: all that is needed to write or read its messages, but for
the weights.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from latentwire.config import PromptFormat, Section
from latentwire.config import Wire as WireConfig
from latentwire.errors import UserError
from latentwire.files import read_json, write_json
from latentwire.hub import download

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_FILES = (WEIGHTS, CONFIG, CARD, "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ReceiverFacts:
    """What a wire must know of a receiver to write for it, and to find it again.

    Attributes:
        embedding_dim: width D of its embeddings.
        embedding_rms: root mean square of its embedding matrix.
        num_layers: its layers.
        key_value_dim: width W of keys and values of a layer, side by side; 0 if they are not apart.
        vocab_size: rows of its embedding matrix.
        anchor_ids: token ids of the anchor, as trained with.
        location: folder of its model, or hub repository; none is not known.
        revision: commit of the hub repository; none for a folder.
        dtype: precision in which its weights were held.
        weights_sha256: checksum over the weight files of the folder; none for a repository.
    """

    embedding_dim: int
    embedding_rms: float
    num_layers: int
    key_value_dim: int
    vocab_size: int
    anchor_ids: list[int]
    location: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    weights_sha256: str | None = None


class Description(Section):
    """A wire without its weights.

    Attributes:
        wire: the wire's section of its experiment.
        backbone: configuration of the encoder's transformer.
        widths: encoder tokens per latent for each target ratio.
        receivers: facts of each receiver by name, in the order of the adapters.
        senders: facts of each model whose states the encoder reads, by name; none reads text.
        prompt: how receivers were asked.
        max_source_tokens: the encoder's window, in its tokens; none is its backbone's.
        wire_id: the id of its messages, in hexadecimal digits.
    """

    wire: WireConfig
    backbone: dict[str, Any]
    widths: dict[float, float]
    receivers: dict[str, ReceiverFacts]
    senders: dict[str, ReceiverFacts] = Field({})
    prompt: PromptFormat
    max_source_tokens: int | None
    wire_id: str

    def facts(self, receiver: str) -> ReceiverFacts:
        """Facts of a receiver.

        Raises:
            UserError: if the wire has no adapter for it.
        """
        if receiver not in self.receivers:
            raise UserError(f"no adapter for receiver {receiver!r}; there are {[*self.receivers]}")
        return self.receivers[receiver]

    def write(self, directory: Path) -> None:
        """Writes it; the folders of receivers become relative to this one."""
        content = self._located(
            lambda location: os.path.relpath(location, directory.resolve())
        ).model_dump(mode="json")
        content["widths"] = {f"{ratio:g}": width for ratio, width in self.widths.items()}
        write_json(directory / CONFIG, content)

    @classmethod
    def read(cls, directory: Path) -> "Description":
        """Reads the description of the wire in a folder.

        Raises:
            UserError: if it is missing or malformed.
        """
        content = read_json(directory / CONFIG)
        try:
            description = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{directory / CONFIG} describes no wire that this version reads: "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None
        return description._located(
            lambda location: str((directory.resolve() / location).resolve())
        )

    def without_folders(self) -> "Description":
        """The same for readers elsewhere, who do not have the folders of this machine."""
        return self._located(lambda _: None)

    def _located(self, place: Callable[[str], str | None]) -> "Description":
        """The same with the folders of models somewhere else."""
        return self.model_copy(
            update={
                part: {
                    name: replace(facts, location=place(str(facts.location)))
                    if _is_folder(facts)
                    else facts
                    for name, facts in getattr(self, part).items()
                }
                for part in ("receivers", "senders")
            }
        )


def wire_folder(location: Path | str, revision: str | None = None) -> Path:
    """The folder of a wire that is given as a path or as a hub repository.

    Args:
        location: a folder, or `owner/name`, which may end in `@revision`.
        revision: commit, tag or branch of the repository; none is its main branch.

    Raises:
        UserError: if there is no wire.
    """
    folder = Path(location)
    if not folder.is_dir():
        repo_id, _, named = str(location).partition("@")
        if repo_id.count("/") != 1 or repo_id.startswith((".", "/")):
            raise UserError(
                f"there is no wire at {location}: it is neither a folder nor a hub repository as "
                "owner/name"
            )
        folder = download(repo_id, revision or named or None, _FILES)
    if not (folder / CONFIG).is_file():
        inside = sorted(str(path.parent) for path in folder.glob(f"**/seed*/{CONFIG}"))
        hint = f"; there are {', '.join(inside)}" if inside else ""
        raise UserError(f"{location} holds no wire: it has no {CONFIG}{hint}")
    return folder


def _is_folder(facts: ReceiverFacts) -> bool:
    return facts.location is not None and facts.revision is None
