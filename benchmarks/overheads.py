"""What the workflow costs beside its stages: planning, starting stages, and time between jobs.

    python benchmarks/overheads.py results/pocket --config config/config.yaml

Run it where the experiment was run: jobs are placed in time by when Snakemake's benchmark files,
whose seconds they are, were written. Prints JSON: seconds of a dry run; of an interpreter that
imports what a stage needs, median and times the jobs; and those in which no job ran.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from latentwire.cluster.machine import computing_facts

# The largest of what stages import.
STAGE = "import latentwire.training.wire"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of a finished experiment")
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--repetitions", type=int, default=5, help="of each (default: 5)")
    options = parser.parse_args()
    planning = [sys.executable, "-m", "snakemake", "-n", "--configfile", str(options.config)]
    dry_run, start = (
        statistics.median(seconds(command) for _ in range(options.repetitions))
        for command in (planning, [sys.executable, "-c", STAGE])
    )
    jobs = read_jobs(options.results / "benchmarks")
    took = max(end for _, end in jobs) - min(start for start, _ in jobs)
    outcome = {
        "machine": computing_facts(),
        "dry_run_seconds": dry_run,
        "jobs": len(jobs),
        "stages_seconds": sum(end - start for start, end in jobs),
        "run_seconds": took,
        "between_jobs_seconds": took - covered(jobs),
        "start_of_a_stage_seconds": start,
        "start_of_all_stages_seconds": start * len(jobs),
        "asked": {"dry_run_seconds": 4},
    }
    print(json.dumps(outcome, indent=2))


def seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def read_jobs(folder: Path) -> list[tuple[float, float]]:
    """When each job began and ended, in seconds."""
    jobs = []
    for path in folder.glob("*.tsv"):
        with path.open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file, delimiter="\t")
        end = path.stat().st_mtime
        jobs.append((end - float(row["s"]), end))
    return jobs


def covered(jobs: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one job ran."""
    total, latest = 0.0, 0.0
    for start, end in sorted(jobs):
        total += max(0.0, end - max(start, latest))
        latest = max(latest, end)
    return total


if __name__ == "__main__":
    main()
