"""Where an experiment keeps its files; the folder names are a contract with the readers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "dev", "test"]
NO_WIRE = "none"


@dataclass(frozen=True)
class Layout:
    """Paths of one experiment, below `results/<experiment>/`."""

    experiment: str
    results: Path = Path("results")

    @property
    def root(self) -> Path:
        return self.results / self.experiment

    @property
    def existing_folder(self) -> Path:
        """The experiment's folder, or the one above it in which it will be made."""
        folders = [self.root, *self.root.absolute().parents]
        return next(folder for folder in folders if folder.exists())

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    def split(self, split: Split) -> Path:
        return self.root / "data" / f"{split}.parquet"

    @property
    def data_card(self) -> Path:
        return self.root / "data" / "card.json"

    def receiver(self, receiver: str) -> Path:
        return self.root / "receivers" / receiver

    def wire(self, wire: str, seed: int) -> Path:
        return self.root / "wires" / wire / f"seed{seed}"

    @property
    def compressor(self) -> Path:
        return self.root / "baselines" / "llmlingua2"

    def state(self, run: str) -> Path:
        return self.root / ".state" / run

    @property
    def features(self) -> Path:
        return self.root / ".features"

    def predictions(self, method: str, receiver: str, wire: str = NO_WIRE, seed: int = 0) -> Path:
        return self.root / "predictions" / method / receiver / wire / f"seed{seed}.parquet"

    def probe(self, sender: str) -> Path:
        return self.root / "probe" / f"{sender}.parquet"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def statistics(self) -> Path:
        return self.root / "statistics.json"

    @property
    def statistical_report(self) -> Path:
        return self.root / "statistical_report.json"

    @property
    def headline(self) -> Path:
        return self.root / "results.json"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def figure(self, name: str) -> Path:
        return self.root / "figures" / f"{name}.svg"

    def table(self, name: str) -> Path:
        return self.root / "tables" / f"{name}.csv"

    def page(self, name: str) -> Path:
        return self.root / "pages" / f"{name}.html"

    def events(self, run: str) -> Path:
        return self.root / "tensorboard" / run

    def log(self, stage: str) -> Path:
        return self.root / "logs" / f"{stage}.log"

    @property
    def launch(self) -> Path:
        return self.root / "logs" / "launch"

    def benchmark(self, stage: str) -> Path:
        return self.root / "benchmarks" / f"{stage}.tsv"
