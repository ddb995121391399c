"""A copy of the repository to run the workflow in, away from its results and its records."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SMOKE = "config/smoke.yaml"
PARTS = ("Snakefile", "workflow", "profiles", "latentwire", "config", "resources")


class Repository:
    """A copy of what the workflow needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in PARTS:
            source = REPOSITORY / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, path / part)
        shutil.copy(REPOSITORY / "environment.yml", path)
        (path / "results").mkdir()

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        outcome = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("SNAKEMAKE")},
        )
        assert not check or outcome.returncode == 0, outcome.stdout
        return outcome

    def plan(self, *arguments: str) -> dict[str, int]:
        """Jobs per rule that a dry run plans."""
        outcome = self.snakemake(*arguments, "--dry-run", "--quiet", "rules")
        lines = iter(outcome.stdout.splitlines())
        for line in lines:
            if line.startswith("job ") and line.endswith("count"):
                break
        next(lines, None)
        jobs: dict[str, int] = {}
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "total":
                break
            jobs[name] = int(count)
        return jobs

    def outputs(self, *arguments: str) -> list[Path]:
        """Every file that the workflow declares."""
        summary = self.snakemake("--summary", *arguments).stdout.splitlines()
        rows = [line.split("\t") for line in summary if line.startswith("results/")]
        return [self.path / row[0] for row in rows]

    def pretend_done(self) -> None:
        """Puts empty outputs in place and records them as made by the code as it stands."""
        for path in self.outputs():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self.snakemake("--touch", "--forceall", "--cores", "2")
