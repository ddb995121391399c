"""The public interface: what a person does with a wire outside its experiment."""

import importlib.metadata
import inspect
import itertools
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file
from samples import CONTEXTS, QUESTIONS
from trained import save_wire
from transformers import TextStreamer

import latentwire
from latentwire import Latents, UserError, Wire, open_receiver
from latentwire.wire.chunks import split_tokens

ROOT = Path(latentwire.__file__).parents[1]
ASKED = [row[0] for row in QUESTIONS]
ADDRESS = "https://huggingface.co/me/wire/commit/1"
LONG = " ".join(CONTEXTS * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_wire(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def wire(folder) -> Wire:
    return Wire.from_pretrained(folder)


@pytest.fixture(scope="module", params=["llama", "qwen"])
def reader(request, wire):
    return wire.receiver(request.param)


def test_answers_are_those_of_the_receiver_one_by_one(wire, reader):
    latents = [Latents.from_bytes(message.to_bytes()) for message in wire.encode(CONTEXTS, 2)]
    together = reader.answer(latents, ASKED)
    prompt = reader.receiver.prompt
    for message, question, answer in zip(latents, ASKED, together, strict=True):
        ids = prompt.question_ids([question])
        source = wire.receive(reader.name, [message])
        given = reader.receiver.decode(reader.receiver.generate(source, [ids], 32))
        assert given == [answer] == reader.answer(message, [question])
    # Several questions about one message, and the same in another order and batch.
    several = [latents[0], latents[1], latents[0]]
    order = [QUESTIONS[0][0], QUESTIONS[1][0], QUESTIONS[0][1]]
    assert reader.answer(several, order, batch_size=1) == [
        *together[:2],
        *reader.answer(latents[0], [QUESTIONS[0][1]]),
    ]


def test_generate_keeps_positions_and_deep_parts(wire, reader):
    latents = wire.encode(CONTEXTS, 2)
    assert wire.config.adapter.positions == "spread"
    assert reader.inputs_embeds(latents, ASKED).deep
    expected = reader.answer(latents, ASKED, max_new_tokens=12)
    assert reader.generate(latents, ASKED, max_new_tokens=12, do_sample=False) == expected
    uncached = reader.generate(latents, ASKED, max_new_tokens=12, do_sample=False, use_cache=False)
    assert uncached == expected
    assert len(set(expected)) == 3


def test_generate_takes_the_usual_arguments(wire, reader, capsys):
    latents = wire.encode(CONTEXTS[:2], 2)
    beams = reader.generate(
        latents, ASKED[:2], max_new_tokens=6, num_beams=3, num_return_sequences=2, do_sample=False
    )
    assert len(beams) == 4
    torch.manual_seed(1)
    sampled = [
        reader.generate(latents[0], ASKED[0], 8, do_sample=True, temperature=5.0, top_p=0.99)[0]
        for _ in range(3)
    ]
    assert len(set(sampled)) > 1
    (whole,) = reader.generate(latents[0], ASKED[0], max_new_tokens=8, do_sample=False)
    streamer = TextStreamer(reader.receiver.tokenizer, skip_special_tokens=True)
    reader.generate(latents[0], ASKED[0], max_new_tokens=8, do_sample=False, streamer=streamer)
    assert capsys.readouterr().out.strip() == whole
    with pytest.raises(UserError, match="prefill_chunk_size"):
        reader.generate(latents[0], ASKED[0], prefill_chunk_size=4)


def test_inputs_embeds_say_what_they_do_not_carry(wire, reader, caplog):
    prompt = reader.inputs_embeds(wire.encode(CONTEXTS[:1], 2), ASKED[:1])
    assert "keys and values" in caplog.text
    assert not prompt.is_plain


def test_plain_embeddings_are_exact_for_a_plain_wire(tmp_path, caplog):
    plain = Wire.from_pretrained(save_wire(tmp_path, deep_layers=0, positions="consecutive"))
    reader, latents = plain.receiver("qwen"), plain.encode(CONTEXTS, 2)
    prompt = reader.inputs_embeds(latents, ASKED)
    assert prompt.is_plain
    assert not caplog.text
    output = reader.receiver.model.generate(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=reader.receiver.pad_id,
        eos_token_id=sorted(reader.receiver.stop_ids),
    )
    assert reader.receiver.decode(output.tolist()) == reader.answer(latents, ASKED, 10)


def test_a_receiver_opens_without_the_encoder(wire, folder, tmp_path):
    """Of the wire there is nothing but its description and one adapter."""
    shutil.copytree(folder.parents[2] / "receivers", tmp_path / "receivers")
    bare = tmp_path / "wires" / "shared" / "seed1"
    bare.mkdir(parents=True)
    shutil.copy(folder / "config.json", bare)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("adapters.1.")}
    save_file(kept, bare / "model.safetensors")
    latents = wire.encode(CONTEXTS, 4)
    assert open_receiver(bare, "qwen").answer(latents, ASKED) == wire.receiver("qwen").answer(
        latents, ASKED
    )
    with pytest.raises(UserError, match=r"adapter of 'llama' .* does not load"):
        open_receiver(bare, "llama")


def test_a_long_text_is_read_in_parts_and_that_is_said(wire, caplog):
    short, long = wire.encode([CONTEXTS[0], LONG], 2)
    assert "text 1 has" in caplog.text
    assert "text 0 has" not in caplog.text
    chunks = wire._chunks([LONG])[0]
    assert (short.num_chunks, long.num_chunks) == (1, len(chunks))
    assert len(chunks) > 1
    assert list(itertools.chain(*chunks)) == wire.source_ids([LONG])[0]
    parts = [wire.messages(wire.read([ids]), 2)[0].values for ids in chunks]
    torch.testing.assert_close(torch.cat(parts), long.values, atol=2e-3, rtol=1e-3)
    assert Latents.from_bytes(long.to_bytes()).num_chunks is None


def test_parts_end_where_sentences_do():
    ids, ends = list(range(20)), [index in (3, 6, 17) for index in range(20)]
    parts = split_tokens(ids, ends, 8)
    assert parts == [ids[:7], ids[7:15], ids[15:]]
    assert split_tokens(ids[:8], ends, 8) == [ids[:8]]


@pytest.mark.parametrize("mode", ["context", "prompt"])
def test_the_question_goes_where_the_wire_has_it(tmp_path, mode):
    wire = Wire.from_pretrained(save_wire(tmp_path, source_mode=mode))
    reader = wire.receiver("llama")
    if mode == "prompt":
        latents = wire.encode(CONTEXTS, 2, questions=ASKED)
        assert len(reader.answer(latents)) == len(CONTEXTS)
        assert len(latents[0].values) > len(wire.encode(["Ada"], 2, questions=["Who?"])[0].values)
        with pytest.raises(UserError, match="hold the question already"):
            reader.answer(latents, ASKED)
        with pytest.raises(UserError, match="give a question for each"):
            wire.encode(CONTEXTS, 2)
    else:
        with pytest.raises(UserError, match="passages alone"):
            wire.encode(CONTEXTS, 2, questions=ASKED)
        with pytest.raises(UserError, match="give a question"):
            reader.answer(wire.encode(CONTEXTS, 2))


def test_bad_input_is_refused(wire, folder, tmp_path):
    latents = wire.encode(CONTEXTS, 2)
    reader = wire.receiver("qwen")
    with pytest.raises(UserError, match=r"empty text \(number 1\)"):
        wire.encode(["a", " \n"], 2)
    with pytest.raises(UserError, match="list of texts"):
        wire.encode("a", 2)
    with pytest.raises(UserError, match=r"'gemma'.*llama.*qwen"):
        wire.receiver("gemma")
    with pytest.raises(UserError, match=r"'gemma'.*llama.*qwen"):
        open_receiver(folder, "gemma")
    with pytest.raises(UserError, match="3 messages and 2 questions"):
        reader.answer(latents, ASKED[:2])
    with pytest.raises(UserError, match="cannot be read through wire"):
        reader.answer(Latents(latents[0].values, 2.0, bytes(16)), ["a?"])
    with pytest.raises(UserError, match="of width 8 cannot be read"):
        reader.answer(Latents(torch.ones(2, 8), 2.0, wire.wire_id), ["a?"])
    with pytest.raises(UserError, match="reads 4096 positions"):
        reader.answer(latents[0], ["why " * 5000])
    with pytest.raises(UserError, match="neither a folder nor a hub repository"):
        Wire.from_pretrained(tmp_path / "no" / "where" / "at-all")
    with pytest.raises(UserError, match=r"no config\.json; there are .*seed1"):
        Wire.from_pretrained(folder.parents[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(widths={"4": "wide"}), "widths.4"),
        (lambda d: d["backbone"].update(model_type="mystery"), "no known architecture"),
        (lambda d: d.pop("wire_id"), "wire_id"),
        (lambda d: d.update(surprise=1), "surprise"),
    ],
)
def test_a_malformed_description_is_refused(folder, tmp_path, change, message):
    copy = tmp_path / "wire"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text())
    change(content)
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Wire.from_pretrained(copy)


def test_another_model_is_not_taken_for_the_receiver(folder, tmp_path):
    receivers = folder.parents[2] / "receivers"
    with pytest.raises(UserError, match=r"is not the receiver 'qwen'.*embedding width"):
        open_receiver(folder, "qwen", path=receivers / "llama")
    tuned = tmp_path / "tuned"
    shutil.copytree(receivers / "qwen", tuned)
    assert open_receiver(folder, "qwen", path=tuned).name == "qwen"
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="SHA-256"):
        open_receiver(folder, "qwen", path=tuned)


def test_a_results_folder_can_be_moved(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder.parents[2], moved)
    location = Wire.from_pretrained(moved / "wires/shared/seed1").receivers["qwen"].location
    assert location == str(moved / "receivers" / "qwen")
    content = (folder / "config.json").read_text()
    assert str(folder.parents[2]) not in content
    # The results may be behind a link, on another disk.
    (tmp_path / "link").symlink_to(moved)
    through_link = Wire.from_pretrained(tmp_path / "link" / "wires/shared/seed1")
    through_link.save_pretrained(tmp_path / "link" / "wires/again/seed1")
    assert open_receiver(moved / "wires/again/seed1", "qwen").name == "qwen"
    shutil.rmtree(moved / "receivers")
    with pytest.raises(UserError, match="receiver 'qwen'"):
        open_receiver(moved / "wires/shared/seed1", "qwen")


def test_a_wire_of_the_hub_comes_from_the_local_cache(wire, folder, tmp_path, monkeypatch):
    """The cache as `huggingface_hub` lays it out; nothing is asked of the network."""
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub"
    repository = cache / "models--me--wire"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = [
        Wire.from_pretrained("me/wire"),
        Wire.from_pretrained("me/wire", revision=commit),
        Wire.from_pretrained(f"me/wire@{commit}"),
    ]
    assert {loaded.wire_id for loaded in found} == {wire.wire_id}
    with pytest.raises(UserError, match="cannot reach me/other"):
        Wire.from_pretrained("me/other")


def test_push_uploads_what_others_need_and_no_path_of_ours(wire, monkeypatch):
    uploaded = {}

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            uploaded["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return huggingface_hub.CommitInfo(ADDRESS, "", "", "1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert wire.push_to_hub("me/wire", private=True) == ADDRESS
    assert uploaded.pop("repo") == ("me/wire", True, True)
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= uploaded.keys()
    facts = json.loads(uploaded["config.json"])["receivers"]["qwen"]
    assert facts["location"] is None
    assert facts["weights_sha256"]


def test_the_card_gets_what_was_measured(tmp_path):
    folder = save_wire(tmp_path)
    sentence = "Measured results stand in the experiment's `metrics.csv`."
    (folder / "README.md").write_text(f"# Wire\n\n{sentence}\n")
    assert sentence in Wire.from_pretrained(folder).card
    columns = "task,method,receiver,wire,target_ratio,seed,metric,value,n"
    rows = [
        "all,latent,llama,shared,4,1,f1,0.9,12",
        "all,latent,llama,shared,4,1,relative_f1,0.95,12",
        "all,latent,llama,shared,4,2,f1,0.1,12",
        "all,latent,llama,other,4,1,f1,0.2,12",
        "all,control_zero,llama,shared,4,1,f1,0.3,12",
        "hard,latent,llama,shared,4,1,f1,0.4,12",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join([columns, *rows]) + "\n")
    wire = Wire.from_pretrained(folder)
    assert "| llama | latent | 4 | – | – | 0.900 | 95.0% | – |" in wire.card
    assert wire.card.count("| llama |") == 1
    wire.save_pretrained(tmp_path / "saved")
    assert "12 test questions" in Wire.from_pretrained(tmp_path / "saved").card


def test_public_names_and_signatures_are_frozen():
    """A change here is a change for users: name it in the changelog."""
    assert latentwire.__all__ == [
        "LatentReceiver",
        "LatentStore",
        "Latents",
        "SoftPrompt",
        "UserError",
        "Wire",
        "__version__",
        "open_receiver",
    ]
    expected = {
        "Wire.from_pretrained": "location, device='cpu', revision=None",
        "Wire.save_pretrained": "self, directory",
        "Wire.push_to_hub": "self, repo_id, private=None, commit_message='Upload a wire'",
        "Wire.encode": "self, texts, ratio, questions=None, batch_size=32, sender=None",
        "Wire.receiver": "self, name, path=None",
        "Latents.to_bytes": "self, dtype='fp16'",
        "Latents.from_bytes": "payload",
        "LatentReceiver.answer": "self, latents, questions=None, max_new_tokens=32, batch_size=32",
        "LatentReceiver.generate": "self, latents, prompts=None, max_new_tokens=64, **settings",
        "LatentReceiver.inputs_embeds": "self, latents, prompts=None",
        "LatentReceiver.deepened": "self, prompt",
        "LatentStore.put": "self, messages, dtype='fp16'",
        "LatentStore.get": "self, key",
        "LatentStore.keys": "self",
        "open_receiver": "location, name, device='cpu', revision=None, path=None",
    }
    assert {name: _parameters(name) for name in expected} == expected


def _parameters(name: str) -> str:
    first, _, rest = name.partition(".")
    value = getattr(latentwire, first)
    signature = inspect.signature(getattr(value, rest) if rest else value)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))[1:-1]


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, latentwire; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout.split() == ["False", "False"]


def test_no_extra_of_the_workflow_is_needed(folder, tmp_path):
    """Runs with what the package itself asks for, and what that brings along."""
    for distribution in _needed():
        for file in distribution.files or []:
            link = tmp_path / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(file.parts[0]))))
    assert (tmp_path / "torch").exists()
    assert not (tmp_path / "snakemake").exists()
    assert not (tmp_path / "sklearn").exists()
    code = f"""
from latentwire import Wire
from latentwire.cli import main
wire = Wire.from_pretrained({str(folder)!r})
latents = wire.encode(["Ada was born in Ashford."], ratio=2)
print(len(wire.receiver("qwen").answer(latents, ["Where?"])))
assert main(["--print-completion"]) == 2
"""
    outcome = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == "1"


def _needed() -> list[importlib.metadata.Distribution]:
    """The distributions that the package needs, without its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, found = [*map(Requirement, project["dependencies"])], {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            # The CUDA packages of torch, in its build for the CPU.
            continue
        waiting += map(Requirement, found[name].requires or [])
    return [*found.values()]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "latentwire", source / "latentwire", ignore=ignored)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path / "wheels"), str(source)),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name.startswith(f"latentwire-{latentwire.__version__}-")
    target = tmp_path / "installed"
    shutil.unpack_archive(wheel, target, "zip")
    assert (target / "latentwire/py.typed").is_file()
    top = {path.name for path in target.iterdir()}
    assert top == {"latentwire", f"latentwire-{latentwire.__version__}.dist-info"}
    (metadata,) = importlib.metadata.distributions(path=[str(target)])
    entry = next(iter(metadata.entry_points))
    assert (entry.name, entry.value) == ("latentwire", "latentwire.cli:main")
    shown = subprocess.run(
        [sys.executable, "-m", "latentwire", "--version"],
        capture_output=True,
        text=True,
        cwd=target,
        check=True,
    )
    assert shown.stdout.strip() == latentwire.__version__
