"""Loading, refusing and generating configurations."""

import difflib
import json
import re
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
import yaml

from latentwire.config import PROBE_METHODS, RELAY_METHODS, VARIANT_METHODS, Experiment, Method
from latentwire.config_files import REPOSITORY, generated_files
from latentwire.configuration import dump_yaml, load_experiment, validate
from latentwire.errors import UserError

SHIPPED = sorted((REPOSITORY / "config").glob("*.yaml"))
SQUAD_TRAINING_QUESTIONS = 87_599


def shipped(name: str) -> Experiment:
    return load_experiment(REPOSITORY / "config" / f"{name}.yaml")


def faults(mapping: object) -> str:
    with pytest.raises(UserError) as caught:
        validate(mapping)
    return str(caught.value)


@pytest.mark.parametrize("path", generated_files(), ids=str)
def test_generated_files_are_in_step(path):
    expected, found = generated_files()[path], (REPOSITORY / path).read_text()
    difference = "\n".join(
        difflib.unified_diff(found.splitlines(), expected.splitlines(), str(path), "models")
    )
    assert not difference, f"run `python -m latentwire config --write`\n{difference}"


def test_default_file_is_the_default_experiment():
    assert shipped("config") == Experiment()


def test_every_key_of_the_default_file_has_a_comment():
    lines = (REPOSITORY / "config/config.yaml").read_text().splitlines()
    # Of the list of receivers, only the first has comments.
    start = lines.index("  - name: qwen")
    del lines[start : lines.index("", start)]
    for before, line in pairwise(lines):
        if line and not line.lstrip().startswith(("#", "- [")):
            assert before.lstrip().startswith("#"), line


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
class TestShipped:
    def test_dump_loads_back_equal(self, path, tmp_path):
        experiment = load_experiment(path)
        copy = tmp_path / "copy.yaml"
        copy.write_text(dump_yaml(experiment))
        assert load_experiment(copy) == experiment
        assert yaml.safe_load(copy.read_text()).keys() == Experiment.model_fields.keys()

    def test_passes_the_schema(self, path):
        schema = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text())
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)

    def test_results_folder_is_its_own(self, path):
        names = [load_experiment(other).experiment for other in SHIPPED]
        assert names.count(load_experiment(path).experiment) == 1


def test_shipped_configurations():
    assert {path.stem for path in SHIPPED} == {
        "config",
        "pocket-full",
        "telepathy",
        "telepathy-squad",
        "ablations",
        "smoke",
        "squad",
        "squad-original",
        "squad-small",
        "hotpotqa",
    }


def test_pocket_full_is_the_default_with_more_steps_seeds_and_wires():
    full, default = shipped("pocket-full"), Experiment()
    assert len(full.seeds) == 3
    assert full.readers == default.receivers
    assert full.wire.model_copy(update={"receivers": None}) == default.wire
    assert full.training.model_copy(update={"steps": default.training.steps}) == default.training
    of_their_own = (*VARIANT_METHODS, *RELAY_METHODS, *PROBE_METHODS)
    assert full.evaluation.methods == [method for method in Method if method not in of_their_own]
    methods = {"methods": default.evaluation.methods}
    assert full.evaluation.model_copy(update=methods) == default.evaluation
    more = {"experiment", "seeds", "threads", "receivers", "wire", "training", "variants"}
    more |= {"evaluation", "probe"}
    for key in set(Experiment.model_fields) - more:
        assert getattr(full, key) == getattr(default, key)
    # A receiver that is added later was never seen in training.
    adapted = full.of_wire("adapted")
    assert not set(adapted.readers) & set(full.readers)


def test_ablations_change_one_factor_of_the_default_wire():
    ablations, default = shipped("ablations"), Experiment()
    assert len(ablations.seeds) == 3
    ratios = {"target_ratios": default.wire.target_ratios}
    assert ablations.wire.model_copy(update=ratios) == default.wire
    # What differs from the default of a run is its length, and how often it looks at dev.
    budget = {"steps", "alignment_steps", "ratio_growth", "dev_every_steps"}
    for key in set(type(default.training).model_fields) - budget:
        assert getattr(ablations.training, key) == getattr(default.training, key)
    for variant in ablations.variants:
        own = ablations.of_wire(variant.name)
        assert variant.seeds == ablations.seeds
        assert (own.wire.model_copy(update={"name": "shared"}), own.training) != (
            ablations.wire,
            ablations.training,
        )


def test_smoke_does_all_that_the_default_does():
    smoke, default = shipped("smoke"), Experiment()
    assert {receiver.source for receiver in smoke.receivers} == {"pretrain"}
    assert len(smoke.wire.target_ratios) > 1
    ratios = {"target_ratios": default.wire.target_ratios}
    assert smoke.wire.model_copy(update=ratios | {"receivers": None}) == default.wire
    assert smoke.evaluation.methods == default.evaluation.methods
    assert smoke.statistics.family == default.statistics.family


def test_squad():
    experiment = shipped("squad")
    assert [receiver.repo_id for receiver in experiment.receivers] == [
        "meta-llama/Llama-3.1-8B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
    ]
    assert {receiver.dtype for receiver in experiment.receivers} == {"bfloat16"}
    assert experiment.device == "cuda"
    assert experiment.data.dataset == "squad"
    assert experiment.data.max_train_questions is None
    assert experiment.wire.source_mode == "context"
    assert experiment.wire.encoder.pooling == "mean"
    assert experiment.wire.target_ratios == [4]
    assert experiment.wire.encoder.backbone.startswith("meta-llama/Llama-3.2-1B@")


def test_squad_original_holds_every_original_value():
    experiment = shipped("squad-original")
    assert experiment.receivers == shipped("squad").receivers
    assert experiment.data.max_train_questions == SQUAD_TRAINING_QUESTIONS
    assert experiment.wire.encoder.pooling == "queries"
    assert experiment.wire.encoder.num_latents == 32
    assert experiment.wire.latent_dim == 256
    assert experiment.wire.source_mode == "prompt"
    assert experiment.wire.adapter.calibration == "embed_rms"
    assert experiment.wire.adapter.gain == 1
    assert experiment.prompt.anchor_text == "Answer: "
    assert experiment.training.epochs == 24
    assert experiment.training.passages_per_step == 64
    assert experiment.training.k_token_depth == 4
    assert experiment.training.first_token_weight == 0.5


def test_all_faults_are_reported_at_once():
    message = faults(
        {
            "experimet": "x",
            "threads": 0,
            "data": {"source": "json", "trian": "a.json", "test": "b.json"},
            "receivers": [{"name": "a b", "source": "hubb"}],
            "wire": {"target_ratios": [4, 0.5], "encoder": {"poling": "mean"}},
            "statistics": {"family": [["latent", "truncate_hed"]]},
        }
    )
    lines = [line.strip() for line in message.splitlines()]
    assert lines[0] == "the configuration has 9 faults:"
    assert "experimet: unknown key (value 'x'); did you mean 'experiment'?" in lines
    assert "threads: 0 is not allowed: input should be greater than 0" in lines
    assert "data.trian: unknown key (value 'a.json'); did you mean 'train'?" in lines
    assert any(line.startswith("data.train: missing; Training file") for line in lines)
    assert any(line.startswith("receivers.0.name: 'a b' is not allowed; letters") for line in lines)
    assert (
        "receivers.0.source: 'hubb' is not allowed; allowed: bundled, pretrain, path, hub; did you "
        "mean 'hub'?"
    ) in lines
    assert any(line.startswith("wire.target_ratios.1: 0.5 is not allowed") for line in lines)
    assert "wire.encoder.poling: unknown key (value 'mean'); did you mean 'pooling'?" in lines
    assert any("statistics.family.0.1: 'truncate_hed'" in line for line in lines)


@pytest.mark.parametrize(
    ("mapping", "fragments"),
    [
        ({"data": {"source": "jsn"}}, ["data.source: 'jsn'", "pocket, json, hub", "mean 'json'"]),
        ({"data": {"seed": 1}}, ["data.source: missing; allowed: pocket, json, hub"]),
        ({"data": 3}, ["data: 3 is not allowed; a section"]),
        ([], ["the top level: [] is not allowed; a section"]),
        (
            {"data": {"source": "hub", "revision": "main"}},
            ["data.revision: 'main'", "full commit hash of 40"],
        ),
        (
            {"receivers": [{"name": "a", "source": "hub", "path": "b"}]},
            ["receivers.0: source: hub does not take the key 'path'", "needs the key 'revision'"],
        ),
        (
            {"receivers": [{"name": "llama", "source": "bundled"}] * 2},
            ["receivers: an entry occurs twice"],
        ),
        ({"wire": {"encoder": {"backbone": "lama"}}}, ["wire.encoder.backbone: 'lama'", "llama"]),
        ({"wire": {"encoder": {"num_latents": 3}}}, ["wire.encoder: num_latents belongs to"]),
        ({"wire": {"target_ratios": [4, 4]}}, ["wire.target_ratios: an entry occurs twice"]),
        ({"training": {"weight_decay": 0}}, ["training: give either steps or epochs"]),
        (
            {"training": {"steps": 9, "alignment_steps": 9}},
            ["9 alignment_steps and 0 text_steps leave none"],
        ),
        (
            {
                "receivers": [{"name": "llama", "source": "bundled", "dtype": "int8"}],
                "training": {"steps": 300, "shard_receivers": True},
            },
            ["training.shard_receivers: layers in int8 or nf4 cannot be shared out (['llama'])"],
        ),
        (
            {"wire": {"encoder": {"pooling": "queries", "num_latents": 3}}},
            [
                "training.alignment_steps: 400 needs latents that stand for a token each",
                "training.ratio_growth",
            ],
        ),
        ({"wire": {"encoder": {"reads_source": False}}}, ["reads_source: false needs pooling"]),
        (
            {
                "variants": [
                    {"name": name, "method": "latent_single", "wire": {"receivers": receivers}}
                    for name, receivers in (("a", ["llama"]), ("b", ["llama", "qwen"]))
                ]
            },
            ["variants: a and b are both latent_single for 'llama'; give them receivers of"],
        ),
        ({"prompt": {"template": "{question}"}}, ["prompt: template must hold {source}"]),
        ({"prompt": {"template": "{source}{question}{"}}, ["other braces in template"]),
        ({"evaluation": {"methods": ["latent"]}}, ["methods must hold 'text'"]),
        (
            {"evaluation": {"methods": ["text", "latent", "truncate_head", "closed_book"]}},
            ["statistics.family: compares 'control_shuffled', which evaluation.methods and"],
        ),
        (
            {
                "variants": [
                    {"name": name, "method": "ablation", "wire": {"latent_dim": width}}
                    for name, width in (("a", 64), ("b", 128))
                ],
                "statistics": {"family": [["ablation", "latent"]]},
            },
            ["statistics.family: 'ablation' is of several wires here, ['a', 'b']"],
        ),
        ({"statistics": {"confidence": 0.05}}, ["statistics.confidence", "0.5"]),
        ({"experiment": "../up"}, ["experiment: '../up' is not allowed; letters, digits"]),
    ],
)
def test_a_fault_names_key_value_and_what_is_allowed(mapping, fragments):
    message = faults(mapping)
    for fragment in fragments:
        assert fragment in message


class TestFile:
    def write(self, folder: Path, text: str) -> Path:
        path = folder / "mine.yaml"
        path.write_text(text)
        return path

    def test_missing(self, tmp_path):
        self.write(tmp_path, "experiment: x")
        with pytest.raises(UserError, match=r"your\.yaml does not exist; there are .*mine\.yaml"):
            load_experiment(tmp_path / "your.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [", "mine.yaml is not valid YAML"),
            ("", "must hold `key: value` lines, not nothing"),
            ("- a", "must hold `key: value` lines, not list"),
            ("experiment: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ],
    )
    def test_malformed(self, tmp_path, text, message):
        with pytest.raises(UserError, match=message):
            load_experiment(self.write(tmp_path, text))

    def test_names_the_file_of_a_fault(self, tmp_path):
        with pytest.raises(UserError, match=r"mine\.yaml has a fault:\n  thread: unknown key"):
            load_experiment(self.write(tmp_path, "thread: 1"))


class TestOverrides:
    def load(self, overrides: dict) -> Experiment:
        return load_experiment(REPOSITORY / "config/config.yaml", overrides)

    def test_set_values_at_any_depth(self):
        experiment = self.load(
            {"threads": 1, "wire.encoder.bidirectional": False, "receivers.1.dtype": "bfloat16"}
        )
        assert experiment.threads == 1
        assert not experiment.wire.encoder.bidirectional
        assert [receiver.dtype for receiver in experiment.receivers] == ["float32", "bfloat16"]

    def test_reach_what_the_file_leaves_out(self, tmp_path):
        path = tmp_path / "bare.yaml"
        path.write_text("experiment: bare")
        experiment = load_experiment(
            path, {"receivers.0.source": "pretrain", "length.max_source_tokens": 9}
        )
        assert [receiver.source for receiver in experiment.receivers] == ["pretrain", "bundled"]
        assert experiment.length.max_source_tokens == 9

    def test_another_source_replaces_the_section(self):
        data = self.load(
            {"data.source": "json", "data.train": "a.json", "data.test": "b.json"}
        ).data
        assert data.model_dump(exclude_unset=True) == {
            "source": "json",
            "train": Path("a.json"),
            "test": Path("b.json"),
        }

    def test_the_same_source_keeps_the_section(self):
        data = self.load({"data.source": "pocket", "data.seed": 3}).data
        assert (data.seed, data.train_passages) == (3, Experiment().data.train_passages)

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("wire.latent_dims", "wire.latent_dims: unknown key .* did you mean 'latent_dim'"),
            ("threads.x", "cannot set threads.x: threads is the value 2"),
            ("receivers.7", "cannot set receivers.7: receivers is a list, its entries are 0 to 1"),
            ("receivers.7.dtype", "cannot set receivers.7.dtype: receivers.7 is not there"),
        ],
    )
    def test_faults(self, key, message):
        with pytest.raises(UserError, match=message):
            self.load({key: 1})


def test_schema_refuses_unknown_keys_at_every_level():
    schema = generated_files()[Path("workflow/schemas/config.schema.json")]
    sections = [json.loads(schema), *json.loads(schema)["$defs"].values()]
    assert all(
        section["additionalProperties"] is False
        for section in sections
        if section["type"] == "object"
    )


def variant(**keys):
    return {"name": "other", "method": "ablation", **keys}


def test_a_variant_changes_what_it_says_and_keeps_the_rest():
    experiment = validate(
        {
            "seeds": [3, 4],
            "wire": {"target_ratios": [4, 8], "encoder": {"pooling": "last"}},
            "training": {"steps": 900},
            "variants": [
                variant(wire={"encoder": {"bidirectional": False}}, training={"kl_weight": 0.5})
            ],
        }
    )
    own = experiment.of_wire("other")
    assert own.wire.name == "other"
    assert own.wire.encoder.pooling == "last"
    assert not own.wire.encoder.bidirectional
    assert (own.training.steps, own.training.kl_weight) == (900, 0.5)
    assert own.seeds == [3]
    assert own.evaluation.wire_methods == ["ablation"]
    assert experiment.of_wire("shared") == experiment


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"wire": {"latent_dimm": 3}}, "variants: other: wire.latent_dimm: 3"),
        ({"training": {"steps": -1}}, "variants: other: training.steps: -1"),
        ({"wire": {"receivers": ["gemma"]}}, "variants: other: wire.receivers: 'gemma' is no"),
        ({"wire": {"encoder_of": "nobody"}}, "wire.encoder_of: 'nobody' is no other wire"),
        ({"wire": {"encoder_of": "shared"}}, "wire.receivers: 'llama' has an adapter"),
        ({"wire": {"start_from": "nobody"}}, "wire.start_from: 'nobody' is no other wire"),
        (
            {"wire": {"start_from": "shared", "latent_dim": 7}},
            "wire.latent_dim: differs from that of the wire 'shared'",
        ),
        ({"wire": {"start_from": "shared", "encoder_of": "shared"}}, "give either encoder_of or"),
        ({"name": "shared"}, "occurs twice"),
        ({"method": "latent"}, "'latent' belongs to no variant"),
    ],
)
def test_a_variant_that_makes_no_wire_is_refused(keys, fault):
    with pytest.raises(UserError, match=re.escape(fault)):
        validate({"variants": [variant(**keys)]})


def test_a_compressor_that_is_nowhere_is_refused():
    with pytest.raises(UserError, match=r"baselines\.llmlingua: 'gpt' is no receiver"):
        validate({"baselines": {"llmlingua": "gpt"}})
    validate({"baselines": {"llmlingua": "./gpt"}})


def test_llmlingua_reads_with_the_first_receiver():
    alone = {
        "receivers": [{"name": "qwen", "source": "bundled"}],
        "wire": {"encoder": {"backbone": "qwen"}},
    }
    assert validate(alone).llmlingua_model == "qwen"
    assert validate({"baselines": {"llmlingua": "./gpt"}}).llmlingua_model == "./gpt"


def test_a_wire_starts_from_adapters_that_are_there():
    other = variant(wire={"start_from": "shared", "receivers": ["qwen"]})
    with pytest.raises(UserError, match="'qwen' has no adapter in the wire 'shared'"):
        validate({"wire": {"receivers": ["llama"]}, "variants": [other]})


def test_an_encoder_is_only_asked_for_ratios_that_it_writes():
    adapted = variant(wire={"encoder_of": "shared", "receivers": ["qwen"], "target_ratios": [32]})
    with pytest.raises(UserError, match="does not write at 32, only at"):
        validate({"wire": {"receivers": ["llama"]}, "variants": [adapted]})


def test_a_sweep_holds_each_layer_once_and_all_are_trained_alike():
    experiment = shipped("telepathy")
    single = {("llama", (layer,)) for layer in range(5)} | {("qwen", (n,)) for n in range(4)}
    several = {("llama", (1, 2, 3)), ("qwen", (1, 2, 3)), ("qwen", (0, 1, 2, 3))}
    assert sorted(experiment.swept.values()) == sorted(single | several)
    wires = [experiment.of_wire(name) for name in experiment.swept]
    assert {own.wire.source_mode for own in wires} == {"context"}
    assert len({own.training.model_dump_json() for own in wires}) == 1
