"""The command line: `latentwire <verb>`. One verb per stage, which takes keys of the experiment,
`[--some.key value]`, besides the commands of `commands.py`, which use a trained wire.

Heavy libraries are imported by the verb that needs them, after the number of threads is set.
"""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from latentwire.cluster.signals import interruptible
from latentwire.cluster.slurm import (
    refuse_login_node,
    refuse_retry_of_cancelled,
    requeue_if_taken,
)
from latentwire.cluster.torchrun import count_processes, has_launcher, is_joint, joined, launch
from latentwire.commands import COMMANDS, EXIT_CODES, add_command
from latentwire.errors import Interrupted, ProcessLostError, UserError
from latentwire.layout import Layout

if TYPE_CHECKING:
    from latentwire.config import Experiment

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130

EXAMPLES = """\
examples:
  latentwire encode passage.txt -o passage.lw --ratio 8 --wire results/pocket/wires/shared/seed1
  latentwire ask passage.lw "Where was Ada born?" --wire results/pocket/wires/shared/seed1
  python -m latentwire receiver --name llama
  python -m latentwire prepare
  python -m latentwire train-wire --seed 1 --wire.latent_dim 128 --experiment narrow
  python -m latentwire evaluate-wire --config config/squad.yaml --seed 1
  python -m latentwire show
  python -m latentwire config --data.source json --data.train train.json --data.test test.json

Any key of the configuration can be set by its dotted name; the value is YAML, as in
--wire.target_ratios '[4, 8]'. A new data.source replaces the whole section `data`.
`snakemake --cores 2` runs all stages in order.
"""
_OPTIONS = """\
options:
  -h, --help           show this, or the options and examples of a verb
  --version            print the version and leave
  --print-completion   print the completion for a shell: bash, zsh or tcsh
"""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0 for success, 2 for bad input, 1 for a failure of our own, 128 + N after
        signal N.
    """
    with contextlib.ExitStack() as handlers:
        handlers.enter_context(_log_to(logging.StreamHandler()))
        try:
            with interruptible():
                _run(list(sys.argv[1:] if arguments is None else arguments), handlers)
        except UserError as error:
            logger.error("%s", error)
            return USER_ERROR
        except ProcessLostError as error:
            logger.error("%s", error)
            return FAILURE
        except KeyboardInterrupt:
            logger.error("interrupted")
            return INTERRUPTED
        except Interrupted as stop:
            if has_launcher():
                return 128 + stop.signal
            logger.error("stopped by %s", stop.signal.name)
            stopped_by = stop.signal
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                logger.error("%s. Free space, then run the stage again", error)
                return USER_ERROR
            logger.exception("the stage failed; this is a fault of the program")
            return FAILURE
        else:
            return 0
        # From here on nothing holds the stage's models any more.
        if stopped_by != signal.SIGINT:
            requeue_if_taken()
        return 128 + stopped_by


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        run: does the work.
        help: one line.
        options: the verb's own options and their help.
        uses_torch: whether to set torch's threads first.
        uses_device: whether models run on the experiment's device, which must then be there.
        writes: whether it writes below the experiment's folder, and so keeps a log there.
        trains: whether it has to be forced on the login node of a cluster.
        is_shared: whether several processes may do its work together.
    """

    run: "Callable[[Experiment, Layout, argparse.Namespace], None]"
    help: str
    options: tuple[tuple[str, str], ...] = ()
    uses_torch: bool = False
    uses_device: bool = False
    writes: bool = True
    trains: bool = False
    is_shared: bool = False


def _run(arguments: list[str], handlers: contextlib.ExitStack) -> None:
    options, rest = _parse(arguments)
    if options.verb in COMMANDS:
        COMMANDS[options.verb].run(options)
        return
    from latentwire.configuration import load_experiment

    verb = VERBS[options.verb]
    if getattr(options, "write", False):
        # The files follow from the models alone, and those that are there may be out of step.
        _write_config_files()
        return
    experiment = load_experiment(options.config, _parse_overrides(rest, verb))
    layout = Layout(experiment.experiment, options.results)
    _complete(options, experiment)
    if verb.trains and not options.force:
        refuse_login_node()
    refuse_retry_of_cancelled()
    if verb.writes:
        _check_writable(layout)
        log = layout.log(_stage(options))
        log.parent.mkdir(parents=True, exist_ok=True)
        handlers.enter_context(_log_to(logging.FileHandler(log, encoding="utf-8")))
        if not has_launcher():
            logger.info("latentwire %s", " ".join(arguments))
    _set_threads(experiment, verb)
    if not verb.is_shared:
        verb.run(experiment, layout, options)
    elif is_joint() or (count := count_processes(options.processes, experiment.device)) == 1:
        with joined(experiment.device):
            verb.run(experiment, layout, options)
    else:
        launch(main, arguments, count)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")

    def format_help(self) -> str:
        """The help of a verb as argparse has it; of all verbs, in groups."""
        if self.prog != "latentwire":
            return super().format_help()
        groups = {
            "use a trained wire, publish results": {
                name: command.help for name, command in COMMANDS.items()
            },
            "stages of an experiment": {name: verb.help for name, verb in VERBS.items()},
        }
        parts = [f"usage: latentwire VERB [options]\n\n{self.description}\n"]
        for title, verbs in groups.items():
            lines = (f"  {name:<20} {text}" for name, text in verbs.items())
            parts.append("\n".join([f"{title}:", *lines, ""]))
        return "\n".join([*parts, _OPTIONS, EXAMPLES, EXIT_CODES])


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    known = [*COMMANDS, *VERBS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        raise UserError(f"unknown verb {arguments[0]!r}{_hint(arguments[0], known)}")
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.verb in COMMANDS:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    return options, rest


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="latentwire",
        description="One encoder writes a text as latents that several frozen models read.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersion)
    parser.add_argument("--print-completion", action=_PrintCompletion)
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for name, command in COMMANDS.items():
        add_command(verbs, name, command)
    for name, verb in VERBS.items():
        subparser = verbs.add_parser(
            name,
            help=verb.help,
            description=verb.help,
            epilog="Any key of the configuration can be set too, as in --wire.latent_dim 128.",
            allow_abbrev=False,
        )
        subparser.add_argument(
            "--config",
            type=Path,
            default=Path("config/config.yaml"),
            help="the experiment (default: %(default)s)",
        )
        subparser.add_argument(
            "--results",
            type=Path,
            default=Path("results"),
            help="where experiments keep their folders (default: %(default)s)",
        )
        for option, text in verb.options:
            kind: dict[str, Any] = _OPTION_KINDS.get(option, {})
            subparser.add_argument(option, help=text, **kind)
    return parser


_OPTION_KINDS: dict[str, dict[str, Any]] = {
    "--seed": {"type": int},
    "--processes": {"type": int},
    "--write": {"action": "store_true"},
    "--force": {"action": "store_true"},
    "--json": {"action": "store_true"},
    "--profile": {"type": Path},
    "--memory-gib": {"type": float},
    "--flops": {"type": float},
    "--shape": {"action": "append", "metavar": "NAME=FILE"},
    "--name": {"required": True},
    "--receiver": {"required": True},
    "--method": {"required": True},
    "--output": {"type": Path, "required": True},
    "--effect": {"type": float},
    "--passages": {"type": int},
    "--sd": {"type": float},
    "--icc": {"type": float},
    "--questions": {"type": float},
    "--power": {"type": float, "default": 0.8},
    "--alpha": {"type": float, "default": 0.05},
    "--cluster": {"choices": ("slurm", "local"), "default": "slurm"},
    "--target": {"default": "all"},
}


class _PrintCompletion(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(
            option_strings, dest, choices=("bash", "zsh", "tcsh"), help="print it for a shell"
        )

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> None:
        import shtab

        print(shtab.complete(parser, shell))
        parser.exit()


class _PrintVersion(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and leave")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from latentwire import __version__

        print(__version__)
        parser.exit()


def _parse_overrides(rest: list[str], verb: Verb) -> dict[str, Any]:
    """`--dotted.key value` and `--dotted.key=value` pairs, values read as YAML."""
    import yaml

    overrides: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise UserError(f"unexpected {word!r}; options start with --")
        key, has_value, text = word.removeprefix("--").partition("=")
        _check_option(key, verb)
        value = text if has_value else next(words, None)
        if value is None:
            raise UserError(f"--{key} needs a value")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--{key}: {value!r} is not valid YAML: {error}") from error
    return overrides


def _check_option(key: str, verb: Verb) -> None:
    from latentwire.config import Experiment

    known = [*Experiment.model_fields, "config", "results", *(name[2:] for name, _ in verb.options)]
    if key.partition(".")[0] not in known:
        hint = _hint(key.partition(".")[0], known)
        raise UserError(f"unknown option --{key}{hint}")


def _hint(word: str, known: list[str]) -> str:
    from latentwire.configuration import did_you_mean

    return f"{did_you_mean(word, known) or ';'} known: {', '.join(known)}"


def _complete(options: argparse.Namespace, experiment: "Experiment") -> None:
    """Fills in wire and seed where they are left out, and refuses what the experiment has not."""
    receivers = [receiver.name for receiver in experiment.receivers]
    _choose(options, "name", receivers)
    _choose(options, "receiver", receivers)
    if "wire" in options:
        _choose(options, "wire", experiment.wires)
        own = experiment.of_wire(options.wire)
        _choose(options, "method", own.evaluation.wire_methods)
        _choose(options, "seed", own.seeds)


def _choose(options: argparse.Namespace, option: str, allowed: Sequence[str | int]) -> None:
    if option not in options:
        return
    value = getattr(options, option)
    if value is None:
        setattr(options, option, allowed[0])
    elif value not in allowed:
        raise UserError(
            f"--{option} {value} is not in {options.config}; allowed: "
            f"{', '.join(map(str, allowed))}"
        )


def _check_writable(layout: Layout) -> None:
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=layout.root) as file:
            file.write(b"A full disk takes empty files.")
    except OSError as error:
        raise UserError(
            f"cannot write to {layout.root}: {error.strerror}. Make the folder writable, free "
            "space, or choose another folder with --results"
        ) from error


def _stage(options: argparse.Namespace) -> str:
    """The name of the verb's log, for example `train_wire-shared-seed1`."""
    given = [getattr(options, key, None) for key in ("name", "method", "receiver", "wire")]
    seed = [f"seed{options.seed}"] if "seed" in options else []
    return "-".join([options.verb.replace("-", "_"), *(name for name in given if name), *seed])


@contextlib.contextmanager
def _log_to(handler: logging.Handler) -> Iterator[None]:
    """Sends our progress, and warnings of libraries, to a handler."""
    root, ours = logging.getLogger(), logging.getLogger("latentwire")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        # What does not fit on a full disk is on the terminal all the same.
        with contextlib.suppress(OSError):
            handler.close()


def _set_threads(experiment: "Experiment", verb: Verb) -> None:
    """Sets the number of threads, which the numerics depend on, before any library starts them."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(experiment.threads)
    # The size of a workspace that makes matrix products on a GPU deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not verb.uses_torch:
        return
    import torch

    torch.set_num_threads(experiment.threads)
    if verb.uses_device and experiment.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device: 'cuda', but torch finds no GPU here; run on a machine with one, or set "
            "--device cpu"
        )
    if verb.uses_device and experiment.device == "cuda":
        # Where there is no deterministic algorithm, torch warns.
        torch.use_deterministic_algorithms(True, warn_only=True)


def _receiver(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.config import ReceiverSource
    from latentwire.receivers.build import build_receiver

    settings = next(own for own in experiment.receivers if own.name == options.name)
    if settings.source == ReceiverSource.pretrain and not options.force:
        refuse_login_node()
    build_receiver(experiment, layout, options.name)


def _prepare(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.data.prepare import prepare

    prepare(experiment, layout)


def _train_wire(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.planning.plan import check_memory
    from latentwire.training.wire import train_wire

    if not options.force:
        check_memory(experiment, layout, options.wire)
    train_wire(experiment.of_wire(options.wire), layout, options.seed)


def _adapt(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    if experiment.of_wire(options.wire).wire.encoder_of is None:
        raise UserError(
            f"--wire {options.wire} has an encoder of its own, which `train-wire` trains; `adapt` "
            "is for a variant with the key wire.encoder_of"
        )
    _train_wire(experiment, layout, options)


def _evaluate_text(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.evaluation.evaluate import evaluate_text

    evaluate_text(experiment, layout, options.receiver)


def _evaluate_relay(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.baselines.relay import evaluate_relay

    evaluate_relay(experiment, layout, options.receiver)


def _train_compressor(
    experiment: "Experiment", layout: Layout, options: argparse.Namespace
) -> None:
    from latentwire.baselines.classifier import train_compressor

    train_compressor(experiment, layout)


def _evaluate_compressed(
    experiment: "Experiment", layout: Layout, options: argparse.Namespace
) -> None:
    from latentwire.baselines.compressed import evaluate_compressed

    evaluate_compressed(experiment, layout, options.receiver)


def _probe(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.baselines.probe import probe

    probe(experiment, layout, options.receiver)


def _evaluate_wire(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.evaluation.evaluate import evaluate_wire

    evaluate_wire(experiment.of_wire(options.wire), layout, options.seed)


def _evaluate_variant(
    experiment: "Experiment", layout: Layout, options: argparse.Namespace
) -> None:
    from latentwire.config import Method
    from latentwire.evaluation.evaluate import evaluate_wire

    only = Method(options.method), options.receiver
    evaluate_wire(experiment.of_wire(options.wire), layout, options.seed, only)


def _metrics(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.statistics.metrics import write_metrics

    write_metrics(experiment, layout)


def _statistics(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.statistics.comparisons import write_statistics

    write_statistics(experiment, layout)


def _power(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.statistics.planning import Plan, plan_power

    names = ("effect", "passages", "power", "alpha", "sd", "icc", "questions")
    print(plan_power(experiment, layout, Plan(**{name: getattr(options, name) for name in names})))


def _headline(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.reporting.headline import write_headline

    write_headline(experiment, layout)


def _figures(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.reporting.pages import write_pages

    write_pages(experiment, layout)


def _ablations(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.reporting.ablations import write_ablations

    write_ablations(experiment, layout, options.output)


def _provenance(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.reporting.provenance import write_provenance

    write_provenance(experiment, layout)


def _tensorboard(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.reporting.tensorboard import write_events

    write_events(layout, options.wire, options.seed)
    logger.info("look at it with: tensorboard --logdir %s", layout.events(""))


def _launch(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.cluster.launch import launch

    launch(experiment, layout, options.cluster, options.profile, options.target)


def _show(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.reporting.headline import print_headline

    print_headline(layout)


def _status(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.cluster.status import print_status

    print_status(layout, as_json=options.json)


def _plan(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.planning.plan import print_plan

    shapes = {}
    for given in options.shape or ():
        name, _, path = given.partition("=")
        known = [*(receiver.name for receiver in experiment.receivers), *experiment.backbones]
        if name not in known or not path:
            raise UserError(
                f"--shape {given}: give NAME=FILE, where NAME is one of {', '.join(known)}"
            )
        shapes[name] = Path(path)
    print_plan(
        experiment,
        layout,
        shapes,
        options.profile or Path("profiles/slurm"),
        options.memory_gib,
        options.flops,
        options.processes or 1,
        options.json,
    )


def _doctor(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.cluster.doctor import print_checks

    profile = options.profile or Path("profiles/slurm")
    print_checks(experiment, layout, profile, as_json=options.json)


def _config(experiment: "Experiment", layout: Layout, options: argparse.Namespace) -> None:
    from latentwire.configuration import dump_yaml

    print(dump_yaml(experiment), end="")


def _write_config_files() -> None:
    from latentwire.config_files import write_config_files

    for path in write_config_files():
        logger.info("wrote %s", path)


_WIRE = ("--wire", "name of the wire (default: the experiment's)")
_SEED = ("--seed", "one of the wire's seeds (default: its first)")
_RECEIVER = ("--receiver", "name of the receiver")
_FORCE = ("--force", "train even on the login node of a SLURM cluster")
_PROCESSES = (
    "--processes",
    "processes that work together (default: one for each GPU; 1 on the CPU)",
)
_FORCE_MEMORY = (
    "--force",
    "train even on the login node of a SLURM cluster, and where memory seems too little",
)
_JSON = ("--json", "print JSON instead of text")

VERBS: dict[str, Verb] = {
    "receiver": Verb(
        _receiver,
        "prepare one receiver: bundled, pretrained here, local or from the hub",
        (("--name", "name of the receiver"), _FORCE),
        uses_torch=True,
    ),
    "prepare": Verb(
        _prepare, "turn the source of questions into tables and a data card", uses_torch=True
    ),
    "train-wire": Verb(
        _train_wire,
        "train the encoder and the adapters",
        (_WIRE, _SEED, _PROCESSES, _FORCE_MEMORY),
        trains=True,
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "adapt": Verb(
        _adapt,
        "train adapters of further receivers for the frozen encoder of a trained wire",
        (_WIRE, _SEED, _PROCESSES, _FORCE_MEMORY),
        trains=True,
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "train-compressor": Verb(
        _train_compressor,
        "train a small token classifier for LLMLingua-2",
        (_FORCE,),
        trains=True,
        uses_torch=True,
        uses_device=True,
    ),
    "evaluate-compressed": Verb(
        _evaluate_compressed,
        "ask one receiver with text that sentences or words were dropped from",
        (_RECEIVER, _PROCESSES),
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "evaluate-text": Verb(
        _evaluate_text,
        "ask one receiver with the text, with less of it and without",
        (_RECEIVER, _PROCESSES),
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "evaluate-wire": Verb(
        _evaluate_wire,
        "ask every receiver through a trained wire, controls included",
        (_WIRE, _SEED, _PROCESSES),
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "evaluate-variant": Verb(
        _evaluate_variant,
        "ask one receiver through a trained wire, by one method",
        (
            ("--method", "the variant's method, or one of its controls"),
            _RECEIVER,
            _WIRE,
            _SEED,
            _PROCESSES,
        ),
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "evaluate-relay": Verb(
        _evaluate_relay,
        "ask one receiver with what senders write about the text, and the senders themselves",
        (_RECEIVER, _PROCESSES),
        uses_torch=True,
        uses_device=True,
        is_shared=True,
    ),
    "probe": Verb(
        _probe,
        "probe the hidden states of one receiver for the answer",
        (_RECEIVER,),
        uses_torch=True,
        uses_device=True,
    ),
    "metrics": Verb(_metrics, "compute every metric with its interval"),
    "statistics": Verb(_statistics, "test the declared comparisons"),
    "power": Verb(
        _power,
        "plan how many passages a comparison needs, and tell what so many can detect",
        (
            ("--effect", "true difference of mean scores to detect, for example 0.02"),
            ("--passages", "number of passages to judge"),
            ("--power", "chance to detect it (default: %(default)s)"),
            ("--alpha", "level of the two-sided test (default: %(default)s)"),
            ("--sd", "sd of a question's difference (default: that of the experiment's answers)"),
            ("--icc", "with --sd: correlation of the differences within a passage (default: 0)"),
            ("--questions", "with --sd: mean number of questions about a passage (default: 1)"),
        ),
        writes=False,
    ),
    "headline": Verb(_headline, "write the headline table"),
    "figures": Verb(_figures, "draw the figures and write the pages of the report"),
    "ablations": Verb(
        _ablations,
        "write what each variant gains or loses against the shared wire",
        (("--output", "the Markdown file to write"),),
    ),
    "provenance": Verb(_provenance, "note commit, versions and hardware"),
    "tensorboard": Verb(
        _tensorboard,
        "write a wire's training log for TensorBoard, also while it is being trained",
        (_WIRE, _SEED),
    ),
    "launch": Verb(
        _launch,
        "submit the workflow itself as a small job, which survives preemption",
        (
            ("--cluster", "where Snakemake runs: slurm, or local for this machine"),
            ("--profile", "where the stages run (default: profiles/slurm or profiles/local)"),
            ("--target", "a rule or a file (default: %(default)s)"),
        ),
    ),
    "show": Verb(_show, "print the headline table and where the report is", writes=False),
    "status": Verb(
        _status,
        "say how far each training is, how long it will take and where it runs",
        (_JSON,),
        writes=False,
    ),
    "doctor": Verb(
        _doctor,
        "check versions, device, memory, disk, hub and SLURM, and say how to mend what is wrong",
        (("--profile", "profile of Snakemake to check (default: profiles/slurm)"), _JSON),
        uses_torch=True,
        writes=False,
    ),
    "plan": Verb(
        _plan,
        "say what each training will take, memory, time and saves, and refuse what cannot fit",
        (
            ("--memory-gib", "memory of the device, in GiB (default: what is free on this one's)"),
            ("--flops", "operations per second of the device (default: measured on this one)"),
            ("--processes", "processes that train together (default: 1)"),
            ("--shape", "config.json of a model to use instead of its own, as NAME=FILE"),
            ("--profile", "profile of Snakemake whose jobs have to save (default: profiles/slurm)"),
            _JSON,
        ),
        uses_torch=True,
        writes=False,
    ),
    "config": Verb(
        _config,
        "print the complete experiment, or write the generated files",
        (("--write", "write config/config.yaml and its schema from the models"),),
        writes=False,
    ),
}
