"""Parts of an evaluation that are finished, kept until all are, so that a killed one goes on."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from latentwire.cluster.machine import computing_facts
from latentwire.config import Experiment
from latentwire.errors import UserError
from latentwire.evaluation.predictions import Prediction, read_predictions, write_predictions
from latentwire.files import file_digest, read_json, write_json
from latentwire.fingerprint import code_fingerprint
from latentwire.layout import Layout

_SECTIONS = {"threads", "device", "prompt", "receivers", "wire", "evaluation", "baselines"}

logger = logging.getLogger(__name__)


class Shards:
    """Finished parts of one evaluation.

    Args:
        directory: where they are kept; undeclared to the workflow, as is the state of trainings.
        identity: what they were made from. Parts that were made from anything else are deleted.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._directory = directory
        record = directory / "identity.json"
        identity = json.loads(json.dumps(identity))
        if _saved_identity(record) != identity:
            shutil.rmtree(directory, ignore_errors=True)
            write_json(record, identity)
        elif parts := list(directory.glob("*.parquet")):
            logger.info("going on: %d parts of this evaluation are finished", len(parts))

    def rows(self, name: str, predict: Callable[[], list[Prediction]]) -> list[Prediction]:
        """The predictions of a part, made now unless they were before."""
        path = self._directory / f"{name}.parquet"
        if not path.exists():
            write_predictions(path, predict())
        return [Prediction(**row) for row in read_predictions(path).to_pylist()]


@contextlib.contextmanager
def open_shards(
    experiment: Experiment, layout: Layout, stage: str, inputs: Sequence[Path], module: str
) -> Iterator[Shards]:
    """Parts of a stage's evaluation, which go once the stage is done.

    Args:
        stage: names the folder.
        inputs: files that the evaluation reads, besides the test questions.
        module: what runs it, by its dotted name.

    Raises:
        UserError: if an input is missing.
    """
    directory = layout.state(stage)
    files = [layout.split("test"), *inputs]
    yield Shards(
        directory,
        {
            "settings": experiment.model_dump(
                mode="json", include=_SECTIONS, exclude={"evaluation": {"methods"}}
            ),
            "inputs": {str(path.relative_to(layout.root)): file_digest(path) for path in files},
            "code": code_fingerprint(module),
            "machine": computing_facts(),
        },
    )
    # Another process that evaluates the same may have been faster.
    shutil.rmtree(directory, ignore_errors=True)


def _saved_identity(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None
