"""The store of messages: several writers, killed writers, and files that are no store."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import latentwire
from latentwire import Latents, LatentStore, UserError

ROOT = Path(latentwire.__file__).parents[1]
WRITER = """
import sys
import torch
from latentwire import Latents, LatentStore
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with LatentStore(path) as store:
    for number in range(count):
        key = f"{name}-{number}"
        values = torch.full((4, 32), float(number % 50))
        store.put([(f"{key}{part}", Latents.quantise(values, 4.0, bytes(16))) for part in "ab"])
        print(key, flush=True)
"""


def message(value: float = 1.0) -> Latents:
    return Latents.quantise(torch.full((4, 32), value), 4.0, bytes(16))


def start_writer(path: Path, name: str, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_messages_come_back_by_key(tmp_path):
    with LatentStore(tmp_path / "new" / "store.sqlite") as store:
        store.put([("a", message(1)), ("b", message(2))], "int8")
        # The first message of a key stays.
        store.put([("a", message(3)), ("c", message(4))])
        assert len(store) == 3
        assert sorted(store.keys()) == ["a", "b", "c"]
        assert store.missing(["x", "a", "y"]) == ["x", "y"]
        assert "a" in store
        assert "x" not in store
    with LatentStore(tmp_path / "new" / "store.sqlite", create=False) as store:
        values = [store.get(key).values[0, 0].item() for key in "abc"]
        assert values == pytest.approx([1, 2, 4], rel=0.01)
        assert store.header().dtype.name == "int8"
        with pytest.raises(UserError, match=r"no message 'x', of 3 messages"):
            store.get("x")


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path):
    def failing():
        yield "a", message()
        raise RuntimeError("the encoder failed")

    with LatentStore(tmp_path / "store") as store:
        with pytest.raises(RuntimeError, match="the encoder failed"):
            store.put(failing())
        with pytest.raises(UserError, match="cannot be used"):
            store.put([("a", message()), (None, message())])
        assert list(store.keys()) == []
        store.put([("b", message())])
        assert "b" in store


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "store.sqlite"
    writers = [start_writer(path, f"w{number}", 40) for number in range(4)]
    # Two writers of the same keys do not get into each other's way.
    writers.append(start_writer(path, "w0", 40))
    assert [writer.communicate() and writer.returncode for writer in writers] == [0] * 5
    with LatentStore(path) as store:
        assert len(store) == 4 * 40 * 2


def test_killed_writers_lose_nothing_that_they_said_was_there(tmp_path):
    path, draw = tmp_path / "store.sqlite", random.Random(1)
    said: list[str] = []
    for round_ in range(3):
        writers = [start_writer(path, f"r{round_}w{number}", 100_000) for number in range(2)]
        first = [writer.stdout.readline().strip() for writer in writers]
        deadline = time.monotonic() + draw.uniform(0.05, 0.4)
        while time.monotonic() < deadline:
            pass
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer, line in zip(writers, first, strict=True):
            rest = writer.communicate()[0].split("\n")
            assert writer.returncode == -signal.SIGKILL
            # The last line may have been cut by the kill.
            said += [line, *rest[:-1]]
    said = [key for key in said if key]
    assert len(said) >= 6
    with LatentStore(path) as store:
        assert store.missing([f"{key}{part}" for key in said for part in "ab"]) == []
        # Of the two messages that go together there is never one alone.
        keys = set(store.keys())
        assert {key[:-1] + "a" for key in keys} | {key[:-1] + "b" for key in keys} == keys
        for key in draw.sample(sorted(keys), min(200, len(keys))):
            assert store.get(key).values.shape == (4, 32)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_damage_is_found_on_reading(tmp_path):
    path = tmp_path / "store.sqlite"
    with LatentStore(path) as store:
        store.put([("a", message()), ("b", message())])
    connection = sqlite3.connect(path)
    payload = bytearray(connection.execute("SELECT payload FROM messages").fetchone()[0])
    payload[-1] ^= 1
    connection.execute("UPDATE messages SET payload = ? WHERE key = 'a'", [bytes(payload)])
    connection.commit()
    connection.close()
    with LatentStore(path) as store:
        with pytest.raises(UserError, match=r"store\.sqlite: 'a': the message is damaged"):
            store.get("a")
        assert store.get("b").values.shape == (4, 32)


def test_other_files_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no database " * 100)
    with pytest.raises(UserError, match="file is not a database"):
        LatentStore(text)
    assert text.read_text() == "no database " * 100
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE people (name TEXT)")
    connection.close()
    with pytest.raises(UserError, match="no store of messages"):
        LatentStore(other)
    newer = tmp_path / "newer.sqlite"
    LatentStore(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(UserError, match="is of version 2; this program reads 1"):
        LatentStore(newer)
    with pytest.raises(UserError, match=r"missing\.sqlite does not exist"):
        LatentStore(tmp_path / "missing.sqlite", create=False)
    assert not (tmp_path / "missing.sqlite").exists()
    with pytest.raises(UserError, match="cannot be used"):
        LatentStore(text / "below" / "a-file")
