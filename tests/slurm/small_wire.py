"""The workflow of one small wire, and a training of it that can be watched, held and hit."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml
from cluster import Cluster, wait_for
from repository import REPOSITORY, SMOKE

SEEDS = (1, 2)
STEPS = 40
CONFIG, PROFILE = "config/held.yaml", "profiles/test"
EXPERIMENT = yaml.safe_load((REPOSITORY / SMOKE).read_text())
# One thread, so that two trainings at once do not wait for each other at every operation.
EXPERIMENT |= {"threads": 1, "seeds": list(SEEDS)}
# More steps, so that each death finds the training under way.
EXPERIMENT["training"] |= {"steps": STEPS, "log_every_steps": 1, "dev_every_steps": STEPS}
# A start takes three Snakemakes and torch, on two cores that may be busy.
START_SECONDS = 600


class Workflow:
    """A copy of the repository, run on the test cluster."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        self.path, self.cluster = path, cluster
        self.results = path / "results/smoke"
        self.wires, self.expected = self.results / "wires", path / "expected"
        self.logs, self.log = path / "results/slurm_logs", path / "snakemake.log"
        self._running: list[subprocess.Popen] = []

    def forget(self) -> None:
        """Makes the workflow train its wires anew."""
        # A Snakemake that was killed leaves its lock.
        locks = self.path / ".snakemake/locks"
        for folder in (self.wires, self.results / ".state", self.logs, locks):
            shutil.rmtree(folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    @contextlib.contextmanager
    def running(self, training: "Training", *options: str) -> Iterator[subprocess.Popen]:
        """A Snakemake that trains on SLURM; it is killed if it has not ended."""
        arguments = [training.target, "--profile", PROFILE, "--configfile", CONFIG, *options]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments],
                cwd=self.path,
                env=self.cluster.environment,
                stdout=log,
                stderr=log,
            )
        self._running.append(process)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            self._running.remove(process)
            # Shown where the test fails.
            print(self.log.read_text())

    @property
    def has_failed(self) -> bool:
        """Whether a Snakemake has ended with an error."""
        return any(process.poll() not in (None, 0) for process in self._running)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a Python module to its end."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.path,
            env=self.cluster.environment,
            check=True,
            capture_output=True,
            text=True,
        )


class Training:
    """The training of one seed, wherever it runs."""

    def __init__(self, workflow: Workflow, seed: int) -> None:
        self._seed, self._workflow = seed, workflow
        self.wire = workflow.wires / f"shared/seed{seed}"
        self.target = str((self.wire / "model.safetensors").relative_to(workflow.path))
        self._metrics = workflow.results / f".state/shared-seed{seed}/metrics.jsonl"

    @property
    def step(self) -> int:
        """The last step that was logged."""
        try:
            return self._metrics.read_text().count("\n")
        except FileNotFoundError:
            return 0

    def hold(self, step: int) -> str:
        """Stops the trainer once it is past a step, so that what comes meets it in the middle.

        Returns:
            Its SLURM job.
        """
        self.wait_for(step)
        self.signal(signal.SIGSTOP)
        return self.job

    def wait_for(self, step: int) -> None:
        """Waits until a trainer is past a step."""

        def is_past() -> bool:
            assert not self._workflow.has_failed, "Snakemake has ended"
            return self.step >= step and bool(self.processes)

        wait_for(is_past, f"step {step}", START_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Signals the trainer, the first if there are two, and the processes that it started.

        By the kernel, at once: SLURM may bring a signal later than the one that it sends next.
        """
        trainer = psutil.Process(self.processes[0])
        for process in (trainer, *trainer.children(recursive=True)):
            process.send_signal(number)

    @property
    def job(self) -> str:
        """The SLURM job that the trainer runs in."""
        variables = Path(f"/proc/{self.processes[0]}/environ").read_text().split("\0")
        return dict(line.partition("=")[::2] for line in variables)["SLURM_JOB_ID"]

    @property
    def processes(self) -> list[int]:
        """The trainers, oldest first."""
        processes = (path for path in Path("/proc").glob("[0-9]*") if self._is_trainer(path))
        return [int(path.name) for path in sorted(processes, key=_start_ticks)]

    @property
    def resumes(self) -> list[int]:
        """The steps after which the training went on, as the wire's record tells."""
        record = json.loads((self.wire / "resumes.json").read_text())
        return [resume["step"] for resume in record["resumes"]]

    @property
    def log(self) -> str:
        """What all its jobs have logged."""
        folder = self._workflow.logs / f"rule_train_wire/shared_{self._seed}"
        return "".join(path.read_text() for path in sorted(folder.glob("*.log")))

    def assert_same_as_without_slurm(self) -> None:
        self.assert_same_as(self._workflow.expected / f"shared/seed{self._seed}")

    def assert_same_as(self, expected: Path) -> None:
        for name in ("model.safetensors", "config.json"):
            assert (self.wire / name).read_bytes() == (expected / name).read_bytes(), name
        assert _rows(self.wire) == _rows(expected)

    def _is_trainer(self, process: Path) -> bool:
        # Processes may end while we look.
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")[1:-1]
            here = (process / "cwd").readlink() == self._workflow.path
        except OSError:
            return False
        seed = ["--seed", str(self._seed)]
        return here and words[:3] == ["-m", "latentwire", "train-wire"] and words[-2:] == seed


def _start_ticks(process: Path) -> int:
    # proc(5): the 22nd field, after a name in brackets that may hold anything.
    return int((process / "stat").read_text().rpartition(")")[2].split()[19])


def _rows(wire: Path) -> list[dict[str, float]]:
    """The metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (wire / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if "second" not in key} for row in rows]
