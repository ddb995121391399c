"""An experiment so small that its trainings take a second, and the results of what goes before."""

import dataclasses
import json
from pathlib import Path

import pytest
from samples import make_receiver

from latentwire.config import Baselines, Encoder, Experiment, PocketData, Receiver, Training
from latentwire.config import Wire as WireConfig
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import write_examples
from latentwire.files import save_pretrained, write_json
from latentwire.layout import Layout
from latentwire.receivers import pretrain

STEPS = 6
TIMES = ("seconds", "tokens_per_second")
EXPERIMENT = Experiment(
    experiment="tiny",
    threads=1,
    data=PocketData(train_passages=12, dev_passages=2, test_passages=2),
    receivers=[Receiver(name=name, source="bundled") for name in ("llama", "qwen")],
    wire=WireConfig(
        receivers=["llama"], latent_dim=8, target_ratios=[4], encoder=Encoder(backbone="llama")
    ),
    training=Training(
        steps=STEPS,
        passages_per_step=2,
        max_questions_per_passage=2,
        warmup_steps=1,
        log_every_steps=1,
        dev_every_steps=STEPS,
    ),
    baselines=Baselines(steps=STEPS, passages_per_step=2),
)


def prepare_tiny(results: Path) -> Layout:
    """Data, and receivers of one layer."""
    layout = Layout(EXPERIMENT.experiment, results)
    corpus = read_pocket(EXPERIMENT.data)
    for split in ("train", "dev", "test"):
        examples = [example for article in getattr(corpus, split) for example in article]
        write_examples(layout.split(split), examples)
    for receiver in EXPERIMENT.receivers:
        _make_small(receiver.name, layout.receiver(receiver.name))
    return layout


def _make_small(name: str, folder: Path) -> None:
    recipe = pretrain.RECIPES[name]
    small = {"hidden_size": 32 * 3, "intermediate_size": 64, "num_hidden_layers": 1}
    with pytest.MonkeyPatch.context() as patch:
        smaller = dataclasses.replace(recipe, sizes=recipe.sizes | small)
        patch.setitem(pretrain.RECIPES, name, smaller)
        receiver = make_receiver(name)
    save_pretrained(folder, receiver.model, receiver.tokenizer)
    write_json(folder / "receiver.json", {"model": ".", "revision": None})


def artefact(folder: Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The files of what was trained, and its metrics without their times."""
    files = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ("metrics.jsonl", "resumes.json")
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return files, [{key: row[key] for key in row if key not in TIMES} for row in rows]
