"""Files are whole or as they were before, on a full disk too."""

import contextlib
import errno
import resource

import pytest
from test_wire import make_wire

from latentwire import cli
from latentwire.data.tables import Example, read_examples, write_examples
from latentwire.errors import UserError
from latentwire.files import write_text
from latentwire.training.state import Identity, StateDirectory


@contextlib.contextmanager
def room_for(num_bytes: int):
    """No file grows beyond this: a full disk that needs no disk of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_text(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with room_for(100), pytest.raises(UserError, match=f"cannot write {path}: File too large"):
        write_text(path, "new" * 100)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_table(tmp_path):
    path = tmp_path / "train.parquet"
    old = [Example("1", "a", "Text.", "Question?", ["Answer"], "task")]
    write_examples(path, old)
    with room_for(100), pytest.raises(UserError, match="cannot write"):
        write_examples(path, old * 2)
    assert read_examples(path) == old


def test_weights(llama, tmp_path):
    wire = make_wire(llama)
    wire.save_pretrained(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        room_for(1 << 20),
        pytest.raises(UserError, match=r"cannot write .*model\.safetensors: .*File too large"),
    ):
        wire.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_training_state(tmp_path):
    with StateDirectory(tmp_path, Identity({}, "")) as state:
        state.save(1, {}, wait=True)
        with room_for(1000), pytest.raises(UserError, match="cannot write"):
            state.save(2, {}, wait=True)
    with StateDirectory(tmp_path, Identity({}, "")) as state:
        loaded = state.load()
    assert loaded is not None
    assert loaded[0] == 1


def test_a_full_disk_is_no_fault_of_the_program(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main([]) == cli.USER_ERROR
    assert "'metrics.jsonl'. Free space" in capsys.readouterr().err
