"""README and documentation hold: their commands work, their files and links are there.

Commands run in a copy of the repository, in the order of the page: `snakemake`, `make` and the
original's commands say what they would do, everything else runs as it is written, Python too. In
the place of the demo's wire is an untrained one. What needs a cluster or a GPU is in a block that
says so (`<!-- needs a GPU -->`); its options are checked by name.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from forked import run_module
from trained import save_wire

from latentwire.cli import VERBS, _parse, _parse_overrides
from latentwire.commands import COMMANDS
from latentwire.config import Experiment
from latentwire.configuration import validate
from latentwire.layout import Layout

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
)
COPIED = (
    "Snakefile",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "environment.yml",
    "workflow",
    "profiles",
    "latentwire",
    "config",
    "examples",
)
WIRE = "results/pocket/wires/shared/seed1"
BLOCK = re.compile(
    r"^(?:<!-- needs ([^\n]+) -->\n)?```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
IN_SENTENCE = re.compile(r"`((?:python -m )?latentwire [a-z][^`]*|make [a-z-]+)`")
# What only a cluster or a GPU has, with the options that pages use.
ELSEWHERE = {
    "squeue": {"--me", "--format"},
    "srun": {"--jobid", "--overlap", "--ntasks-per-node", "--kill-on-bad-exit"},
    "scancel": set(),
    "nvidia-smi": {"--loop"},
}
WITH_BLOCKS = [page for page in PAGES if BLOCK.search((REPOSITORY / page).read_text())]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source, target = REPOSITORY / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    (tmp_path / "results").mkdir()
    return tmp_path


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_what_a_page_tells_to_do_works(page, copy, monkeypatch):
    whole = (REPOSITORY / page).read_text()
    if WIRE in whole:
        _leave_a_wire(copy)
    assert len(re.findall(r"^```\w", whole, re.MULTILINE)) == len(BLOCK.findall(whole))
    names: dict[str, object] = {}
    for needs, language, title, text in BLOCK.findall(whole):
        if language == "python":
            with monkeypatch.context() as place:
                place.chdir(copy)
                exec(text, names)  # noqa: S102 (ours, and what is tested)
        elif language == "bash":
            for command in text.splitlines():
                _check_command(command, needs, copy)
        elif language == "yaml":
            _check_experiment(text, title, copy)
        else:
            assert language in {"text", "json"}, f"{page} has a block of {language}, unchecked"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (REPOSITORY / page).read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not _leads_somewhere(link, REPOSITORY / page)]


def _leads_somewhere(link: str, page: Path) -> bool:
    place, _, anchor = link.partition("#")
    target = page.parent / place if place else page
    if not target.exists() or not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", own).lower().replace(" ", "-") for own in headings}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_parse(page):
    prose = BLOCK.sub("", (REPOSITORY / page).read_text())
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for command in IN_SENTENCE.findall(prose):
        words = shlex.split(command.replace("\n", " ").removeprefix("python -m "))
        if words[0] == "make":
            assert words[1] in targets
        elif len(words) == 2:
            assert words[1] in [*VERBS, *COMMANDS]
        else:
            options, rest = _parse(words[1:])
            assert not rest or _parse_overrides(rest, VERBS[options.verb])


def test_every_page_is_reachable():
    text = "".join((REPOSITORY / page).read_text() for page in PAGES)
    pages = [Path(page) for page in PAGES if page.startswith("docs/")]
    assert not [page for page in pages if page.name not in text and page.name != "index.md"]


def _leave_a_wire(copy: Path) -> None:
    save_wire(copy / "results" / "pocket")
    (copy / "passage.txt").write_text("Ada was born in Ashford.\n")
    (copy / "data.jsonl").write_text('{"key": "ada", "text": "Ada was born in Ashford."}\n')


def _check_experiment(text: str, title: str, copy: Path) -> None:
    """Validates a configuration; with a title, leaves it and the files it names in the copy."""
    experiment: Experiment = validate(yaml.safe_load(text))
    if not title:
        return
    (copy / title).write_text(text)
    for key in ("train", "test"):
        if file := getattr(experiment.data, key, None):
            (copy / file).parent.mkdir(exist_ok=True)
            (copy / file).touch()


def _check_command(command: str, needs: str, copy: Path) -> None:
    words = shlex.split(command, comments=True)
    match words:
        case [] | ["source", _]:
            # What changes the reader's shell is only split in words.
            pass
        case ["squeue" | "srun" | "scancel" | "nvidia-smi", *options]:
            assert needs, f"{command}: say above its block what it needs"
            own = takewhile("python".__ne__, options)
            given = {word for word in own if word.startswith("-")}
            assert given <= ELSEWHERE[words[0]], f"{command}: is there such an option?"
        case ["tail", "-F", file]:
            assert Path(file).parent in _log_folders(Path(file))
        case ["latentwire", *_]:
            _run_verbs(words, copy)
        case ["python", "-m", "latentwire", "launch", *options]:
            assert needs
            _parse(["launch", *options])
        case ["python", "-m", "latentwire", "config", "--write"]:
            # It writes beside its own code, which must be the copy's.
            _run(words, copy)
        case ["python", "-m", *module]:
            run_module(module, copy)
        case ["python", "latentwire/train.py", *_]:
            folder = copy / words[words.index("--save_dir") + 1]
            folder.mkdir()
            (folder / "config.yaml").write_text(_run(words, copy))
        case ["python", "latentwire/eval.py", *_]:
            assert needs
            _run([*words, "--dry_run"], copy)
        case ["snakemake", *_]:
            plan = run_module([*words, "--dry-run", "--quiet", "rules"], copy)
            assert re.search(r"^total +[1-9]", plan, re.MULTILINE), f"{command} plans nothing"
        case ["make", *_]:
            assert _run([*words, "--dry-run"], copy)
        case ["conda", *_]:
            # Where conda is not at hand, its arguments are what can be wrong.
            name = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["name"]
            assert words[1:] in (["env", "create", "--file", "environment.yml"], ["activate", name])
        case _:
            _run(["bash", "-c", command], copy)


def _log_folders(file: Path) -> list[Path]:
    """Where an experiment, its head and the jobs of its stages leave their logs."""
    layout = Layout(file.parts[1])
    profile = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
    jobs = Path(profile["slurm-logdir"]) / "rule_train_wire" / "*"
    return [layout.log("").parent, layout.launch, jobs]


def _run_verbs(words: list[str], copy: Path) -> None:
    """Runs verbs as a shell does, with pipes and a redirection at the end of each."""
    stdin = Path(os.devnull)
    while words:
        end = words.index("|") if "|" in words else len(words)
        (module, *arguments), words = words[:end], words[end + 1 :]
        stdout = copy / f".piped-{len(words)}" if words else None
        for sign in "<>":
            if sign in arguments:
                *arguments, _, name = arguments
                stdin, stdout = (copy / name, stdout) if sign == "<" else (stdin, copy / name)
        run_module([module, *arguments], copy, stdin, stdout)
        stdin = stdout or stdin


def _run(words: list[str], directory: Path) -> str:
    binaries = Path(sys.executable).parent
    outcome = subprocess.run(
        words,
        cwd=directory,
        env=os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, f"{shlex.join(words)}\n{outcome.stdout}{outcome.stderr}"
    return outcome.stdout + outcome.stderr
