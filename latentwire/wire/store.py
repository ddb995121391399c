"""Many messages by key, in one SQLite file that several processes may write.

A message is there whole or not at all, whenever a writer dies. The file keeps a write-ahead log
beside it, which needs a disk of the machine itself: network file systems do not share it.
"""

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from latentwire.errors import UserError
from latentwire.wire.payload import Header, Latents

# "LWIR"; together with the version it says that a file is one of ours.
_APPLICATION_ID, _VERSION = 0x4C574952, 1
_TABLE = "CREATE TABLE messages (key TEXT PRIMARY KEY NOT NULL, payload BLOB NOT NULL) STRICT"
_BUSY_SECONDS = 60.0
# The most values that every build of SQLite takes in one statement.
_AT_ONCE = 500


class LatentStore:
    """Messages by key. Each process, and each thread, opens its own; close it, or use `with`.

    Args:
        path: the file; a new one is made if there is none.
        create: otherwise a missing file is an error.

    Raises:
        UserError: if the file is no store, is of a newer version, or cannot be opened.
    """

    def __init__(self, path: Path | str, create: bool = True) -> None:
        self.path = Path(path)
        with self._explained():
            if not self.path.exists():
                if not create:
                    raise UserError(
                        f"the store {path} does not exist; `latentwire encode-corpus` makes one"
                    )
                _create(self.path)
            self._connection = _connect(self.path)
            try:
                self._check()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> "LatentStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def __len__(self) -> int:
        with self._explained():
            return int(self._connection.execute("SELECT count(*) FROM messages").fetchone()[0])

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def keys(self) -> Iterator[str]:
        """All keys, in no particular order."""
        with self._explained():
            for (key,) in self._connection.execute("SELECT key FROM messages"):
                yield key

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that the store does not hold, in their order."""
        present: set[str] = set()
        with self._explained():
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT key FROM messages WHERE key IN ({marks})"  # noqa: S608 (marks only)
                present.update(key for (key,) in self._connection.execute(query, some))
        return [key for key in keys if key not in present]

    def put(self, messages: Iterable[tuple[str, Latents]], dtype: str = "fp16") -> None:
        """Adds messages, all or none; they are on disk when this returns.

        A key that is there already keeps the message that it has.

        Raises:
            UserError: if a message cannot be written as `dtype`, the disk is full, or other writers
                kept the store busy for a minute.
        """
        rows = [(key, message.to_bytes(dtype)) for key, message in messages]
        with self._explained(), self._transaction():
            self._connection.executemany(
                "INSERT INTO messages VALUES (?, ?) ON CONFLICT (key) DO NOTHING", rows
            )

    def get(self, key: str) -> Latents:
        """The message of a key.

        Raises:
            UserError: if there is none, or it is damaged.
        """
        try:
            return Latents.from_bytes(self.get_bytes(key))
        except UserError as error:
            raise UserError(f"{self.path}: {key!r}: {error}") from error

    def get_bytes(self, key: str) -> bytes:
        """The message of a key as bytes, unchecked.

        Raises:
            UserError: if there is none.
        """
        query = "SELECT payload FROM messages WHERE key = ?"
        with self._explained():
            row = self._connection.execute(query, [key]).fetchone()
        if row is None:
            raise UserError(
                f"the store {self.path} has no message {key!r}, of {len(self)} messages"
            )
        return bytes(row[0])

    def header(self) -> Header | None:
        """The header of one of the messages; none if there are none."""
        with self._explained():
            row = self._connection.execute("SELECT payload FROM messages LIMIT 1").fetchone()
        return None if row is None else Header.read(row[0])

    def _check(self) -> None:
        if self._pragma("application_id") != _APPLICATION_ID:
            raise UserError(f"{self.path} is a SQLite file, but no store of messages")
        if (version := self._pragma("user_version")) != _VERSION:
            raise UserError(
                f"the store {self.path} is of version {version}; this program reads {_VERSION}"
            )

    def _pragma(self, name: str) -> object:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"the store {self.path} cannot be used: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _create(path: Path) -> None:
    """Makes an empty store, whole: whichever of several processes comes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        new = Path(folder) / path.name
        with contextlib.closing(_connect(new)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(new)
