"""Reading and writing files whole: a reader never sees half a file, a failed write leaves the old
one."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from latentwire.errors import UserError

_PARTIAL = ".partial-"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed over `path`.

    Raises:
        UserError: if the folder cannot be written or the disk is full; what was at `path` stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_PARTIAL}{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write {path}: {reason}. An earlier version of the file is untouched. Free "
            "space or make the folder writable, then run the stage again."
        ) from error


def discard_partial(directory: Path) -> None:
    """Deletes what writers that were killed left in a folder in which nobody else writes."""
    for path in directory.glob(f"{_PARTIAL}*"):
        path.unlink()


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: if it is missing.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it first") from None


def copy_file(source: Path, target: Path) -> None:
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder, each whole."""
    for path in sorted(source.iterdir()):
        copy_file(path, target / path.name)


def save_pretrained(directory: Path, *parts: Any) -> None:
    """Writes models and tokenizers of transformers as `from_pretrained` loads them."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        copy_files(Path(folder), directory)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        UserError: if the file is missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
