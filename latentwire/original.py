"""The original LatentWire's commands, as a thin layer over configuration and verbs.

What a flag becomes is in `docs/original-commands.md`. Both commands start from the settings of
`config/squad-original.yaml`: 32 learned queries, the question inside the latents.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from latentwire.cli import USER_ERROR
from latentwire.cli import main as run_verb
from latentwire.config import Experiment
from latentwire.configuration import dump_yaml, load_experiment
from latentwire.errors import UserError
from latentwire.files import write_text

BASE = Path(__file__).parents[1] / "config" / "squad-original.yaml"
DATASETS = {
    "squad": "7b6d24c440a36b6815f21b70d25016731768db1f",
    "squad_v2": "3ffb306f725f7d2ce8394bc1873b24868140c412",
    "hotpotqa": "1908d6afbbead072334abe2965f91bd2709910ab",
}
EVALUATED = ["text", "closed_book", "truncate_head", "latent", "control_shuffled"]
_ALWAYS = "accepted and of no effect"

logger = logging.getLogger(__name__)


def train(arguments: Sequence[str] | None = None) -> int:
    """Prepares receivers and data, and trains the wire.

    Returns:
        The exit code: 0, or that of the verb that failed.
    """
    return _guarded(_train, arguments)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """Evaluates what `train` left in a folder, and prints the scores.

    Returns:
        The exit code: 0, or that of the verb that failed.
    """
    return _guarded(_evaluate, arguments)


def _train(arguments: Sequence[str] | None) -> int:
    options = _train_parser().parse_args(arguments)
    folder: Path = options.save_dir
    experiment = load_experiment(BASE, train_overrides(options))
    names = [receiver.name for receiver in experiment.receivers]
    return _run(
        experiment,
        folder,
        [*(["receiver", "--name", name] for name in names), ["prepare"], ["train-wire"]],
        options.dry_run,
    )


def _train_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python latentwire/train.py", allow_abbrev=False)
    add = parser.add_argument
    add("--llama_id", default="meta-llama/Llama-3.1-8B-Instruct", help="first receiver")
    add("--qwen_id", default="Qwen/Qwen2.5-7B-Instruct", help="second receiver")
    add("--encoder_id", help="the model that the encoder starts from")
    add("--samples", type=int, default=87599, help="training questions")
    add("--epochs", type=float, default=24)
    add("--batch_size", type=int, default=64)
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--latent_len", type=int, default=32, help="latents of a message")
    add("--d_z", type=int, default=256, help="width of a latent")
    add("--dataset", default="squad", choices=[*DATASETS, "pocket"])
    add("--K", type=int, default=4, help="depth of the K-token loss")
    add("--first_token_ce_weight", type=float, default=0.5)
    add("--warm_anchor_text", default="Answer: ")
    add("--calibration", default="embed_rms", choices=["embed_rms", "none"])
    add("--use_fp16", action="store_true", help="bfloat16 under autocast")
    add("--checkpoint_interval", type=float, default=300, help="seconds between saves")
    add("--save_dir", type=Path, default=Path("results/original"), help="the results folder")
    for flag in ("--k_token_ce_from_prefix", "--auto_resume", "--use_optimized_dataloader"):
        add(flag, action="store_true", help=_ALWAYS)
    add("--dataloader_pin_memory", action="store_true", help=_ALWAYS)
    add("--num_dataloader_workers", type=int, help=_ALWAYS)
    _shared_options(parser)
    return parser


def train_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Configuration keys and values of the flags of `train.py`."""
    receivers = [
        {
            "name": name,
            **_location(location),
            "dtype": "bfloat16" if options.use_fp16 else "float32",
        }
        for name, location in (("llama", options.llama_id), ("qwen", options.qwen_id))
    ]
    return {
        "experiment": options.save_dir.name,
        "seeds": [1],
        "device": options.device,
        "threads": options.threads,
        "receivers": receivers,
        **_data(options.dataset, options.samples),
        "wire.encoder.backbone": _backbone(options),
        "wire.encoder.num_latents": options.latent_len,
        "wire.latent_dim": options.d_z,
        "wire.adapter.calibration": options.calibration,
        "training.epochs": options.epochs,
        "training.passages_per_step": options.batch_size * options.gradient_accumulation_steps,
        "training.micro_batches": options.gradient_accumulation_steps,
        "training.k_token_depth": options.K,
        "training.first_token_weight": options.first_token_ce_weight,
        "training.precision": "bfloat16" if options.use_fp16 else "float32",
        "training.checkpoint_interval_seconds": options.checkpoint_interval,
        "prompt.anchor_text": options.warm_anchor_text,
        "evaluation.methods": EVALUATED,
    }


def _location(name: str) -> dict[str, str]:
    """Where a receiver is: a folder, a bundled one, or a repository at a commit."""
    from latentwire.receivers.loading import BUNDLED

    if Path(name).is_dir():
        return {"source": "path", "path": name}
    if "/" not in name and (BUNDLED / name).is_dir():
        return {"source": "bundled"}
    repo_id, _, revision = name.partition("@")
    return {"source": "hub", "repo_id": repo_id, "revision": revision or _commit(repo_id)}


def _commit(repo_id: str) -> str:
    """The commit that our experiments use of a repository, or its present one."""
    for receiver in load_experiment(BASE).receivers:
        if receiver.repo_id == repo_id and receiver.revision is not None:
            return receiver.revision
    from latentwire.receivers.build import resolve_commit

    return resolve_commit(repo_id, "main")


def _data(dataset: str, samples: int) -> dict[str, Any]:
    if dataset == "pocket":
        return {"data": {"source": "pocket", "train_passages": samples}}
    return {
        "data.dataset": dataset,
        "data.revision": DATASETS[dataset],
        "data.max_train_questions": samples,
    }


def _backbone(options: argparse.Namespace) -> str:
    if options.encoder_id is not None:
        return str(options.encoder_id)
    is_hub = _location(options.llama_id)["source"] == "hub"
    return load_experiment(BASE).wire.encoder.backbone if is_hub else "llama"


def _evaluate(arguments: Sequence[str] | None) -> int:
    parser = _Parser(prog="python latentwire/eval.py", allow_abbrev=False)
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="the folder that train.py saved to")
    add("--samples", type=int, help="test questions; all if left out")
    add("--dataset", choices=[*DATASETS, "pocket"], help="must be that of the training")
    add("--calibration", choices=["embed_rms", "none"], help="must be that of the training")
    add("--latent_anchor_text", help="must be that of the training")
    _shared_options(parser, device=None, threads=None)
    options = parser.parse_args(arguments)
    folder = _experiment_folder(options.ckpt)
    trained = load_experiment(folder / "config.yaml")
    _check_agreement(options, trained)
    experiment = load_experiment(folder / "config.yaml", _evaluation_overrides(options, trained))
    names = [receiver.name for receiver in experiment.receivers]
    return _run(
        experiment,
        folder,
        [
            ["prepare"],
            *(["evaluate-text", "--receiver", name] for name in names),
            *(["evaluate-wire"], ["metrics"], ["statistics"], ["headline"], ["show"]),
        ],
        options.dry_run,
    )


def _experiment_folder(checkpoint: Path) -> Path:
    """The experiment's folder, also where a wire's in it was given."""
    for folder in (checkpoint, *checkpoint.resolve().parents[:3]):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"--ckpt {checkpoint}: there is no config.yaml; give train.py's --save_dir")


def _check_agreement(options: argparse.Namespace, trained: Experiment) -> None:
    data = trained.data
    known = {
        "dataset": data.dataset if data.source == "hub" else data.source,
        "calibration": trained.wire.adapter.calibration,
        "latent_anchor_text": trained.prompt.anchor_text,
    }
    for flag, value in known.items():
        given = getattr(options, flag)
        if given not in (None, value):
            raise UserError(f"--{flag} {given!r}: the wire was trained with {value!r}")


def _evaluation_overrides(options: argparse.Namespace, trained: Experiment) -> dict[str, Any]:
    given = {"device": options.device, "threads": options.threads}
    if trained.data.source == "pocket":
        if options.samples is not None:
            raise UserError("--samples: the pocket corpus is asked whole; leave it out")
    else:
        given["data.max_test_questions"] = options.samples
    return {key: value for key, value in given.items() if value is not None}


def _shared_options(
    parser: argparse.ArgumentParser, device: str | None = "cuda", threads: int | None = 8
) -> None:
    parser.add_argument("--device", default=device, choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument(
        "--dry_run", action="store_true", help="print the configuration; nothing is run"
    )


def _run(
    experiment: Experiment, folder: Path, verbs: Sequence[Sequence[str]], dry_run: bool
) -> int:
    """Runs verbs one after the other on an experiment whose results are in a folder."""
    if dry_run:
        print(dump_yaml(experiment), end="")
        return 0
    config = folder / "config.yaml"
    write_text(config, dump_yaml(experiment))
    place = ["--config", str(config), "--results", str(folder.resolve().parent)]
    for verb, *options in verbs:
        if code := run_verb([verb, *options, *place]):
            return code
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see `{self.prog} --help` and docs/original-commands.md")


def _guarded(work: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None) -> int:
    try:
        return work(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
