"""The stage `probe`: can a linear map read the answer off a sender's own hidden states?

Shapes: N examples, H hidden width.
"""

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from latentwire.config import Experiment
from latentwire.data.classification import read_classification
from latentwire.data.tables import Example
from latentwire.errors import UserError
from latentwire.evaluation.scoring import exact_match
from latentwire.files import whole_file, write_json
from latentwire.layout import Layout
from latentwire.receivers.loading import load_receiver
from latentwire.receivers.receiver import Receiver
from latentwire.receivers.states import POOLINGS, check_layers, pooled_states

BATCH_STATES = 1024
REGULARISATIONS = [0.01, 0.1, 1.0, 10.0]
MOST_LAYERS = 5

States = NDArray[np.float32]
Labels = NDArray[np.str_]
Key = tuple[int, str]

logger = logging.getLogger(__name__)


class LinearProbe:
    """Standardised states, their principal components, logistic regression.

    States are taken batch by batch, so that they may lie on disk: memory is that of the components
    and of one batch. The strength of regularisation is chosen by cross-validation, whose folds keep
    groups together.

    Args:
        components: most principal components to keep.
        folds: folds of the cross-validation.
        seed: seed of the folds.
    """

    def __init__(self, components: int, folds: int, seed: int) -> None:
        self.components = components
        self.scaler = StandardScaler()
        self.classifier = GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": REGULARISATIONS},
            cv=StratifiedGroupKFold(folds, shuffle=True, random_state=seed),
        )

    def fit(self, states: States, labels: Labels, groups: Sequence[str]) -> "LinearProbe":
        """Fits the probe.

        Args:
            states: `[N, H]`, which may be mapped from a file.
            labels: `[N]`.
            groups: `[N]` what examples of one fold may share.
        """
        components = min(self.components, *states.shape)
        self.pca = IncrementalPCA(components, whiten=True)
        for batch in _batches(states):
            self.scaler.partial_fit(batch)
        for batch in _batches(states, components):
            self.pca.partial_fit(self.scaler.transform(batch))
        self.classifier.fit(self._reduced(states), labels, groups=groups)
        return self

    def predict(self, states: States) -> Labels:
        """Labels `[N]` of states `[N, H]`."""
        return self.classifier.predict(self._reduced(states))

    def _reduced(self, states: States) -> NDArray[Any]:
        return np.concatenate(
            [self.pca.transform(self.scaler.transform(batch)) for batch in _batches(states)]
        )


def _batches(states: States, least: int = 1) -> Iterator[States]:
    for rows in gen_batches(len(states), BATCH_STATES, min_batch_size=least):
        yield np.asarray(states[rows])


def probe(experiment: Experiment, layout: Layout, sender_name: str) -> None:
    """Probes the states of a receiver, as the sender that it would be, and lets it answer too.

    Layer and pooling are those that do best on dev. Writes the label that each predictor gives to
    each test example, and beside it a record of all that was tried.

    Raises:
        UserError: if section, receiver or data are missing, or the receiver has no such layer.
    """
    settings = experiment.probe
    if settings is None:
        raise UserError("probe: the experiment has no such section; write one")
    splits = read_classification(settings, layout)
    sender = load_receiver(experiment, layout, sender_name)
    layers = settings.layers or _spread(sender.model.config.num_hidden_layers)
    check_layers("probe.layers", layers, [sender])
    labels = {split: _labels(examples) for split, examples in splits.items()}
    groups = [example.passage_id for example in splits["train"]]
    layout.probe(sender_name).parent.mkdir(parents=True, exist_ok=True)

    def fitted(key: Key, targets: Labels) -> LinearProbe:
        own = LinearProbe(settings.components, settings.folds, settings.seed)
        return own.fit(states["train"][key], targets, groups)

    with tempfile.TemporaryDirectory(dir=layout.probe(sender_name).parent) as folder:
        states = {
            split: _write_states(sender, examples, layers, experiment, Path(folder) / split)
            for split, examples in splits.items()
        }
        probes: dict[Key, LinearProbe] = {}
        accuracies: dict[Key, float] = {}
        for key in [(layer, pooling) for layer in layers for pooling in settings.poolings]:
            # Every prompt ends with the same token.
            if key == (0, "last"):
                continue
            probes[key] = fitted(key, labels["train"])
            right = probes[key].predict(states["dev"][key]) == labels["dev"]
            accuracies[key] = float(right.mean())
            logger.info(
                "%s, layer %d, %s: accuracy on dev %.3f", sender_name, *key, accuracies[key]
            )
        best = max(accuracies, key=accuracies.__getitem__)
        shuffled = np.random.default_rng(settings.seed).permutation(labels["train"])
        predictions = {
            "linear_probe": probes[best].predict(states["test"][best]),
            "shuffled_labels": fitted(best, shuffled).predict(states["test"][best]),
        }
    counts = Counter(labels["train"].tolist())
    names, majority = sorted(counts), counts.most_common(1)[0][0]
    predictions["majority"] = np.full(len(labels["test"]), majority)
    predictions["sender_label"] = _own_answers(sender, splits["test"], names, majority, experiment)
    _write_predictions(layout.probe(sender_name), splits["test"], predictions)
    write_json(
        layout.probe(sender_name).with_suffix(".json"),
        {
            "sender": sender_name,
            "labels": names,
            "label_bytes": math.ceil(math.log2(max(2, len(names))) / 8),
            "examples": {split: len(examples) for split, examples in splits.items()},
            "chosen": {"layer": best[0], "pooling": best[1]},
            "tried": [
                {
                    "layer": layer,
                    "pooling": pooling,
                    "regularisation": probes[layer, pooling].classifier.best_params_["C"],
                    "dev_accuracy": accuracy,
                }
                for (layer, pooling), accuracy in accuracies.items()
            ],
        },
    )


def _spread(num_layers: int) -> list[int]:
    return sorted({round(layer) for layer in np.linspace(0, num_layers, MOST_LAYERS)})


def _labels(examples: Sequence[Example]) -> Labels:
    return np.array([example.answers[0] for example in examples])


def _write_states(
    sender: Receiver,
    examples: Sequence[Example],
    layers: Sequence[int],
    experiment: Experiment,
    folder: Path,
) -> dict[Key, States]:
    """States `[N, D]` by layer and pooling, mapped from files."""
    folder.mkdir()
    shape = (len(examples), sender.model.config.hidden_size)
    states: dict[Key, States] = {
        (layer, pooling): np.lib.format.open_memmap(
            folder / f"{layer}-{pooling}.npy", mode="w+", dtype=np.float32, shape=shape
        )
        for layer in layers
        for pooling in POOLINGS
    }
    for rows in gen_batches(len(examples), experiment.evaluation.batch_passages):
        for key, values in pooled_states(sender, examples[rows], layers).items():
            states[key][rows] = values.cpu().numpy()
    return states


def _own_answers(
    sender: Receiver,
    examples: Sequence[Example],
    names: Sequence[str],
    majority: str,
    experiment: Experiment,
) -> Labels:
    """The label that the sender's own answer names, the majority's if it names none."""
    prompt = sender.prompt
    found: list[str] = []
    for rows in gen_batches(len(examples), experiment.evaluation.batch_passages):
        batch = examples[rows]
        source = sender.text_source(prompt.source_ids([own.context for own in batch]))
        questions = prompt.question_ids([own.question for own in batch])
        answers = sender.generate(
            source, [[ids] for ids in questions], experiment.evaluation.max_new_tokens
        )
        found += [
            next((name for name in names if exact_match(text, [name])), majority)
            for text in sender.decode(answers)
        ]
    return np.array(found)


def _write_predictions(
    path: Path, examples: Sequence[Example], predictions: dict[str, Labels]
) -> None:
    table = pa.table(
        {
            "example_id": [example.example_id for example in examples],
            "passage_id": [example.passage_id for example in examples],
            "task": [example.task for example in examples],
            "label": _labels(examples),
        }
        | predictions
    )
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
