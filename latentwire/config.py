"""The configuration of an experiment: the single source for its keys, defaults and meaning.

`config/*.yaml`, the commented default file and the JSON schema all follow from these models.
The configuration holds science; what belongs to a machine (partitions, memory, retries) is in
`profiles/`.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=64)]
Ratio = Annotated[float, Field(ge=1)]
Positive = Annotated[int, Field(gt=0)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


S = TypeVar("S", bound=Section)


class PocketData(Section):
    """Procedural questions about invented people; the same seed gives the same bytes."""

    source: Literal["pocket"] = Field("pocket", description="Procedural corpus, needs no files.")
    seed: int = Field(1, description="Seed of the passages; splits draw from disjoint streams.")
    train_passages: Positive = Field(16000, description="Training passages.")
    full_length_share: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Share of them of full length, as all others are; the rest is of mixed length.",
    )
    dev_passages: Positive = Field(60, description="Full-length passages for model selection.")
    test_passages: Positive = Field(
        120, description="Full-length test passages; half of them use names absent from training."
    )


class JsonData(Section):
    """Official SQuAD v1 or v2 JSON, or JSON lines with the columns of the prepared tables."""

    source: Literal["json"] = Field("json", description="Files by path.")
    train: Path = Field(description="Training file (.json in SQuAD layout, or .jsonl).")
    test: Path = Field(description="Test file.")
    dev: Path | None = Field(None, description="Dev file; none holds out part of the training set.")
    dev_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the training articles held out as dev if no dev file.",
    )
    seed: int = Field(1, description="Seed of the choice of dev articles.")
    max_train_questions: Positive | None = Field(
        None, description="Use at most this many training questions, whole passages; none is all."
    )
    max_test_questions: Positive | None = Field(
        None, description="Use at most this many test questions, whole passages; none is all."
    )


_Classification = Literal["sst2", "ag_news", "trec"]
_DATASET_REVISION = (
    "Full commit hash of the dataset repository; of a repository with a loading script, of its "
    "conversion to Parquet."
)


class HubData(Section):
    """A dataset of the Hugging Face hub at a pinned revision."""

    source: Literal["hub"] = Field("hub", description="Dataset from the hub or its local cache.")
    dataset: Literal["squad", "squad_v2", "hotpotqa", _Classification] = Field(
        "squad",
        description="Which dataset. The last three are classifications: a text, a question for its "
        "label, and the label's name as the answer.",
    )
    revision: Commit = Field(description=_DATASET_REVISION)
    dev_share: float = Field(
        0.05, gt=0, lt=1, description="Share of the training articles held out as dev."
    )
    seed: int = Field(1, description="Seed of the choice of dev articles.")
    max_train_questions: Positive | None = Field(
        None, description="Use at most this many training questions, whole passages; none is all."
    )
    max_test_questions: Positive | None = Field(
        None, description="Use at most this many test questions, whole passages; none is all."
    )


Data = Annotated[PocketData | JsonData | HubData, Field(discriminator="source")]


class LengthPolicy(Section):
    """What to do with a question that does not fit; nothing is ever cut silently."""

    max_source_tokens: Positive = Field(
        1024, description="Longest source in any receiver's or the encoder's tokens."
    )
    over_length: Literal["drop", "error"] = Field(
        "drop", description="Drop and count longer ones in the data card, or stop."
    )


class PromptFormat(Section):
    """How a question is put to a receiver."""

    template: str = Field(
        "{source}\n{question}\n",
        description="User text with {source} and {question}; wrapped in the chat template if any.",
    )
    anchor_text: str = Field("Answer: ", description="Literal text between prompt and answer.")
    no_answer_text: str = Field(
        "", description="Gold of an unanswerable question; empty is an immediate end of sequence."
    )

    @model_validator(mode="after")
    def _placeholders(self) -> "PromptFormat":
        for placeholder in ("{source}", "{question}"):
            if self.template.count(placeholder) != 1:
                raise ValueError(
                    f"template must hold {placeholder} exactly once: {self.template!r}"
                )
        if self.template.index("{source}") > self.template.index("{question}"):
            raise ValueError("template must hold {source} before {question}")
        try:
            self.template.format(source="", question="")
        except (KeyError, IndexError, ValueError):
            raise ValueError(
                f"other braces in template must be doubled, {{{{ and }}}}: {self.template!r}"
            ) from None
        return self


class ReceiverSource(StrEnum):
    bundled = "bundled"
    pretrain = "pretrain"
    path = "path"
    hub = "hub"


class Receiver(Section):
    """A frozen causal language model that answers questions from latents."""

    name: Name = Field(description="Short name used in paths, tables and figures.")
    source: ReceiverSource = Field(
        description="bundled (resources/receivers), pretrain (made by the workflow), path, or hub."
    )
    path: Path | None = Field(None, description="Directory of a local model (source: path).")
    repo_id: str | None = Field(None, description="Hub repository (source: hub).")
    revision: Commit | None = Field(
        None, description="Full commit hash of the hub repository (source: hub)."
    )
    dtype: Literal["float32", "bfloat16", "int8", "nf4"] = Field(
        "float32",
        description="Precision in which the frozen weights are held. int8 and nf4, of 4 bits, are "
        "for the layers' matrices, all else is bfloat16; they need the package bitsandbytes.",
    )

    @property
    def is_quantised(self) -> bool:
        """Whether the layers' matrices are held in fewer bits than they are computed with."""
        return self.dtype in ("int8", "nf4")

    @model_validator(mode="after")
    def _location(self) -> "Receiver":
        needed = {"path": ("path",), "hub": ("repo_id", "revision")}.get(self.source, ())
        faults = [
            f"{'needs' if key in needed else 'does not take'} the key {key!r}"
            for key in ("path", "repo_id", "revision")
            if (getattr(self, key) is None) == (key in needed)
        ]
        if faults:
            raise ValueError(f"source: {self.source} " + " and ".join(faults))
        return self


class Pretraining(Section):
    """The recipe that makes the pocket receivers (receivers with source: pretrain)."""

    seed: int = Field(1, description="Seed of weights and corpus, disjoint from the data's.")
    steps: Positive = Field(1500, description="Optimiser steps.")
    passages_per_step: Positive = Field(
        8, description="Full-length passages in a step; shorter ones are proportionally more."
    )
    matrix_learning_rate: float = Field(4e-3, gt=0, description="Muon, for the weight matrices.")
    other_learning_rate: float = Field(1e-3, gt=0, description="AdamW, for everything else.")
    warmup_steps: Positive = Field(50, description="Linear warm-up.")
    text_loss_weight: float = Field(
        0.1, ge=0, description="Weight of passage and question tokens; answer tokens weigh 1."
    )
    owner_loss_weight: float = Field(
        0.2, ge=0, description="Weight of naming the person at every value and every anchor."
    )
    lookup_loss_weight: float = Field(
        0.3, ge=0, description="Weight of attention from an answer to its value."
    )
    restated_share: float = Field(
        0.5, ge=0, le=1, description="Share of passages that are to be restated as well."
    )
    restatement_loss_weight: float = Field(
        0.5, ge=0, description="Weight of these restatements, and of attention from them."
    )
    first_names: Positive = Field(8, description="Names in use at the start.")
    names_grow_after_steps: int = Field(200, ge=0, description="Steps with these names only.")
    names_double_every_steps: Positive = Field(
        50, description="Steps in which the names in use double from then on, until all are."
    )


class Pooling(StrEnum):
    mean = "mean"
    last = "last"
    attention = "attention"
    queries = "queries"
    memory = "memory"


class Grouping(StrEnum):
    even = "even"
    sentences = "sentences"
    related = "related"


class Encoder(Section):
    """The one trained network that turns source text into latents."""

    backbone: str = Field(
        "llama",
        description="Model that the encoder starts from: a receiver's name, a local directory with "
        "a slash in it, or a hub repository as owner/name@commit.",
    )
    from_scratch: bool = Field(
        False, description="Start from random weights of the backbone's architecture instead."
    )
    lora_rank: Positive | None = Field(
        None,
        description="Train updates of this rank in the backbone's linear layers; none trains all "
        "of its weights.",
    )
    layers: Literal["all", "last"] = Field(
        "all",
        description="States that latents are made of: the last layer's, or those of all layers, "
        "embeddings included, side by side.",
    )
    bidirectional: bool = Field(True, description="Attend in both directions instead of causally.")
    pooling: Pooling = Field(
        Pooling.mean,
        description="mean or last hidden state of each group of tokens; attention of the mean of "
        "each group to all tokens; queries, a fixed number of learned tokens behind the source; or "
        "memory, the first of such tokens, as many as the ratio asks for.",
    )
    pooling_layers: Positive = Field(
        2, description="Layers of such attention (pooling: attention); not used otherwise."
    )
    grouping: Grouping = Field(
        Grouping.related,
        description="Groups of tokens: even ones, wherever they end; those of neighbouring "
        "sentences, or of parts of one; or those of sentences that share rare words, wherever they "
        "stand, as far as sizes allow.",
    )
    num_latents: Positive | None = Field(
        None,
        description="Learned tokens behind the source: the length of the message with pooling: "
        "queries, the most that it can have with pooling: memory; not used otherwise.",
    )
    reads_source: bool = Field(
        True,
        description="Otherwise learned tokens never see a source: their message, always the same, "
        "is a soft prompt.",
    )

    @model_validator(mode="after")
    def _latents(self) -> "Encoder":
        has_queries = self.pooling in (Pooling.queries, Pooling.memory)
        if has_queries != (self.num_latents is not None):
            raise ValueError(
                "num_latents belongs to pooling: queries and memory, and must be set there only"
            )
        if not self.reads_source and not has_queries:
            raise ValueError("reads_source: false needs pooling: queries or memory")
        if self.from_scratch and self.lora_rank is not None:
            raise ValueError("lora_rank updates weights that are trained; from_scratch has none")
        return self


class Adapter(Section):
    """Per-receiver map from latents to soft tokens."""

    hidden_dim: Positive | None = Field(
        None, description="Width of the hidden layer; none takes twice the receiver's hidden size."
    )
    calibration: Literal["embed_rms", "none"] = Field(
        "embed_rms", description="Start soft tokens at a multiple of the receiver's embedding RMS."
    )
    gain: float = Field(1.0, gt=0, description="Start of the gain: that multiple.")
    learned_gain: bool = Field(
        True, description="Let training change the gain; otherwise it is a clamp."
    )
    deep_layers: int = Field(
        4,
        ge=0,
        description="Layers, from the bottom up, whose keys and values soft tokens add to as well; "
        "a receiver with fewer takes as many as it has.",
    )
    positions: Literal["spread", "consecutive"] = Field(
        "spread",
        description="spread: a soft token takes as many positions as the tokens it stands for, so "
        "that what follows stands where it would behind the text. consecutive: one position each. "
        "Learned queries stand for no token in particular, so theirs are consecutive.",
    )


class Senders(Section):
    """Frozen models whose hidden states the encoder reads in the place of text: telepathy."""

    names: list[Name] = Field(
        min_length=1,
        description="Receivers of the experiment that send. Of several the wire learns from each, "
        "and any of them can write its messages: a hub.",
    )
    layers: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1,
        description="Layers whose states are read, 0 for embeddings; several side by side.",
    )
    cache_gigabytes: float = Field(
        0.0,
        ge=0,
        description="Most that the states of training passages may take on disk, where later "
        "epochs and further wires of the experiment find them; 0 computes them at every step.",
    )

    def stem(self, source_mode: str) -> str:
        """How the name of a wire with these senders starts: who, where and what they see."""
        layers = "-".join(map(str, self.layers))
        setting = "blind" if source_mode == "context" else "informed"
        return f"telepathy-{'-'.join(self.names)}-layer{layers}-{setting}"


class Wire(Section):
    """The trained artefact: encoder and adapters."""

    name: Name = Field("shared", description="Names the wire's folder.")
    receivers: list[Name] | None = Field(
        None, min_length=1, description="Receivers that the wire is trained for; none is all."
    )
    encoder_of: Name | None = Field(
        None,
        description="Takes the trained encoder of this other wire of the experiment, of the same "
        "seed, as it is, and trains adapters alone.",
    )
    start_from: Name | None = Field(
        None,
        description="Starts from the encoder and adapters of this other wire of the experiment, of "
        "the same seed, and trains all of them on.",
    )

    @property
    def parent(self) -> str | None:
        """The other wire that this one is made from."""
        return self.encoder_of or self.start_from

    @property
    def sender_names(self) -> list[str]:
        """The senders, none for a wire that reads text."""
        return self.senders.names if self.senders else []

    @property
    def sender_layers(self) -> list[int]:
        """The layers whose states are read, none for a wire that reads text."""
        return self.senders.layers if self.senders else []

    source_mode: Literal["context", "prompt"] = Field(
        "context",
        description="context: the question stays text. prompt: the question is inside the latents, "
        "then the anchor follows.",
    )
    target_ratios: list[Ratio] = Field(
        [4, 8, 16],
        min_length=1,
        description="Compression ratios that the wire is trained and evaluated at, each reached "
        "for every receiver.",
    )
    latent_dim: Positive = Field(256, description="Width of a latent vector.")
    senders: Senders | None = Field(
        None, description="Models whose states the encoder reads; none reads text itself."
    )
    encoder: Encoder = Field(Encoder(), description="The encoder.")
    adapter: Adapter = Field(Adapter(), description="The adapters.")

    @model_validator(mode="after")
    def _one_parent(self) -> "Wire":
        if self.encoder_of and self.start_from:
            raise ValueError("give either encoder_of or start_from")
        return self


class Training(Section):
    """How a wire is trained. Everything counts steps, never seconds."""

    steps: Positive | None = Field(None, description="Optimiser steps; give steps or epochs.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training set.")
    passages_per_step: Positive = Field(
        16, description="Longest passages in a step; shorter ones are proportionally more."
    )
    micro_batches: Positive = Field(
        1,
        description="Parts that a step is read in, one after the other, which takes less memory; "
        "their gradients are summed. A power of two trains the same wire, to the bit, on so many "
        "processes as on half or a quarter of them, or one.",
    )
    receivers_per_step: Literal["one", "all"] = Field(
        "all",
        description="Receivers that read the messages of a step: all, or one that is drawn, which "
        "takes less time and memory.",
    )
    max_questions_per_passage: Positive = Field(
        16, description="Questions of a passage used together; a random choice if it has more."
    )
    matrix_learning_rate: float = Field(3e-3, gt=0, description="Muon, for the weight matrices.")
    other_learning_rate: float = Field(1e-3, gt=0, description="AdamW, for everything else.")
    warmup_steps: int = Field(50, ge=0, description="Linear warm-up.")
    alignment_steps: int = Field(
        0,
        ge=0,
        description="Steps at the start that fit soft tokens, one for each encoder token, to the "
        "receivers' embeddings of the same text; cheap, as no receiver reads.",
    )
    text_steps: int = Field(
        0,
        ge=0,
        description="Steps after these in which receivers write text from latents instead of "
        "answers: they go on with a passage, or repeat it.",
    )
    text_ratio: Ratio | None = Field(
        None, description="Target ratio in these steps; none takes the highest (text_steps)."
    )
    repeat_share: float = Field(
        0.2, ge=0, le=1, description="Share of passages to repeat in these steps (text_steps)."
    )
    ratio_growth: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of all steps in which the ratio, after alignment, grows from 1 to the "
        "highest target, lower ones being kept once they are reached; 0 starts at the targets.",
    )
    softening: float = Field(
        0.0,
        ge=0,
        description="Scales the receivers' attention logits down at first, so far that it costs "
        "them so many nats per answer token on full text; 0 is off. Sharp attention gives latents "
        "that it does not find no gradient.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    cross_entropy_weight: float = Field(1.0, ge=0, description="Weight of the gold answer's loss.")
    kl_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of KL(teacher || student); teacher = receiver with full text.",
    )
    teacher_top_k: Positive | None = Field(
        None,
        description="How many of the teacher's likeliest tokens are told apart; all others count "
        "as one, which takes less memory. None tells all apart.",
    )
    k_token_depth: int = Field(
        0, ge=0, description="Extra cross-entropy over the first K answer tokens; 0 is off."
    )
    first_token_weight: float = Field(
        0.0, ge=0, description="Extra cross-entropy weight on the first answer token."
    )
    guard_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a guard: a message of another passage may cost at most guard_margin "
        "more than no message; 0 is off.",
    )
    guard_margin: float = Field(
        0.1, ge=0, description="That margin, in nats per answer token (guard_weight)."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 computes under autocast."
    )
    checkpoint_activations: bool = Field(
        False,
        description="Keeps only the input of each layer for the backward pass, which computes the "
        "rest again: far less memory, about a third more time, the same outcome.",
    )
    shard_receivers: bool = Field(
        False,
        description="Spreads the frozen receivers' layers over the processes that train together "
        "(FSDP): less memory for each, the same outcome.",
    )
    log_every_steps: Positive = Field(
        20, description="A line of metrics.jsonl every so many steps."
    )
    dev_every_steps: Positive = Field(
        500, description="Measures on dev every so many steps, and at the end."
    )
    checkpoint_interval_seconds: float = Field(
        300, gt=0, description="Seconds between saves of the training state."
    )
    resume_across_code: bool = Field(
        False,
        description="Goes on with a training state that other code saved; resumes.json says so.",
    )

    @model_validator(mode="after")
    def _length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


NOT_SCIENCE: dict[str, Any] = {
    "training": {
        "checkpoint_activations",
        "shard_receivers",
        "checkpoint_interval_seconds",
        "resume_across_code",
    },
    "wire": {"senders": {"cache_gigabytes"}},
}
"""Keys that decide how a training goes, what memory it takes, when it is saved; not what
it makes."""


class Method(StrEnum):
    text = "text"
    closed_book = "closed_book"
    truncate_head = "truncate_head"
    truncate_random = "truncate_random"
    extractive = "extractive"
    extractive_question = "extractive_question"
    llmlingua = "llmlingua"
    llmlingua2 = "llmlingua2"
    llmlingua_question = "llmlingua_question"
    latent = "latent"
    latent_int8 = "latent_int8"
    latent_int4 = "latent_int4"
    latent_prompt = "latent_prompt"
    latent_adapted = "latent_adapted"
    latent_single = "latent_single"
    soft_prompt = "soft_prompt"
    gist = "gist"
    ablation = "ablation"
    control_shuffled = "control_shuffled"
    control_zero = "control_zero"
    control_mean = "control_mean"
    control_noise = "control_noise"
    control_swap = "control_swap"
    telepathy = "telepathy"
    telepathy_hub = "telepathy_hub"
    telepathy_informed = "telepathy_informed"
    text_relay = "text_relay"
    sender_alone = "sender_alone"
    linear_probe = "linear_probe"
    sender_label = "sender_label"


TEXT_METHODS = (Method.text, Method.closed_book, Method.truncate_head, Method.truncate_random)
"""Methods that need a receiver alone."""

COMPRESSOR_METHODS = (
    Method.extractive,
    Method.extractive_question,
    Method.llmlingua,
    Method.llmlingua2,
    Method.llmlingua_question,
)
"""Methods that choose what is left of the text by a ranking or a model."""

QUESTION_AWARE_METHODS = (
    Method.extractive_question,
    Method.llmlingua_question,
    Method.latent_prompt,
    Method.telepathy_informed,
)
"""Methods in which what a receiver gets was made in knowledge of the question."""

PAYLOAD_DTYPES = {
    Method.latent: "fp16",
    Method.latent_int8: "int8",
    Method.latent_int4: "int4",
}
"""How the shared wire's messages are written; those of all other methods are as fp16."""

TELEPATHY_METHODS = (Method.telepathy, Method.telepathy_hub, Method.telepathy_informed)
"""Methods whose messages are made of a sender's states: of one sender that has not seen the
question, of any of several, and of one that has."""

CONTROLS = (
    Method.control_shuffled,
    Method.control_zero,
    Method.control_mean,
    Method.control_noise,
    Method.control_swap,
)
"""Messages that are not what they should be: what a receiver makes of these shows what it reads."""

VARIANT_METHODS = (
    Method.latent_prompt,
    Method.latent_adapted,
    Method.latent_single,
    Method.soft_prompt,
    Method.gist,
    *TELEPATHY_METHODS,
    Method.ablation,
)
"""Methods that need a wire of their own."""


RELAY_METHODS = (Method.text_relay, Method.sender_alone)
"""Methods that come with senders: one writes what it read, in words, for a receiver; or answers
itself."""


PROBE_METHODS = (Method.linear_probe, Method.sender_label)
"""Methods of the section probe, which classify instead of answering."""


_MODEL_FORMS = (
    "otherwise give a directory with a slash in it, such as ./model, or a hub repository as "
    "owner/name@commit"
)


class Variant(Section):
    """A further wire: the shared one, but for what is said here."""

    name: Name = Field(description="Names the wire's folder.")
    method: Method = Field(
        description="The rows that it makes: latent_prompt, latent_adapted, latent_single, "
        "soft_prompt, gist, telepathy, telepathy_hub, telepathy_informed, or ablation. There may "
        "be several of a method, for receivers or from senders of their own."
    )
    controls: list[Method] = Field(
        [], description="Controls to evaluate through it as well, such as control_shuffled."
    )
    seeds: list[int] | None = Field(
        None, min_length=1, description="Its training seeds; none takes the experiment's first."
    )
    wire: dict[str, Any] = Field({}, description="Keys of the section wire that differ.")
    training: dict[str, Any] = Field({}, description="Keys of the section training that differ.")

    @model_validator(mode="after")
    def _method(self) -> "Variant":
        if self.method not in VARIANT_METHODS:
            raise ValueError(
                f"method: {self.method.value!r} belongs to no variant; allowed: "
                f"{', '.join(VARIANT_METHODS)}"
            )
        if self.controls and self.method not in TELEPATHY_METHODS:
            raise ValueError(
                "controls: for variants with wire.senders; others have the shared wire's"
            )
        if foreign := [method for method in self.controls if method not in CONTROLS]:
            raise ValueError(
                f"controls: {foreign[0].value!r} is no control; allowed: {', '.join(CONTROLS)}"
            )
        return self


class Baselines(Section):
    """The models that shorten text for receivers, which the wire is compared with."""

    llmlingua: str | None = Field(
        None,
        description="LLMLingua's causal language model: a receiver's name, a local directory with "
        "a slash in it, or a hub repository as owner/name@commit; none takes the first receiver.",
    )
    llmlingua2: str | None = Field(
        None,
        description="LLMLingua-2's token classifier: a local directory with a slash in it, or a "
        "hub repository as owner/name@commit; none trains a small one on the training questions.",
    )
    steps: Positive = Field(300, description="Optimiser steps of that training (llmlingua2).")
    passages_per_step: Positive = Field(
        32, description="Passages in a step of that training (llmlingua2)."
    )


class _ProbeSettings(Section):
    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="Layers whose states are probed, 0 for embeddings; none takes at most five, "
        "evenly spread.",
    )
    poolings: list[Literal["last", "mean"]] = Field(
        ["last", "mean"],
        min_length=1,
        description="The state of the last token before the answer, or the mean over the source.",
    )
    components: Positive = Field(256, le=1024, description="Principal components that are kept.")
    folds: int = Field(3, ge=2, description="Folds of the cross-validation.")
    max_train_examples: Positive = Field(5000, description="Use at most so many, the first.")
    seed: int = Field(1, description="Seed of folds and of shuffled labels.")


class PocketProbe(_ProbeSettings):
    """An attribute of a named person, as the pocket questions ask for it."""

    source: Literal["pocket"] = Field("pocket", description="Questions of the pocket corpus.")
    attribute: Literal["profession", "pet", "colour", "instrument"] = Field(
        "pet", description="What is asked of the person."
    )


class HubProbe(_ProbeSettings):
    """A classification dataset of the Hugging Face hub at a pinned revision."""

    source: Literal["hub"] = Field("hub", description="Dataset from the hub or its local cache.")
    dataset: _Classification = Field("sst2", description="Which dataset.")
    revision: Commit = Field(description=_DATASET_REVISION)
    dev_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the training examples held out as dev."
    )


Probe = Annotated[PocketProbe | HubProbe, Field(discriminator="source")]


class Evaluation(Section):
    """What is measured on the test split, which is read only here."""

    methods: list[Method] = Field(
        [
            method
            for method in Method
            if method
            not in (*VARIANT_METHODS, *QUESTION_AWARE_METHODS, *RELAY_METHODS, *PROBE_METHODS)
        ],
        min_length=1,
        description="Methods to evaluate; those of variants come with them. extractive_question "
        "and llmlingua_question shorten the text for each question anew.",
    )
    batch_passages: Positive = Field(32, description="Passages answered together.")
    max_new_tokens: Positive = Field(
        16, description="Cap on a generated answer, the same for every method."
    )
    seed: int = Field(1, description="Seed of the controls.")

    @property
    def text_methods(self) -> list[Method]:
        return [m for m in self.methods if m in (*TEXT_METHODS, Method.control_swap)]

    @property
    def compressor_methods(self) -> list[Method]:
        return [method for method in self.methods if method in COMPRESSOR_METHODS]

    @property
    def wire_methods(self) -> list[Method]:
        wireless = TEXT_METHODS + COMPRESSOR_METHODS
        return [method for method in self.methods if method not in wireless]

    @model_validator(mode="after")
    def _text(self) -> "Evaluation":
        if Method.text not in self.methods:
            raise ValueError("methods must hold 'text': relative_f1 is relative to it")
        if foreign := sorted(set(self.methods) & set(VARIANT_METHODS)):
            raise ValueError(f"methods: {foreign[0].value!r} comes with a variant; declare one")
        if foreign := sorted(set(self.methods) & set(RELAY_METHODS)):
            raise ValueError(f"methods: {foreign[0].value!r} comes with wire.senders of a variant")
        if foreign := sorted(set(self.methods) & set(PROBE_METHODS)):
            raise ValueError(f"methods: {foreign[0].value!r} comes with the section probe")
        return self


class Statistics(Section):
    """Intervals and tests; passages are the units."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    resamples: Positive = Field(10000, description="Bootstrap and permutation resamples.")
    correction: Literal["holm", "fdr_bh", "fdr_by", "bonferroni"] = Field(
        "holm", description="Correction over the whole declared family."
    )
    non_inferiority_margin: float = Field(
        0.03, gt=0, lt=1, description="Margin as a share of the text score."
    )
    family: list[tuple[Method, Method]] = Field(
        [
            (Method.latent, Method.truncate_head),
            (Method.latent, Method.closed_book),
            (Method.latent, Method.control_shuffled),
        ],
        description="Pairs of methods to compare, each per receiver and target ratio; declared "
        "before the run.",
    )
    seed: int = Field(1, description="Seed of the resampling.")


class Experiment(Section):
    """One complete experiment."""

    experiment: Name = Field("pocket", description="Names the folder under results/.")
    seeds: list[int] = Field([1], min_length=1, description="Training seeds of the shared wire.")
    threads: Positive = Field(
        2, description="CPU threads of every stage; part of the numerics, hence set here."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where models run.")
    data: Data = Field(PocketData(), description="Where questions come from.")
    length: LengthPolicy = Field(
        LengthPolicy(), description="Policy for sources that are too long."
    )
    prompt: PromptFormat = Field(PromptFormat(), description="The prompt.")
    receivers: list[Receiver] = Field(
        [
            Receiver(name="llama", source=ReceiverSource.bundled),
            Receiver(name="qwen", source=ReceiverSource.bundled),
        ],
        min_length=1,
        description="The receivers; a list, in the order of tables and figures.",
    )
    pretraining: Pretraining = Field(Pretraining(), description="Recipe of the pocket receivers.")
    wire: Wire = Field(Wire(), description="The shared wire.")
    training: Training = Field(
        Training(
            steps=2050,
            passages_per_step=9,
            alignment_steps=400,
            ratio_growth=0.35,
            softening=0.5,
            kl_weight=0.0,
        ),
        description="Training of the wire.",
    )
    variants: list[Variant] = Field([], description="Further wires.")
    baselines: Baselines = Field(Baselines(), description="Baselines.")
    probe: Probe | None = Field(
        None, description="Linear probe of the receivers' own states; none leaves it out."
    )
    evaluation: Evaluation = Field(Evaluation(), description="Evaluation.")
    statistics: Statistics = Field(Statistics(), description="Statistics.")

    @property
    def wires(self) -> list[str]:
        """Names of all wires, the shared one first."""
        return [self.wire.name, *(variant.name for variant in self.variants)]

    @property
    def source_modes(self) -> set[str]:
        """What the wires compress: `context`, `prompt` or both."""
        return {self.of_wire(name).wire.source_mode for name in self.wires}

    @property
    def backbones(self) -> list[str]:
        """What the encoders start from."""
        each = (self.of_wire(name).wire.encoder.backbone for name in self.wires)
        return list(dict.fromkeys(each))

    @property
    def senders(self) -> list[str]:
        """Receivers whose states some wire reads."""
        each = (name for wire in self.wires for name in self.of_wire(wire).wire.sender_names)
        return list(dict.fromkeys(each))

    @property
    def swept(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Ablations that read one sender: which, and the layers of it."""
        names = [variant.name for variant in self.variants if variant.method == Method.ablation]
        each = {name: self.of_wire(name).wire for name in names}
        return {
            name: (own.sender_names[0], tuple(own.sender_layers))
            for name, own in each.items()
            if len(own.sender_names) == 1
        }

    @property
    def llmlingua_model(self) -> str:
        """The causal language model of LLMLingua."""
        return self.baselines.llmlingua or self.receivers[0].name

    @property
    def readers(self) -> list[Receiver]:
        """The receivers that the wire is trained for."""
        names = self.wire.receivers
        return [r for r in self.receivers if names is None or r.name in names]

    def of_wire(self, name: str) -> "Experiment":
        """The experiment as one of its wires sees it: its settings, seeds and methods.

        Raises:
            ValidationError: if what a variant says makes no wire; never once the experiment stands.
        """
        variant = next((variant for variant in self.variants if variant.name == name), None)
        if variant is None:
            return self
        methods = [Method.text, variant.method, *variant.controls]
        return self.model_copy(
            update={
                "wire": _changed(self.wire, {**variant.wire, "name": name}),
                "training": _changed(self.training, variant.training),
                "seeds": variant.seeds or self.seeds[:1],
                "evaluation": self.evaluation.model_copy(update={"methods": methods}),
            }
        )

    @model_validator(mode="after")
    def _agreement(self) -> "Experiment":
        """Sections that refer to one another; all disagreements are reported together."""
        faults = [*self._repetitions(), *self._wire_faults(self)]
        for variant in self.variants:
            faults += [
                f"variants: {variant.name}: {fault}" for fault in self._variant_faults(variant)
            ]
        faults += self._method_faults()
        faults += self._baseline_faults()
        faults += self._probe_faults()
        faults += self._family_faults()
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _variant_faults(self, variant: Variant) -> list[str]:
        """What is wrong with a variant, in the words for its whole wire."""
        absent = Method.control_swap not in self.evaluation.methods
        if Method.control_swap in variant.controls and absent:
            return [
                "controls: control_swap is told by the text's own, which evaluation.methods lacks"
            ]
        try:
            return self._wire_faults(self.of_wire(variant.name))
        except ValidationError as error:
            return [
                f"{'.'.join([error.title.lower(), *map(str, details['loc'])])}: "
                f"{details['input']!r} is not allowed: {details['msg']}"
                for details in error.errors()
            ]

    def _wire_faults(self, own: "Experiment") -> list[str]:
        """What is wrong with a wire, given the experiment as it sees it."""
        wire, names = own.wire, [receiver.name for receiver in self.receivers]
        backbone = wire.encoder.backbone
        faults = [
            f"wire.receivers: {name!r} is no receiver of this experiment ({names})"
            for name in wire.receivers or []
            if name not in names
        ]
        if backbone not in names and "/" not in backbone:
            faults.append(
                f"wire.encoder.backbone: {backbone!r} is no receiver of this experiment ({names}); "
                f"{_MODEL_FORMS}"
            )
        return [
            *faults,
            *self._sender_faults(own),
            *self._parent_faults(own),
            *own._training_faults(),
        ]

    def _sender_faults(self, own: "Experiment") -> list[str]:
        """What is wrong with a wire that reads states of senders, or should."""
        wire, senders = own.wire, own.wire.senders
        method = next((v.method for v in self.variants if v.name == wire.name), Method.latent)
        if senders is None:
            if method in TELEPATHY_METHODS:
                return [f"method: {method.value!r} needs wire.senders"]
            return []
        names = [receiver.name for receiver in self.receivers]
        faults = [
            f"wire.senders.names: {name!r} is no receiver of this experiment ({names})"
            for name in senders.names
            if name not in names
        ]
        faults += [
            f"wire.senders.{key}: an entry occurs twice in {values}"
            for key, values in (("names", senders.names), ("layers", senders.layers))
            if len(set(values)) != len(values)
        ]
        fitting = (
            Method.telepathy_informed
            if wire.source_mode == "prompt"
            else Method.telepathy_hub
            if len(senders.names) > 1
            else Method.telepathy
        )
        if method not in (fitting, Method.ablation):
            faults.append(
                f"method: {method.value!r} does not fit a wire of {len(senders.names)} sender(s) "
                f"with source_mode: {wire.source_mode}; give {fitting.value!r}, as a variant"
            )
        if not wire.name.startswith(stem := senders.stem(wire.source_mode)):
            faults.append(f"name: the name of a wire with these senders starts with {stem!r}")
        return faults

    def _parent_faults(self, own: "Experiment") -> list[str]:
        """What keeps a wire from being made from another."""
        name = own.wire.parent
        if name is None:
            return []
        key = "wire.encoder_of" if own.wire.encoder_of else "wire.start_from"
        if name not in set(self.wires) - {own.wire.name}:
            return [f"{key}: {name!r} is no other wire of this experiment ({self.wires})"]
        other = self.of_wire(name)
        return (
            _new_receiver_faults(own, other) if own.wire.encoder_of else _start_faults(own, other)
        )

    def _training_faults(self) -> list[str]:
        training = self.training
        pooling = self.wire.encoder.pooling
        faults = [
            f"training.{key}: {value} needs latents {which}, but wire.encoder.pooling is "
            f"{pooling}; set it to 0"
            for key, value, which, without in (
                (
                    "alignment_steps",
                    training.alignment_steps,
                    "that stand for a token each",
                    (Pooling.queries, Pooling.memory),
                ),
                (
                    "ratio_growth",
                    training.ratio_growth,
                    "whose number changes",
                    (Pooling.queries,),
                ),
            )
            if value and pooling in without
        ]
        before = training.alignment_steps + training.text_steps
        if training.steps is not None and before >= training.steps:
            faults.append(
                f"training: {training.alignment_steps} alignment_steps and {training.text_steps} "
                f"text_steps leave none of the {training.steps} steps for answers; give fewer"
            )
        small = [reader.name for reader in self.readers if reader.is_quantised]
        if training.shard_receivers and small:
            faults.append(
                f"training.shard_receivers: layers in int8 or nf4 cannot be shared out ({small}); "
                "set it to false, or take another dtype"
            )
        return faults

    def _repetitions(self) -> list[str]:
        lists: dict[str, list[Any]] = {
            "receivers": [receiver.name for receiver in self.receivers],
            "seeds": self.seeds,
            "wire.name and variants": self.wires,
            "wire.target_ratios": self.wire.target_ratios,
            "evaluation.methods": self.evaluation.methods,
            "statistics.family": self.statistics.family,
        }
        return [
            f"{key}: an entry occurs twice in {[str(value) for value in values]}"
            for key, values in lists.items()
            if len(set(values)) != len(values)
        ]

    def _probe_faults(self) -> list[str]:
        if isinstance(self.probe, PocketProbe) and not isinstance(self.data, PocketData):
            return [
                f"probe.source: pocket needs data.source: pocket, not {self.data.source}; use hub"
            ]
        return []

    def _method_faults(self) -> list[str]:
        """Wires whose rows could not be told apart in tables."""
        makers: dict[tuple[Method, str, tuple[str, ...]], list[str]] = {}
        for variant in self.variants:
            names = variant.wire.get("receivers") or self.wire.receivers
            senders = tuple((variant.wire.get("senders") or {}).get("names", ()))
            for name in names or [receiver.name for receiver in self.receivers]:
                if variant.method != Method.ablation:
                    makers.setdefault((variant.method, name, senders), []).append(variant.name)
        return [
            f"variants: {' and '.join(wires)} are both {method} for {receiver!r}; give them "
            "receivers of their own (wire.receivers), or drop one"
            for (method, receiver, _), wires in makers.items()
            if len(wires) > 1
        ]

    def _baseline_faults(self) -> list[str]:
        names = [receiver.name for receiver in self.receivers]
        model = self.llmlingua_model
        if model in names or "/" in model:
            return []
        return [
            f"baselines.llmlingua: {model!r} is no receiver of this experiment ({names}); "
            f"{_MODEL_FORMS}"
        ]

    def _family_faults(self) -> list[str]:
        measured = {*self.evaluation.methods, *(variant.method for variant in self.variants)}
        compared = {method for pair in self.statistics.family for method in pair}
        faults = [
            f"statistics.family: compares {method.value!r}, which evaluation.methods and variants "
            "do not hold"
            for method in sorted(compared - measured)
        ]
        if several := sorted(compared & {*TELEPATHY_METHODS, *RELAY_METHODS}):
            faults.append(
                f"statistics.family: {several[0].value!r} may come from several senders, which one "
                "comparison cannot tell apart"
            )
        ablations = [own.name for own in self.variants if own.method == Method.ablation]
        if Method.ablation in compared and len(ablations) > 1:
            faults.append(
                f"statistics.family: 'ablation' is of several wires here, {ablations}, which one "
                "comparison cannot tell apart; `latentwire ablations` compares each"
            )
        return faults


def _new_receiver_faults(own: Experiment, other: Experiment) -> list[str]:
    """What keeps another wire's encoder from being this one's."""
    name = other.wire.name
    known = {receiver.name for receiver in other.readers}
    faults = []
    if own.wire.senders != other.wire.senders:
        faults.append(
            f"wire.senders: differs from that of the wire {name!r}, whose encoder it takes"
        )
    faults += [
        f"wire.receivers: {receiver.name!r} has an adapter in the wire {name!r} already; name "
        "receivers that are new to it"
        for receiver in own.readers
        if receiver.name in known
    ]
    return faults + [
        f"wire.target_ratios: the encoder of the wire {name!r} does not write at {ratio:g}, "
        f"only at {other.wire.target_ratios}"
        for ratio in own.wire.target_ratios
        if ratio not in other.wire.target_ratios
    ]


def _start_faults(own: Experiment, other: Experiment) -> list[str]:
    """What keeps another wire's weights from being this one's first."""
    name = other.wire.name
    known = {receiver.name for receiver in other.readers}
    faults = [
        f"wire.receivers: {receiver.name!r} has no adapter in the wire {name!r} to start from"
        for receiver in own.readers
        if receiver.name not in known
    ]
    return faults + [
        f"wire.{key}: differs from that of the wire {name!r}, whose weights it starts from"
        for key in ("latent_dim", "encoder", "adapter")
        if getattr(own.wire, key) != getattr(other.wire, key)
    ]


def _changed(section: S, changes: Mapping[str, Any]) -> S:
    """A section with some keys changed, those of sections in it too."""
    return type(section).model_validate(_merged(section.model_dump(), changes))


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged
