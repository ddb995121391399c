"""The commands that use a trained wire: streams, exit codes, and what they refuse."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import CONTEXTS, QUESTIONS
from trained import save_wire

import latentwire
from latentwire import Latents, LatentStore, Wire, cli
from latentwire.commands import COMMANDS, WIRE_VARIABLE, read_corpus

ROOT = Path(latentwire.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_wire(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(autouse=True)
def _place(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(WIRE_VARIABLE, str(folder))
    Path("passage.txt").write_text(CONTEXTS[0] + "\n")
    rows = [{"key": f"k{index}", "text": text} for index, text in enumerate(CONTEXTS)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*arguments: str) -> int:
    return cli.main(arguments)


def pipe(command: str, **kwargs) -> subprocess.CompletedProcess:
    """Runs a line of shell in which `latentwire` is this package's."""
    shell = f'latentwire() {{ "{sys.executable}" -m latentwire "$@"; }}; set -o pipefail; {command}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", shell], capture_output=True, env=environment, **kwargs)


def test_encode_ask_inspect(folder, capfd):
    assert run("encode", "passage.txt", "-o", "passage.lw", "--ratio", "4") == 0
    wire = Wire.from_pretrained(folder)
    (latents,) = wire.encode(CONTEXTS[:1], 4)
    assert Path("passage.lw").read_bytes() == latents.to_bytes()
    assert capfd.readouterr().out == ""
    question = QUESTIONS[0][0]
    assert run("ask", "passage.lw", question, "--receiver", "qwen") == 0
    (answer,) = wire.receiver("qwen").answer(latents, [question])
    assert capfd.readouterr().out == f"{answer}\n"
    assert run("ask", "passage.lw", *QUESTIONS[0], "--json") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["question"] for row in rows] == QUESTIONS[0]
    assert {row["receiver"] for row in rows} == {"llama"}
    assert run("inspect", "passage.lw", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown == {
        "ratio": 4.0,
        "bytes": len(latents.to_bytes()),
        "dtype": "fp16",
        "latents": len(latents.values),
        "width": 24,
        "wire": wire.wire_id.hex(),
    }
    assert run("inspect", "passage.lw") == 0
    assert wire.wire_id.hex() in capfd.readouterr().out


def test_streams(folder):
    line = (
        'latentwire encode - --dtype int8 < passage.txt | latentwire ask - "Where?" --receiver qwen'
    )
    outcome = pipe(line)
    wire = Wire.from_pretrained(folder)
    latents = Latents.from_bytes(wire.encode(CONTEXTS[:1], 2)[0].to_bytes("int8"))
    (answer,) = wire.receiver("qwen").answer(latents, ["Where?"])
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.decode() == f"{answer}\n"


def test_a_message_is_not_written_to_a_terminal():
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "latentwire", "encode", "passage.txt"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        command, stdout=slave, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(slave)
    os.close(master)
    assert outcome.returncode == 2
    assert "a message is binary" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "no.txt"], "cannot read no.txt"),
        (["encode", "empty.txt", "-o", "x"], "empty.txt holds no text"),
        (["encode", "garbage.lw", "-o", "x"], "garbage.lw is no text in UTF-8"),
        (["encode", "passage.txt", "-o", "x", "--ratio", "3"], "ratio 3 is not one of the wire's"),
        (["encode", "passage.txt", "-o", "x", "--question", "Who?"], "compresses passages alone"),
        (["encode", "passage.txt", "-o", "x", "--wire", "nowhere"], "there is no wire at nowhere"),
        (["encode", "passage.txt", "-o", "x", "--device", "tpu"], "give cpu or cuda"),
        (["encode", "passage.txt", "-o", "-", "--json"], "give -o FILE"),
        (["encode", "passage.txt", "-o", "passage.txt/x"], "cannot write passage.txt/x"),
        (["encode", "passage.txt", "--ratoi", "4"], "unrecognised arguments: --ratoi"),
        (["encode"], "the following arguments are required: TEXT"),
        (["ask"], "give the file of a message"),
        (["ask", "good.lw"], "give a question"),
        (["ask", "garbage.lw", "Who?"], "garbage.lw: this is not a LatentWire message"),
        (["ask", "cut.lw", "Who?"], "it was cut or altered"),
        (["ask", "newer.lw", "Who?"], "message version 2 is not known; this program reads 1"),
        (["ask", "foreign.lw", "Who?"], "use the wire that wrote it"),
        (["ask", "good.lw", "Who?", "--receiver", "gemma"], "there are ['llama', 'qwen']"),
        (["ask", "good.lw", "Who?", "--receiver-path", "."], "cannot load the model"),
        (["ask", "good.lw", "Who?", "--max-new-tokens", "0"], "give 1 or more"),
        (["ask", "good.lw", "Who?", "--key", "a"], "--store and --key go together"),
        (["ask", "--store", "no.sqlite", "--key", "a", "Who?"], "no.sqlite does not exist"),
        (["inspect", "garbage.lw"], "this is not a LatentWire message"),
        (["inspect", "."], "cannot read ."),
        (["encode-corpus", "bad.jsonl", "-o", "s"], "bad.jsonl, line 2: the keys 'key' and 'text'"),
    ],
)
def test_bad_input_is_one_message_and_a_code(folder, capfd, arguments, message):
    good = Wire.from_pretrained(folder).encode(CONTEXTS[:1], 2)[0]
    payload = good.to_bytes()
    files = {
        "empty.txt": b" \n",
        "garbage.lw": bytes(range(256)),
        "good.lw": payload,
        "cut.lw": payload[:-5],
        "newer.lw": payload[:5] + b"\x02" + payload[6:],
        "foreign.lw": Latents(good.values, 2.0, bytes(16)).to_bytes(),
        "bad.jsonl": b'{"key": "a", "text": "A."}\n{"key": "b"}\n',
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    assert run(*arguments) == 2
    out, error = capfd.readouterr()
    assert message in error
    assert "Traceback" not in error
    assert out == ""
    assert not Path("x").exists()


def test_garbage_on_stdin_leaves_no_traceback():
    outcome = pipe('latentwire ask - "Who?"', input=os.urandom(5000))
    assert outcome.returncode == 2
    assert b"stdin: this is not a LatentWire message" in outcome.stderr
    assert b"Traceback" not in outcome.stderr
    assert outcome.stdout == b""


def test_a_wire_must_be_named(monkeypatch, capfd):
    monkeypatch.delenv(WIRE_VARIABLE)
    assert run("encode", "passage.txt", "-o", "x") == 2
    assert f"Give --wire with its folder or hub repository, or set {WIRE_VARIABLE}" in (
        capfd.readouterr().err
    )


def test_encode_corpus_goes_on_where_it_stopped(folder, capfd):
    with LatentStore("store.sqlite") as store:
        wire = Wire.from_pretrained(folder)
        store.put([("k1", wire.encode(CONTEXTS[1:2], 2)[0])], "int8")
    command = ["encode-corpus", "data.jsonl", "-o", "store.sqlite", "--dtype", "int8", "--json"]
    assert run(*command) == 0
    out, error = capfd.readouterr()
    assert json.loads(out) == {"store": "store.sqlite", "encoded": 2, "messages": 3}
    assert "1 of 3 texts are there already" in error
    assert "2/2 texts, 0 s left" in error
    assert run(*command) == 0
    assert json.loads(capfd.readouterr().out)["encoded"] == 0
    with LatentStore("store.sqlite") as store:
        assert sorted(store.keys()) == ["k0", "k1", "k2"]
    assert run("ask", "--store", "store.sqlite", "--key", "k2", "What is the job of Dado?") == 0
    assert capfd.readouterr().out.count("\n") == 1
    assert run("ask", "--store", "store.sqlite", "--key", "k9", "Who?") == 2
    assert "has no message 'k9'" in capfd.readouterr().err
    # Messages of another kind do not go into the same store.
    assert run("encode-corpus", "data.jsonl", "-o", "store.sqlite", "--ratio", "4") == 2
    assert "choose another store" in capfd.readouterr().err


def test_a_corpus_may_be_in_the_layout_of_the_data_tables():
    row = {"example_id": "1", "passage_id": "p", "context": "A\u2028b.", "question": "Q"}
    lines = [json.dumps(row, ensure_ascii=False), "", json.dumps(row | {"example_id": "2"})]
    assert read_corpus(lines, "file") == {"p": "A\u2028b."}
    with pytest.raises(latentwire.UserError, match="line 2: the key 'a' has another text"):
        read_corpus(['{"key": "a", "text": "x"}', '{"key": "a", "text": "y"}'], "file")


def test_every_command_shows_examples_and_exit_codes(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as left:
            run(name, "--help")
        assert left.value.code == 0
        shown = capsys.readouterr().out
        assert f"  latentwire {name}" in shown
        assert "exit codes: 0 success, 2 bad input" in shown


def test_help_is_quick_and_grouped():
    command = [sys.executable, "-m", "latentwire", "--help"]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5
    groups = shown.stdout.split("\n\n")
    users = next(group for group in groups if group.startswith("use a trained wire"))
    stages = next(group for group in groups if group.startswith("stages of an experiment"))
    assert all(f"\n  {name} " in users for name in COMMANDS)
    assert all(f"\n  {name} " in stages for name in cli.VERBS)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_verbs_and_options(capsys, shell):
    with pytest.raises(SystemExit) as left:
        run("--print-completion", shell)
    assert left.value.code == 0
    script = capsys.readouterr().out
    assert "encode-corpus" in script
    assert "--max-new-tokens" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_two_processes_share_a_message_and_nothing_else(folder, tmp_path):
    """The reader's folder of the wire holds no encoder, and its socket no text."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder.parents[2] / "receivers", tmp_path / "b" / "receivers")
    bare = tmp_path / "b" / "wires" / "shared" / "seed1"
    bare.mkdir(parents=True)
    shutil.copy(folder / "config.json", bare)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("adapters.")}
    save_file(kept, bare / "model.safetensors")
    command = [sys.executable, str(ROOT / "examples/two_processes.py"), "passage.txt", "Where?"]
    options = ["--wire", str(folder), "--receiver", "qwen", "--ratio", "2"]
    outcome = subprocess.run(
        [*command, *options, "--reader-wire", str(bare)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert outcome.returncode == 0, outcome.stderr
    shown = json.loads(outcome.stdout)
    wire = Wire.from_pretrained(folder)
    payload = wire.encode(CONTEXTS[:1], 2)[0].to_bytes("int8")
    (answer,) = wire.receiver("qwen").answer(Latents.from_bytes(payload), ["Where?"])
    assert shown == {
        "answer": answer,
        "received_bytes": len(payload) + len("Where?"),
        "has_encoder": False,
        "message_bytes": len(payload),
    }


def test_the_vllm_example_is_python_and_says_what_it_needs():
    path = ROOT / "examples/vllm_prompt_embeds.py"
    compile(path.read_text(), str(path), "exec")
    shown = subprocess.run(
        [sys.executable, str(path), "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "vLLM" in shown.stdout
