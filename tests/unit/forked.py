"""Commands in processes of their own that are forked with the heavy libraries loaded.

Importing torch and Snakemake anew takes longer than most commands do.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["pytest", "snakemake.cli", "latentwire.cli", "latentwire.wire.latent_receiver"]
)


def run_module(
    words: list[str], directory: Path, stdin: Path = Path(os.devnull), stdout: Path | None = None
) -> str:
    """Runs `python -m` with these words in a directory; returns what it printed.

    Args:
        words: the module and its arguments.
        directory: where it runs.
        stdin: a file that it reads.
        stdout: a file for its output; none joins it with what it says on standard error.
    """
    said = directory / ".said"
    process = _SERVER.Process(target=_run, args=(words, directory, stdin, stdout or said, said))
    process.start()
    process.join()
    text = said.read_text()
    assert process.exitcode == 0, f"{words}\n{text}"
    return text


def _run(words: list[str], directory: Path, stdin: Path, stdout: Path, stderr: Path) -> None:
    os.chdir(directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    os.dup2(os.open(stderr, flags), 2)
    os.dup2(2 if stdout == stderr else os.open(stdout, flags), 1)
    sys.stdin = os.fdopen(0)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
