"""Whether experiments of full-size models run from data to report, with their models shrunk.

    python benchmarks/shrunk.py config/{squad-small,squad,telepathy-squad}.yaml

Each runs on the CPU under the name `<experiment>-shrunk`. Receivers, encoder and compressor are
random models of the same architectures, few and narrow layers of them, with tokenizers and chat
templates of their own; the questions are in SQuAD's layout, and the wire is trained by two
processes. All other settings stay. Prints JSON: the jobs of Snakemake and the seconds of each
experiment. Ends with the error of the first stage that fails.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from latentwire.data.pocket import Passage, mixed_passages
from latentwire.files import save_pretrained, write_json, write_text
from latentwire.layout import Layout

RESULTS = Path("results")
TRAIN_ARTICLES, TEST_ARTICLES, PASSAGES = 8, 4, 3
VOCABULARY = {"llama": 600, "qwen": 700}
SPECIAL = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
CHAT = {
    "llama": "{{ bos_token }}{% for turn in messages %}[{{ turn['role'] }}]\n\n"
    "{{ turn['content'] }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant]\n\n"
    "{% endif %}",
    "qwen": "{% for turn in messages %}<{{ turn['role'] }}>\n{{ turn['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}",
}
SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "hidden_size": 64, "rope_parameters": LLAMA_3_ROPE},
    "qwen": {"model_type": "qwen2", "hidden_size": 48},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs="+", help="experiments to run")
    parser.add_argument("--train", type=Path, help="a file in SQuAD's layout instead")
    parser.add_argument("--test", type=Path, help="another")
    parser.add_argument("--cores", default="2", help="of Snakemake (default: 2)")
    options = parser.parse_args()
    outcomes = []
    for config in options.configs:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        started = time.perf_counter()
        layout = Layout(f"{settings['experiment']}-shrunk", RESULTS)
        shutil.rmtree(layout.root, ignore_errors=True)
        path = shrink(settings, layout, options.train, options.test)
        run(path, options.cores)
        outcomes.append(
            {
                "experiment": layout.experiment,
                "jobs": len([*(layout.root / "benchmarks").glob("*.tsv")]),
                "report": layout.report.is_file(),
                "seconds": time.perf_counter() - started,
            }
        )
    print(json.dumps(outcomes, indent=2))


def run(config: Path, cores: str) -> None:
    """Every stage, the training by two processes."""
    snakemake = [sys.executable, "-m", "snakemake"]
    options = ["--cores", cores, "--configfile", str(config)]
    training = [sys.executable, "-m", "latentwire", "train-wire", "--config", str(config)]
    for command in (
        [*snakemake, "prepare", *options],
        [*training, "--processes", "2"],
        [*snakemake, *options],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)


def shrink(settings: dict[str, Any], layout: Layout, train: Path | None, test: Path | None) -> Path:
    """Writes the shrunk experiment with its models and data; returns its file."""
    folder = layout.root / "shrunk"
    files = {"train": train, "test": test}
    drawn = mixed_passages("shrunk")
    texts: list[str] = []
    for split, count in (("train", TRAIN_ARTICLES), ("test", TEST_ARTICLES)):
        if files[split] is None:
            articles = [[*itertools.islice(drawn, PASSAGES)] for _ in range(count)]
            files[split] = folder / f"{split}.json"
            write_json(files[split], squad(articles))
        texts += [*contents(json.loads(files[split].read_text(encoding="utf-8")))]
    torch.manual_seed(1)
    receivers = []
    for receiver in settings["receivers"]:
        kept = {key: receiver[key] for key in ("name", "dtype")}
        place = make_model(folder / receiver["name"], receiver["name"], texts)
        receivers.append({**kept, "source": "path", "path": str(place)})
    encoder = settings["wire"]["encoder"]
    backbone = encoder["backbone"].rpartition("/")[2].partition("@")[0].lower()
    if "/" in encoder["backbone"]:
        encoder["backbone"] = str(make_model(folder / backbone, backbone, texts))
    settings["wire"]["latent_dim"] = FAMILIES[family(backbone)]["hidden_size"]
    settings |= {
        "experiment": layout.experiment,
        "seeds": settings["seeds"][:1],
        "threads": 1,
        "device": "cpu",
        "data": {"source": "json", **{k: str(v) for k, v in files.items()}, "dev_share": 0.25},
        "receivers": receivers,
    }
    for variant in settings.get("variants", ()):
        if senders := variant["wire"].get("senders"):
            # A wire's name says which layers it reads.
            before, layer = "-".join(map(str, senders["layers"])), SHAPE["num_hidden_layers"] - 1
            variant["name"] = variant["name"].replace(f"layer{before}", f"layer{layer}")
            senders["layers"] = [layer]
    if "baselines" in settings:
        settings["baselines"]["llmlingua2"] = str(make_classifier(folder / "llmlingua2", texts))
    path = folder / "config.yaml"
    write_text(path, yaml.safe_dump(settings, sort_keys=False))
    return path


def squad(articles: Sequence[Sequence[Passage]]) -> dict[str, Any]:
    return {
        "data": [
            {
                "title": f"{article[0].people[0]} {number}",
                "paragraphs": [
                    {
                        "context": passage.context,
                        "qas": [
                            {
                                "id": f"{passage.people[0]}-{number}-{place}-{index}",
                                "question": fact.question,
                                "answers": [{"text": fact.value}],
                            }
                            for index, fact in enumerate(passage.facts)
                        ],
                    }
                    for place, passage in enumerate(article)
                ],
            }
            for number, article in enumerate(articles)
        ]
    }


def contents(file: dict[str, Any]) -> Iterator[str]:
    for article in file["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
            yield from (question["question"] for question in paragraph["qas"])


def family(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


def make_model(folder: Path, name: str, texts: Sequence[str]) -> Path:
    own = family(name)
    tokenizer = make_tokenizer(own, texts)
    shape: dict[str, Any] = SHAPE | FAMILIES[own]
    config = AutoConfig.for_model(
        **shape,
        intermediate_size=2 * shape["hidden_size"],
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_pretrained(folder, AutoModelForCausalLM.from_config(config), tokenizer)
    return folder


def make_tokenizer(own: str, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[own],
        special_tokens=[*SPECIAL[own].values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL[own])
    made.chat_template = CHAT[own]
    return made


def make_classifier(folder: Path, texts: Sequence[str]) -> Path:
    special = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=[*special.values()],
        unk_token=special["unk_token"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special |= {"cls_token": special["bos_token"], "sep_token": special["eos_token"]}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    config = XLMRobertaConfig(
        vocab_size=len(made),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
        num_labels=2,
        initializer_range=1.0,
    )
    save_pretrained(folder, XLMRobertaForTokenClassification(config), made)
    return folder


if __name__ == "__main__":
    main()
