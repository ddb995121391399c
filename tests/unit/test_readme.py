"""README and documentation hold: their commands work, their files and links are there.

Commands run in a copy of the repository, in the order of the page: `snakemake` and `make` say what
they would do, everything else runs as it is written, Python too. In the place of the demo's wire is
an untrained one.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trained import save_wire

from latentwire.cli import _parse
from latentwire.config import Experiment
from latentwire.configuration import validate

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
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
    names: dict[str, object] = {}
    for language, title, text in BLOCK.findall(whole):
        if language == "python":
            with monkeypatch.context() as place:
                place.chdir(copy)
                exec(text, names)  # noqa: S102 (ours, and what is tested)
        elif language == "bash":
            for command in text.splitlines():
                _check_command(command, copy)
        elif language == "yaml":
            _check_experiment(text, title, copy)
        else:
            assert language in {"text", "json"}, f"{page} has a block of {language}, unchecked"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", (REPOSITORY / page).read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (REPOSITORY / page).parent.joinpath(link).exists()]


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


def _check_command(command: str, copy: Path) -> None:
    words = shlex.split(command, comments=True)
    match words:
        case ["latentwire", *_]:
            # As a line of shell, for streams; the installed command may be another checkout's.
            module = f'latentwire() {{ "{sys.executable}" -m latentwire "$@"; }}'
            _run(["bash", "-c", f"set -o pipefail; {module}; {command}"], copy)
        case ["python", "-m", "latentwire", "launch", *options]:
            _parse(["launch", *options])
        case [] | ["source" | "squeue" | "srun" | "scancel" | "tail", *_]:
            # What needs jobs of a cluster, or changes the reader's shell, is only split in words.
            pass
        case ["snakemake", *_]:
            plan = _run([sys.executable, "-m", *words, "--dry-run", "--quiet", "rules"], copy)
            assert re.search(r"^total +[1-9]", plan, re.MULTILINE), f"{command} plans nothing"
        case ["make", *_]:
            assert _run([*words, "--dry-run"], copy)
        case ["conda", *_]:
            # Where conda is not at hand, its arguments are what can be wrong.
            name = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["name"]
            assert words[1:] in (["env", "create", "--file", "environment.yml"], ["activate", name])
        case _:
            _run(words, copy)


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
