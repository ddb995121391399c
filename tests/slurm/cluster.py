"""A private SLURM of one machine: two nodes with pretended GPUs, and a partition that preempts."""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
NODES = ("node1", "node2")
# A GPU is a device to SLURM; any will do, and these are everywhere.
GPUS = "/dev/null,/dev/zero,/dev/full,/dev/random"
GRACE_SECONDS, KILL_WAIT_SECONDS, NODE_TIMEOUT_SECONDS = 5, 10, 10
# Debian keeps the daemons where only root's PATH looks.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing_programs() -> list[str]:
    return [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=PATH) is None]


@contextlib.contextmanager
def running_cluster() -> Iterator["Cluster"]:
    """A started cluster; all of it is stopped and deleted again, whatever happened."""
    # Not the folder of pytest: munge wants one that others may enter, and sockets a short path.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


class Cluster:
    """Daemons that know each other through one folder and the loopback interface only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.host = socket.gethostname().partition(".")[0]
        self.socket = folder / "munge.socket"
        for name in ("bin", "log", "state", *NODES):
            (folder / name).mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """Environment for clients; it finds our wrappers, which name this cluster, first."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SNAKEMAKE"))}
        return kept | {"PATH": f"{self.folder / 'bin'}:{PATH}", "SLURM_CONF": str(self.config)}

    def start(self) -> None:
        self._write_files()
        self._start_munge()
        self._daemon("slurmctld", "-f", str(self.config))
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.idle_nodes() == set(NODES), "both nodes to be idle", 60)

    def stop(self) -> None:
        # What the daemons would save on a polite request is deleted anyway.
        for pid_file in self.folder.glob("*.pid"):
            _kill(int(pid_file.read_text()))
        self._kill_processes("")

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-N", node, "-f", str(self.config))

    def kill_node(self, node: str) -> None:
        """Ends the node as a power cut does: its daemon, and all that runs there."""
        _kill(int((self.folder / f"slurmd.{node}.pid").read_text()))
        for job in self.jobs("--nodelist", node):
            self._kill_processes(f"slurmstepd: [{job}.", f"SLURM_JOB_ID={job}\0")

    def _kill_processes(self, *marks: str) -> None:
        """Kills those of this cluster with one of the marks in their command or environment."""
        # Another cluster on this machine may have jobs of the same number.
        cluster = str(self.folder).encode()
        for process in Path("/proc").glob("[0-9]*"):
            # A process may end while we look.
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                if cluster in words and any(mark.encode() in words for mark in marks):
                    _kill(int(process.name))

    def run(self, *command: str) -> str:
        return subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment,
            cwd=self.folder,
        ).stdout.strip()

    def preempt(self, node: str) -> None:
        """Has a job of higher priority take a node, and waits for its end."""
        node_only = ("--partition=priority", f"--nodelist={node}", "--exclusive")
        job = self.run("sbatch", "--parsable", *node_only, "--output=/dev/null", "--wrap=true")
        wait_for(lambda: self.job(job)["JobState"] == "COMPLETED", "a preemption", 90)

    def jobs(self, *filters: str) -> list[str]:
        return self.run("squeue", "--noheader", "--format=%i", *filters).split()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def idle_nodes(self) -> set[str]:
        nodes = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N")
        return set(nodes.split())

    @property
    def log(self) -> str:
        """What the controller has logged."""
        return (self.folder / "log/slurmctld.log").read_text()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        files = {
            "--key-file": key,
            "--socket": self.socket,
            "--pid-file": self.folder / "munged.pid",
            "--log-file": self.folder / "log/munged.log",
            "--seed-file": self.folder / "munge.seed",
        }
        self._daemon("munged", *(f"{option}={path}" for option, path in files.items()))

    def _daemon(self, name: str, *arguments: str) -> None:
        """Starts a daemon, which goes to the background once it works."""
        program = shutil.which(name, path=PATH)
        assert program is not None
        output = self.folder / "log" / f"{name}.out"
        with output.open("ab") as file:
            outcome = subprocess.run(
                [program, *arguments], stdout=file, stderr=file, env=self.environment, timeout=60
            )
        assert outcome.returncode == 0, output.read_text()

    def _write_files(self) -> None:
        self.config.write_text(self._slurm_conf())
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu Type=h100 File={GPUS}\n" for node in NODES)
        )
        # Cgroups of the machine are not ours to touch.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        (self.folder / "plugstack.conf").touch()
        for client in CLIENTS:
            # Snakemake's job step takes SLURM_CONF away from srun.
            wrapper = self.folder / "bin" / client
            program = shlex.quote(str(shutil.which(client, path=PATH)))
            config = shlex.quote(str(self.config))
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {program} "$@"\n')
            wrapper.chmod(0o755)

    def _slurm_conf(self) -> str:
        user = Path("/proc/self").owner()
        controller_port, *node_ports = _free_ports(1 + len(NODES))
        nodes = "".join(
            f"NodeName={node} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            "RealMemory=300000 Gres=gpu:h100:4\n"
            for node, port in zip(NODES, node_ports, strict=True)
        )
        return (
            # Private.
            f"ClusterName=tests\nSlurmctldHost={self.host}(127.0.0.1)\n"
            f"SlurmUser={user}\nSlurmdUser={user}\nSlurmctldPort={controller_port}\n"
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny\n"
            f"SlurmctldPidFile={self.folder}/slurmctld.pid\n"
            f"SlurmdPidFile={self.folder}/slurmd.%n.pid\n"
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log\n"
            f"SlurmdLogFile={self.folder}/log/slurmd.%n.log\n"
            f"StateSaveLocation={self.folder}/state\nSlurmdSpoolDir={self.folder}/%n\n"
            f"PlugStackConfig={self.folder}/plugstack.conf\n"
            # A requeued job may start again when the credential of its first start has expired.
            f"AuthType=auth/munge\nAuthInfo=socket={self.socket},cred_expire=5\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n"
            "SwitchType=switch/none\nAccountingStorageType=accounting_storage/none\n"
            # More processors and memory may be declared than this machine has.
            "SlurmdParameters=config_overrides\nSelectType=select/cons_tres\n"
            "SelectTypeParameters=CR_Core_Memory\nGresTypes=gpu\n"
            # Quick: what a real cluster does in minutes.
            "SchedulerType=sched/backfill\n"
            "SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1\n"
            f"KillWait={KILL_WAIT_SECONDS}\nSlurmdTimeout={NODE_TIMEOUT_SECONDS}\n"
            "MinJobAge=600\nInactiveLimit=0\nReturnToService=2\nPriorityType=priority/basic\n"
            # Preemption.
            "JobRequeue=1\nPreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
            f"{nodes}"
            "PartitionName=preempt Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE "
            f"GraceTime={GRACE_SECONDS} MaxTime=1-0\n"
            "PartitionName=priority Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1-0\n"
        )


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Polls until the condition holds.

    Raises:
        AssertionError: if it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not _is_running(pid), f"process {pid} to end", 20)


def _is_running(pid: int) -> bool:
    """Whether the process runs; one that has ended may stay listed for a while, without words."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False
