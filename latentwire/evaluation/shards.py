"""Parts of an evaluation that are finished, kept until all are, so that a killed one goes on."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from latentwire.cluster.machine import computing_facts
from latentwire.config import Experiment, Method
from latentwire.errors import UserError
from latentwire.evaluation.predict import report
from latentwire.evaluation.predictions import Prediction, read_predictions, write_predictions
from latentwire.files import file_digest, read_json, write_json
from latentwire.fingerprint import code_fingerprint
from latentwire.layout import Layout
from latentwire.training.processes import agree, is_leader, num_processes, rank
from latentwire.training.progress import format_seconds

_SECTIONS = {"threads", "device", "prompt", "receivers", "wire", "evaluation", "baselines"}

logger = logging.getLogger(__name__)


class Shards:
    """Parts of one evaluation, shared out where several processes answer together.

    Args:
        directory: where they are kept; undeclared to the workflow, as is the state of trainings.
        identity: what they were made from. Parts that were made from anything else are deleted.
        num_parts: how many there will be.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], num_parts: int) -> None:
        self._directory = directory
        self._num_left = len(range(rank(), num_parts, num_processes()))
        self._seconds: list[float] = []
        self._outputs: dict[tuple[Method, str, Path], list[Path]] = {}
        if is_leader():
            self._prepare(json.loads(json.dumps(identity)))
        agree()

    def _prepare(self, identity: dict[str, Any]) -> None:
        record = self._directory / "identity.json"
        if _saved_identity(record) != identity:
            shutil.rmtree(self._directory, ignore_errors=True)
            write_json(record, identity)
        elif parts := list(self._directory.glob("*.parquet")):
            logger.info("going on: %d parts of this evaluation are finished", len(parts))

    def answer(
        self,
        method: Method,
        receiver: str,
        output: Path,
        name: str,
        predict: Callable[[], list[Prediction]],
    ) -> None:
        """A part of an output, answered now by one of the processes unless it was before."""
        parts = self._outputs.setdefault((method, receiver, output), [])
        number = sum(map(len, self._outputs.values()))
        path = self._directory / f"{name}.parquet"
        parts.append(path)
        if number % num_processes() != rank():
            return
        self._num_left -= 1
        if not path.exists():
            started = time.monotonic()
            write_predictions(path, predict())
            self._seconds.append(time.monotonic() - started)
            left = format_seconds(fmean(self._seconds) * self._num_left)
            logger.info("%s is answered, %d parts and some %s left", name, self._num_left, left)

    def finish(self) -> None:
        """Puts the outputs together, once all parts are there, and deletes these."""
        agree()
        if not is_leader():
            return
        for (method, receiver, output), parts in self._outputs.items():
            rows = [
                Prediction(**row) for path in parts for row in read_predictions(path).to_pylist()
            ]
            write_predictions(output, rows)
            report(method, receiver, rows)
        # Another process that evaluates the same may have been faster.
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def open_shards(
    experiment: Experiment,
    layout: Layout,
    stage: str,
    inputs: Sequence[Path],
    module: str,
    num_parts: int,
) -> Iterator[Shards]:
    """Parts of a stage's evaluation, which make up its outputs once all are answered.

    Args:
        stage: names the folder.
        inputs: files that the evaluation reads, besides the test questions.
        module: what runs it, by its dotted name.
        num_parts: how many parts there will be.

    Raises:
        UserError: if an input is missing.
    """
    directory = layout.state(stage)
    files = [layout.split("test"), *inputs]
    shards = Shards(
        directory,
        {
            "settings": experiment.model_dump(
                mode="json", include=_SECTIONS, exclude={"evaluation": {"methods"}}
            ),
            "inputs": {str(path.relative_to(layout.root)): file_digest(path) for path in files},
            "code": code_fingerprint(module),
            "machine": computing_facts(),
        },
        num_parts,
    )
    yield shards
    shards.finish()


def _saved_identity(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None
