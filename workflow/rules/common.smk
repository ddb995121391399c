# What the rules share: the experiment, its paths, and what each stage depends on besides its files.
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from latentwire.config import NOT_SCIENCE, RELAY_METHODS, Method, ReceiverSource
from latentwire.configuration import dump_yaml, validate
from latentwire.errors import UserError
from latentwire.files import write_text
from latentwire.fingerprint import code_fingerprint
from latentwire.layout import Layout

# A stage runs under the interpreter that runs Snakemake, whether its environment is active or not.
shell.prefix(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")

# The report has pages of the name "Statistics" both of Snakemake's and of ours; where a caption links
# is of no matter here, but docutils would warn readers in every caption.
os.environ |= {"DOCUTILSCONFIG": "workflow/report/docutils.conf"}


def load_experiment():
    try:
        return validate(config)
    except UserError as error:
        raise WorkflowError(str(error)) from None


EXPERIMENT = load_experiment()
LAYOUT = Layout(EXPERIMENT.experiment)
CONFIG = str(LAYOUT.config)
RECEIVERS = [receiver.name for receiver in EXPERIMENT.receivers]
WIRES = {wire: EXPERIMENT.of_wire(wire) for wire in EXPERIMENT.wires}
NUM_GPUS = 1 if EXPERIMENT.device == "cuda" else 0
TRAINS_COMPRESSOR = (
    Method.llmlingua2 in EXPERIMENT.evaluation.methods and EXPERIMENT.baselines.llmlingua2 is None
)

# The pages of the report: category and label. The caption has the page's name.
PAGES = {
    "headline": ("Overview", "Headline"),
    "quality": ("Quality", "Every method, receiver and budget"),
    "breakdown": ("Quality", "F1 by task, length and question"),
    "examples": ("Quality", "Examples: passage, question and answers"),
    "metrics": ("Quality", "All metrics"),
    "ratio": ("Compression", "F1 against compression ratio"),
    "bytes": ("Compression", "F1 against bytes sent"),
    "baselines": ("Baselines", "Latents and their opponents"),
    "controls": ("Controls", "Is the message read?"),
    "statistics": ("Statistics", "Declared comparisons"),
    "non_inferiority": ("Statistics", "Is the text score maintained?"),
    "training": ("Training", "Training curves"),
    "cost": ("Cost", "Cost beside quality"),
}
if EXPERIMENT.probe:
    PAGES["probe"] = ("Probe", "Is the answer in the sender's states?")
if EXPERIMENT.senders:
    PAGES["telepathy"] = ("Telepathy", "F1 by sender and receiver")
if EXPERIMENT.swept:
    PAGES["layers"] = ("Telepathy", "F1 by the sender's layers")
FIGURES = [page for page in PAGES if page not in ("quality", "examples", "metrics")]

# The module that runs a stage and the configuration keys that it reads. These and no others make
# the stage run again; editing a module reruns the stages that import it.
STAGES = {
    "receiver": ("latentwire.receivers.build", []),
    "prepare": (
        "latentwire.data.prepare",
        ["data", "length", "prompt", "wire.source_mode", "wire.encoder.backbone"],
    ),
    "train_wire": (
        "latentwire.training.wire",
        ["threads", "device", "prompt", "length.max_source_tokens", "wire", "training"],
    ),
    "evaluate_text": (
        "latentwire.evaluation.evaluate",
        [
            "threads",
            "device",
            "prompt",
            "wire.source_mode",
            "wire.target_ratios",
            "evaluation.batch_passages",
            "evaluation.max_new_tokens",
            "evaluation.seed",
        ],
    ),
    "train_compressor": ("latentwire.baselines.classifier", ["threads", "device", "baselines"]),
    "evaluate_compressed": (
        "latentwire.baselines.compressed",
        [
            "threads",
            "device",
            "prompt",
            "wire.source_mode",
            "wire.target_ratios",
            "baselines",
            "evaluation.batch_passages",
            "evaluation.max_new_tokens",
        ],
    ),
    "evaluate_relay": (
        "latentwire.baselines.relay",
        [
            "threads",
            "device",
            "prompt",
            "wire.target_ratios",
            "evaluation.batch_passages",
            "evaluation.max_new_tokens",
        ],
    ),
    "evaluate_wire": (
        "latentwire.evaluation.evaluate",
        [
            "threads",
            "device",
            "prompt",
            "wire",
            "evaluation.batch_passages",
            "evaluation.max_new_tokens",
            "evaluation.seed",
        ],
    ),
    "probe": (
        "latentwire.baselines.probe",
        [
            "threads",
            "device",
            "prompt",
            "probe",
            "evaluation.batch_passages",
            "evaluation.max_new_tokens",
        ],
    ),
    "metrics": (
        "latentwire.statistics.metrics",
        [
            "evaluation.methods",
            "variants",
            "statistics.confidence",
            "statistics.resamples",
            "statistics.seed",
        ],
    ),
    "statistics": (
        "latentwire.statistics.comparisons",
        ["evaluation.methods", "variants", "statistics"],
    ),
    "headline": ("latentwire.reporting.headline", ["seeds"]),
    "figures": (
        "latentwire.reporting.pages",
        [
            "seeds",
            "evaluation.methods",
            "variants",
            "statistics.confidence",
            "statistics.resamples",
            "statistics.seed",
        ],
    ),
    "provenance": ("latentwire.reporting.provenance", list(type(EXPERIMENT).model_fields)),
}


def code(stage, without=()):
    """Fingerprint of the code that a stage runs."""
    entry, _ = STAGES[stage]
    return code_fingerprint(entry, without)


def settings(stage, experiment=EXPERIMENT, also=(), **more):
    """The configuration that a stage reads, keys of this job alone among it."""
    _, keys = STAGES[stage]
    values = experiment.model_dump(mode="json", exclude=NOT_SCIENCE)
    return {key: setting(key, values) for key in [*keys, *also]} | more


def setting(key, value):
    for part in key.split("."):
        value = value[part]
    return value


def wire_settings(stage, wire):
    """What a stage reads of a wire's own settings, and of the receivers that it is for."""
    own = WIRES[wire]
    names = {reader.name for reader in own.readers} | set(own.wire.sender_names)
    used = [own.model_dump(mode="json") for own in EXPERIMENT.receivers if own.name in names]
    return settings(stage, own, receivers=used)


def receiver_config(wildcards):
    return next(
        receiver for receiver in EXPERIMENT.receivers if receiver.name == wildcards.receiver
    )


def is_pretrained(wildcards):
    return receiver_config(wildcards).source == ReceiverSource.pretrain


def receiver_code(wildcards):
    """Receivers that come ready-made do not depend on how others are pretrained."""
    pretraining = [] if is_pretrained(wildcards) else ["latentwire.receivers.pretrain"]
    return code("receiver", without=pretraining)


def receiver_settings(wildcards):
    keys = ["threads", "device", "prompt", "pretraining"] if is_pretrained(wildcards) else []
    return settings(
        "receiver",
        also=keys,
        receiver=receiver_config(wildcards).model_dump(mode="json"),
    )


def text_settings(stage, wildcards):
    """What a stage reads that asks one receiver with text."""
    return settings(
        stage,
        receiver=receiver_config(wildcards).model_dump(mode="json"),
    )


def receiver_files(wildcards):
    """Files of a receiver that comes from a folder; what is missing there the stage explains."""
    receiver = receiver_config(wildcards)
    folders = {
        ReceiverSource.bundled: Path("resources/receivers") / receiver.name,
        ReceiverSource.path: receiver.path,
    }
    folder = folders.get(receiver.source)
    return sorted(map(str, folder.glob("*.*"))) if folder else []


def prepared_receivers(names=RECEIVERS):
    return [LAYOUT.receiver(name) / "receiver.json" for name in names]


def receivers_of_wire(wildcards):
    """The receivers that a wire is for, and the one that its encoder starts from."""
    own = WIRES[wildcards.wire]
    backbone = {own.wire.encoder.backbone} & set(RECEIVERS)
    names = {receiver.name for receiver in own.readers} | backbone | set(own.wire.sender_names)
    return prepared_receivers(sorted(names))


def is_adapted(wire):
    return WIRES[wire].wire.encoder_of is not None


def parent_of_wire(wildcards):
    """The weights of the other wire that a wire is made from, if there is one."""
    parent = WIRES[wildcards.wire].wire.parent
    return [LAYOUT.wire(parent, wildcards.seed) / "model.safetensors"] if parent else []


def training_length(wildcards):
    """Steps, or epochs: the longest trainings start first, or the last of them runs alone."""
    training = WIRES[wildcards.wire].training
    return training.steps or training.epochs


def trained_files(wire, seed):
    folder = LAYOUT.wire(wire, seed)
    files = {
        "weights": "model.safetensors",
        "config": "config.json",
        "card": "README.md",
        "metrics": "metrics.jsonl",
    }
    return {name: folder / file for name, file in files.items()}


def any_of(names):
    """A pattern of these names; of nothing that could be one where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def pretrained_receivers(wildcards):
    names = [
        receiver.name
        for receiver in EXPERIMENT.receivers
        if receiver.source == ReceiverSource.pretrain
    ]
    if not names:
        raise WorkflowError(
            "receivers: none has `source: pretrain`; set it for the receivers to make again"
        )
    return [LAYOUT.receiver(name) / "receiver.json" for name in names]


def data_files(wildcards):
    """The user's own files, where the data come from files; missing ones are told by key."""
    data = EXPERIMENT.data
    if data.source != "json":
        return []
    files = {f"data.{split}": getattr(data, split) for split in ("train", "dev", "test")}
    files = {key: path for key, path in files.items() if path is not None}
    missing = [f"{key}: {path} does not exist" for key, path in files.items() if not path.is_file()]
    if missing:
        raise WorkflowError("; ".join([*missing, "give the path of a file"]))
    return list(files.values())


def wire_runs():
    """Folders of the shared wire, one for each training seed."""
    return [LAYOUT.wire(EXPERIMENT.wire.name, seed) for seed in EXPERIMENT.seeds]


def text_predictions(receiver):
    methods = EXPERIMENT.evaluation.text_methods
    return [LAYOUT.predictions(method, receiver) for method in methods]


def compressed_predictions(receiver):
    methods = EXPERIMENT.evaluation.compressor_methods
    return [LAYOUT.predictions(method, receiver) for method in methods]


def relay_predictions(receiver):
    return [LAYOUT.predictions(method, receiver) for method in RELAY_METHODS]


def compressors():
    """The models that shorten text, those of them that the workflow makes."""
    trained = [LAYOUT.compressor / "model.safetensors"] if TRAINS_COMPRESSOR else []
    return prepared_receivers({EXPERIMENT.llmlingua_model} & set(RECEIVERS)) + trained


def probe_files(sender):
    """The outcome of a probe, and the record of what was tried."""
    outcome = LAYOUT.probe(sender)
    return [outcome, outcome.with_suffix(".json")]


def all_probes():
    return [path for name in RECEIVERS if EXPERIMENT.probe for path in probe_files(name)]


def wire_predictions(wire, folder, seed):
    """Prediction files of one of the wires; folder and seed may be wildcards."""
    own = WIRES[wire]
    return [
        LAYOUT.predictions(method, receiver.name, folder, seed)
        for method in own.evaluation.wire_methods
        for receiver in own.readers
    ]


def all_predictions():
    texts = [
        path
        for receiver in RECEIVERS
        for path in text_predictions(receiver) + compressed_predictions(receiver)
    ]
    if EXPERIMENT.senders:
        texts += [path for receiver in RECEIVERS for path in relay_predictions(receiver)]
    wires = [
        path
        for wire, own in WIRES.items()
        for seed in own.seeds
        for path in wire_predictions(wire, wire, seed)
    ]
    return texts + wires


def result_files():
    """All that the report shows."""
    return [
        LAYOUT.metrics,
        LAYOUT.statistics,
        LAYOUT.statistical_report,
        LAYOUT.headline,
        LAYOUT.provenance,
        LAYOUT.page("provenance"),
        *[LAYOUT.page(page) for page in PAGES],
        *drawn_files(),
    ]


def drawn_files():
    """The drawings and the numbers behind them, for use outside of the report."""
    return [file for name in FIGURES for file in (LAYOUT.figure(name), LAYOUT.table(name))]


def write_resolved_config():
    """Leaves the whole configuration beside the results; every stage reads it there."""
    text = dump_yaml(EXPERIMENT)
    if not LAYOUT.config.is_file() or LAYOUT.config.read_text() != text:
        write_text(LAYOUT.config, text)


wildcard_constraints:
    receiver=any_of(RECEIVERS),
    wire=any_of(WIRES),
    seed=r"\d+",
