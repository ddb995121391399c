"""What is left of a stage that fails half-way."""

import pytest

# Stands in for a stage: it leaves its output and a state, tells who started it, and fails.
FAILING_STAGE = """
import os
import sys
from pathlib import Path

root = Path("results/pocket")
for path in ("receivers/llama/receiver.json", ".state/run/slot"):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("half")
(root / "parent").write_bytes(Path(f"/proc/{os.getppid()}/cmdline").read_bytes())
sys.exit(3)
"""


@pytest.fixture(scope="module")
def failed(copy_repository):
    repository = copy_repository()
    (repository.path / "latentwire" / "__main__.py").write_text(FAILING_STAGE)
    target = "results/pocket/receivers/llama/receiver.json"
    outcome = repository.snakemake("--cores", "1", target, check=False)
    return repository.path / "results" / "pocket", outcome


def test_a_failing_stage_fails_the_workflow(failed):
    _, outcome = failed
    assert outcome.returncode != 0
    assert "receiver-llama.log" in outcome.stdout


def test_outputs_go_and_the_undeclared_state_stays(failed):
    root, _ = failed
    assert not (root / "receivers/llama/receiver.json").exists()
    assert (root / ".state/run/slot").read_text() == "half"


def test_no_shell_stands_between_snakemake_and_a_stage(failed):
    root, _ = failed
    program, *arguments = (root / "parent").read_bytes().split(b"\0")
    assert b"bash" not in program
    assert b"snakemake" in arguments
