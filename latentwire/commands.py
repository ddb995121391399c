"""The verbs that read no experiment: they use a trained wire, or publish results.

Answers and messages go to standard output, everything else to standard error. Heavy libraries are
imported by the verb that needs them.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentwire.errors import UserError
from latentwire.files import whole_file
from latentwire.publish import publish_options, run_publish
from latentwire.training.progress import format_seconds

if TYPE_CHECKING:
    from latentwire.wire.payload import Latents
    from latentwire.wire.store import LatentStore
    from latentwire.wire.wire import Wire

WIRE_VARIABLE = "LATENTWIRE_WIRE"
STANDARD_STREAM = "-"
_PROGRESS_SECONDS = 5.0
EXIT_CODES = """\
exit codes: 0 success, 2 bad input (its message says what to change), 1 a fault of the program,
130 interrupted
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """A verb with options of its own, which reads no experiment.

    Attributes:
        run: does the work.
        help: one line.
        add_options: declares the options.
        examples: commands to show.
    """

    run: Callable[[argparse.Namespace], None]
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    examples: str


def add_command(verbs: Any, name: str, command: Command) -> None:
    """Declares a command among the verbs of a parser."""
    parser = verbs.add_parser(
        name,
        help=command.help,
        description=command.help,
        epilog=f"examples:\n{command.examples}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        prog=f"latentwire {name}",
    )
    command.add_options(parser)


def _wire_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wire",
        default=os.environ.get(WIRE_VARIABLE),
        metavar="PATH_OR_ID",
        help="the wire: its folder, or a hub repository as owner/name or owner/name@revision "
        f"(default: the environment variable {WIRE_VARIABLE})",
    )
    parser.add_argument(
        "--device", default="cpu", help="where the model runs, cpu or cuda (default: %(default)s)"
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _message_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ratio", type=float, help="a target ratio of the wire (default: its lowest)"
    )
    parser.add_argument(
        "--dtype",
        default="fp16",
        choices=("fp16", "int8", "int4"),
        help="how the latents are written (default: %(default)s)",
    )
    parser.add_argument(
        "--sender", help="the model that reads the text, for a wire that reads states of several"
    )


def _encode_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="file with the text, UTF-8; - is stdin")
    parser.add_argument(
        "-o",
        "--output",
        default=STANDARD_STREAM,
        metavar="FILE",
        help="where the message goes (default: -, stdout)",
    )
    parser.add_argument(
        "--question", help="the question, for a wire that compresses it with the text, only"
    )
    _message_options(parser)
    _wire_options(parser)
    _json_option(parser)


def _encode(options: argparse.Namespace) -> None:
    to_stdout = options.output == STANDARD_STREAM
    if to_stdout and options.json:
        raise UserError("--json prints on stdout, where the message goes: give -o FILE")
    if to_stdout and sys.stdout.isatty():
        raise UserError("a message is binary: give -o FILE, or send stdout to a file or a pipe")
    text = _read_text(options.text)
    _require_wire(options)
    from latentwire.wire.wire import Wire

    wire = Wire.from_pretrained(options.wire, _device(options))
    ratio = _ratio(options, wire.widths)
    questions = None if options.question is None else [options.question]
    (latents,) = wire.encode([text], ratio, questions, sender=options.sender)
    payload = latents.to_bytes(options.dtype)
    if to_stdout:
        sys.stdout.buffer.write(payload)
        sys.stdout.buffer.flush()
    else:
        with whole_file(Path(options.output)) as temporary:
            temporary.write_bytes(payload)
    facts = {**_facts(payload), "chunks": latents.num_chunks}
    if options.json:
        print(json.dumps({"output": options.output, **facts}))
    else:
        logger.info(
            "%d latents at %gx, %d bytes as %s",
            facts["latents"],
            ratio,
            facts["bytes"],
            options.dtype,
        )


def _ask_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MESSAGE QUESTION",
        help="the file of the message, - for stdin, left out with --store; then the questions, "
        "none where the message holds it",
    )
    parser.add_argument(
        "--receiver", help="the receiver that answers (default: the first of the wire)"
    )
    parser.add_argument(
        "--receiver-path",
        metavar="PATH_OR_ID",
        help="folder or hub repository (owner/name@commit) of its model, if it is not where it was "
        "in training",
    )
    parser.add_argument("--store", help="the store that holds the message")
    parser.add_argument("--key", help="its key in the store")
    parser.add_argument(
        "--max-new-tokens", type=int, default=32, help="cap on an answer (default: %(default)s)"
    )
    _wire_options(parser)
    _json_option(parser)


def _ask(options: argparse.Namespace) -> None:
    if (options.store is None) != (options.key is None):
        raise UserError("--store and --key go together")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {options.max_new_tokens}: give 1 or more")
    latents, questions = _message_and_questions(options)
    _require_wire(options)
    from latentwire.wire.description import Description, wire_folder
    from latentwire.wire.latent_receiver import open_receiver

    folder = wire_folder(options.wire)
    name = options.receiver or next(iter(Description.read(folder).receivers))
    receiver = open_receiver(folder, name, _device(options), path=options.receiver_path)
    answers = receiver.answer(latents, questions or None, options.max_new_tokens)
    if not options.json:
        print(*answers, sep="\n")
        return
    asked: list[str | None] = [*questions] or [None]
    for question, answer in zip(asked, answers, strict=True):
        print(
            json.dumps(
                {"question": question, "answer": answer, "receiver": name}, ensure_ascii=False
            )
        )


def _message_and_questions(options: argparse.Namespace) -> tuple["Latents", list[str]]:
    if options.store is not None:
        from latentwire.wire.store import LatentStore

        with LatentStore(options.store, create=False) as store:
            return store.get(options.key), options.words
    if not options.words:
        raise UserError("give the file of a message, or --store and --key, and a question")
    from latentwire.wire.payload import Latents

    place, *questions = options.words
    try:
        return Latents.from_bytes(_read_bytes(place)), questions
    except UserError as error:
        raise UserError(f"{_name(place)}: {error}") from error


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", metavar="MESSAGE", help="file of the message; - is stdin")
    _json_option(parser)


def _inspect(options: argparse.Namespace) -> None:
    try:
        facts = _facts(_read_bytes(options.message))
    except UserError as error:
        raise UserError(f"{_name(options.message)}: {error}") from error
    if options.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts)) + 2
        print(*(f"{name:<{width}}{value}" for name, value in facts.items()), sep="\n")


def _facts(payload: bytes) -> dict[str, Any]:
    """What `inspect` shows of a message."""
    from latentwire.wire.payload import Header

    header = Header.read(payload)
    return {
        "ratio": header.ratio,
        "bytes": len(payload),
        "dtype": header.dtype.name,
        "latents": header.num_latents,
        "width": header.latent_dim,
        "wire": header.wire_id.hex(),
    }


def _encode_corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        help='a JSON object per line, {"key": ..., "text": ...}, or with the columns passage_id '
        "and context of the data tables; - is stdin",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="STORE", help="the store; what it has is kept"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="texts read together (default: %(default)s)"
    )
    _message_options(parser)
    _wire_options(parser)
    _json_option(parser)


def _encode_corpus(options: argparse.Namespace) -> None:
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: give 1 or more")
    texts = read_corpus(_read_text(options.corpus).split("\n"), _name(options.corpus))
    _require_wire(options)
    from latentwire.wire.store import LatentStore
    from latentwire.wire.wire import Wire

    wire = Wire.from_pretrained(options.wire, _device(options))
    if wire.config.source_mode == "prompt":
        raise UserError("this wire compresses passage and question together: use `encode`")
    with LatentStore(options.output) as store:
        _check_store(store, wire, _ratio(options, wire.widths), options.dtype)
        encoded = _fill(store, wire, texts, options)
        facts = {"store": options.output, "encoded": encoded, "messages": len(store)}
    if options.json:
        print(json.dumps(facts))
    else:
        logger.info("%d texts encoded; %s holds %d", encoded, options.output, facts["messages"])


def _check_store(store: "LatentStore", wire: "Wire", ratio: float, dtype: str) -> None:
    """Refuses to put messages beside those of another wire, ratio or dtype."""
    header = store.header()
    if header is None:
        return
    there = (header.wire_id.hex(), f"{header.ratio:g}x", header.dtype.name)
    own = (wire.wire_id.hex(), f"{ratio:g}x", dtype)
    if there != own:
        raise UserError(
            f"{store.path} holds messages of wire {there[0]} at {there[1]} as {there[2]}, not of "
            f"{own[0]} at {own[1]} as {own[2]}: choose another store"
        )


def _fill(
    store: "LatentStore", wire: "Wire", texts: Mapping[str, str], options: argparse.Namespace
) -> int:
    """Encodes the texts that the store does not have; returns how many."""
    ratio, size = _ratio(options, wire.widths), options.batch_size
    waiting = store.missing([*texts])
    if len(waiting) < len(texts):
        logger.info("%d of %d texts are there already", len(texts) - len(waiting), len(texts))
    # Texts of like length make little padding.
    waiting.sort(key=lambda key: len(texts[key]))
    started, reported, encoded = time.monotonic(), time.monotonic(), 0
    for start in range(0, len(waiting), size):
        # Another process may be filling the same store.
        keys = store.missing(waiting[start : start + size])
        own = [texts[key] for key in keys]
        messages = wire.encode(own, ratio, batch_size=size, sender=options.sender)
        store.put(zip(keys, messages, strict=True), options.dtype)
        encoded += len(keys)
        done, now = min(start + size, len(waiting)), time.monotonic()
        if done == len(waiting) or now - reported >= _PROGRESS_SECONDS:
            left = format_seconds((now - started) / done * (len(waiting) - done))
            logger.info("%d/%d texts, %s left", done, len(waiting), left)
            reported = now
    return encoded


def read_corpus(lines: Sequence[str], origin: str) -> dict[str, str]:
    """Texts by key from JSON lines; lines of one key must have one text.

    Raises:
        UserError: with file and line, if one is malformed.
    """
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            key, text = _entry(json.loads(line))
        except (json.JSONDecodeError, ValueError) as error:
            raise UserError(f"{origin}, line {number}: {error}") from error
        if texts.setdefault(key, text) != text:
            raise UserError(f"{origin}, line {number}: the key {key!r} has another text before")
    if not texts:
        raise UserError(f"{origin} holds no text")
    return texts


def _entry(row: Any) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise ValueError('not an object such as {"key": "a", "text": "A text."}')
    names = ("key", "text") if "key" in row else ("passage_id", "context")
    key, text = (row.get(name) for name in names)
    if not isinstance(key, str) or not isinstance(text, str):
        raise ValueError(f"the keys {names[0]!r} and {names[1]!r} must be there and hold strings")
    if not text.strip():
        raise ValueError(f"the text of {key!r} is empty")
    return key, text


def _require_wire(options: argparse.Namespace) -> None:
    if not options.wire:
        raise UserError(
            f"which wire? Give --wire with its folder or hub repository, or set {WIRE_VARIABLE}"
        )


def _device(options: argparse.Namespace) -> str:
    import torch

    device: str = options.device
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: give cpu or cuda")
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch finds no GPU here; use cpu")
    return device


def _ratio(options: argparse.Namespace, widths: Mapping[float, float]) -> float:
    return min(widths) if options.ratio is None else options.ratio


def _name(place: str) -> str:
    return "stdin" if place == STANDARD_STREAM else place


def _read_bytes(place: str) -> bytes:
    if place == STANDARD_STREAM:
        return sys.stdin.buffer.read()
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror}") from error


def _read_text(place: str) -> str:
    """A text without the line break that ends its file."""
    try:
        text = _read_bytes(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{_name(place)} is no text in UTF-8: {error}") from error
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise UserError(f"{_name(place)} holds no text: give at least one character")
    return text


COMMANDS: dict[str, Command] = {
    "encode": Command(
        _encode,
        "write a text as latents",
        _encode_options,
        "  latentwire encode passage.txt -o passage.lw --ratio 8 --wire owner/name\n"
        "  latentwire encode - < passage.txt > passage.lw",
    ),
    "ask": Command(
        _ask,
        "ask a receiver about a message",
        _ask_options,
        '  latentwire ask passage.lw "Where was Ada born?" --receiver qwen\n'
        '  latentwire encode passage.txt | latentwire ask - "Where was Ada born?" "And Bo?"\n'
        '  latentwire ask --store store.sqlite --key ada "Where was Ada born?"',
    ),
    "inspect": Command(
        _inspect,
        "show ratio, size and wire of a message",
        _inspect_options,
        "  latentwire inspect passage.lw\n  latentwire inspect - --json < passage.lw",
    ),
    "encode-corpus": Command(
        _encode_corpus,
        "write many texts as latents into a store, going on where it stopped",
        _encode_corpus_options,
        "  latentwire encode-corpus data.jsonl -o store.sqlite --ratio 8 --dtype int8",
    ),
    "publish": Command(
        run_publish,
        "commit the small results and the report of an experiment to a branch, after asking",
        publish_options,
        "  latentwire publish results/pocket\n"
        "  latentwire publish results/pocket --branch results --push origin",
    ),
}
