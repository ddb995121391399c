"""The receivers under `resources/`: what their cards promise, and batched answers at length."""

import hashlib
import os
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from latentwire.config import Encoder, Experiment, Receiver, ReceiverSource, Wire
from latentwire.data.pocket import HELD_OUT_NAMES, full_length_passages
from latentwire.data.tables import Example
from latentwire.errors import UserError
from latentwire.evaluation.answering import answer
from latentwire.layout import Layout
from latentwire.planning.models import frozen_bytes
from latentwire.receivers import loading
from latentwire.receivers.build import BUNDLED, build_receiver
from latentwire.receivers.loading import load_receiver

PASSAGES = list(islice(full_length_passages("bundled", HELD_OUT_NAMES), 15))
MAX_NEW_TOKENS = 16


def load(name, folder, **settings):
    experiment = Experiment(
        receivers=[Receiver(name=name, source=ReceiverSource.bundled, **settings)],
        wire=Wire(encoder=Encoder(backbone=name)),
    )
    layout = Layout("pocket", folder)
    build_receiver(experiment, layout, name)
    return load_receiver(experiment, layout, name)


@pytest.fixture(scope="module", params=["llama", "qwen", "gemma"])
def bundled(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def answers(bundled):
    prompt = bundled.prompt
    source = bundled.text_source(prompt.source_ids([passage.context for passage in PASSAGES]))
    questions = [prompt.question_ids([f.question for f in p.facts]) for p in PASSAGES]
    return bundled.generate(source, questions, MAX_NEW_TOKENS)


def test_answers_side_by_side_equal_unbatched_generate_on_200_questions(bundled, answers):
    flat = [(passage, fact) for passage in PASSAGES for fact in passage.facts]
    assert len(flat) >= 200
    prompt, eos = bundled.prompt, bundled.tokenizer.eos_token_id
    for (passage, fact), given in zip(flat, answers, strict=True):
        source, question = (
            prompt.source_ids([passage.context]),
            prompt.question_ids([fact.question]),
        )
        ids = torch.tensor([[*prompt.head_ids, *source[0], *question[0]]])
        output = bundled.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )[0, ids.shape[1] :].tolist()
        assert given == (output[: output.index(eos)] if eos in output else output)


def test_names_never_seen_are_looked_up(bundled, answers):
    values = [fact.value for passage in PASSAGES for fact in passage.facts]
    right = sum(map(str.__eq__, bundled.decode(answers), values))
    assert right / len(values) >= 0.95


def test_the_likelihood_of_golds_is_theirs_whether_they_were_generated_or_not(bundled):
    prompt = bundled.prompt
    source = bundled.text_source(prompt.source_ids([passage.context for passage in PASSAGES]))
    groups = [
        [
            # Every other gold is none that would be generated.
            Example("", "", p.context, f.question, [(f.value, "x")[number % 2]], "")
            for number, f in enumerate(p.facts)
        ]
        for p in PASSAGES
    ]
    given = answer(bundled, source, groups, MAX_NEW_TOKENS, "")
    packed = bundled.pack(
        [
            [
                (prompt.question_ids([e.question])[0], prompt.answer_ids([e.answers[0]])[0])
                for e in group
            ]
            for group in groups
        ]
    )
    loss = F.cross_entropy(
        bundled.answer_logits(source, packed), packed.target_ids, reduction="none"
    )
    for number, own in enumerate(given):
        expected = loss[packed.target_answers == number].mean().item()
        assert own.nll == pytest.approx(expected, abs=1e-4)
    assert min(own.nll for own in given) < 0.1 < 1 < max(own.nll for own in given)


def test_the_card_names_the_weights_and_the_folder_is_small(bundled):
    folder = BUNDLED / bundled.name
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()
    assert sum(entry.stat().st_size for entry in os.scandir(folder)) <= 5_000_000


def right_and_gradient(receiver, passages):
    """The share of answer tokens that a receiver finds likeliest, and what the source should be."""
    prompt = receiver.prompt
    source = receiver.text_source(prompt.source_ids([p.context for p in passages]))
    embeddings = source.embeddings.detach().float().requires_grad_()
    rows = [
        list(
            zip(
                prompt.question_ids([fact.question for fact in p.facts]),
                prompt.answer_ids([fact.value for fact in p.facts]),
                strict=True,
            )
        )
        for p in passages
    ]
    packed = receiver.pack(rows)
    logits = receiver.answer_logits(replace(source, embeddings=embeddings), packed)
    torch.nn.functional.cross_entropy(logits, packed.target_ids).backward()
    is_right = logits.argmax(-1) == packed.target_ids
    return is_right.float().mean().item(), embeddings.grad.flatten()


@pytest.mark.parametrize(
    ("dtype", "held_as", "loss"), [("int8", torch.int8, 0.02), ("nf4", torch.uint8, 0.12)]
)
def test_a_quantised_receiver_answers_nearly_as_the_whole_one_and_teaches(
    dtype, held_as, loss, tmp_path
):
    passages = PASSAGES[:4]
    whole, small = (load("llama", tmp_path / own, dtype=own) for own in ("float32", dtype))
    matrices, small_matrices = (
        [m.weight for m in r.model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
        for r in (whole, small)
    )
    assert {weight.dtype for weight in small_matrices} == {held_as}
    assert len(small_matrices) == len(matrices) > 20
    assert small.model.lm_head.weight.dtype == torch.bfloat16
    whole_right, whole_gradient = right_and_gradient(whole, passages)
    right, gradient = right_and_gradient(small, passages)
    assert whole_right > 0.92
    assert right >= whole_right - loss
    # Four bits get other tokens wrong, and teach about those.
    if dtype == "int8":
        assert torch.nn.functional.cosine_similarity(gradient, whole_gradient, dim=0) > 0.95
    planned = frozen_bytes(whole.model.bfloat16(), dtype)
    assert small.model.get_memory_footprint() == pytest.approx(planned, rel=0.02)
    # What it teaches is the gradient of the weights that it holds.
    small.model = small.model.dequantize().float()
    _, expected = right_and_gradient(small, passages)
    assert torch.nn.functional.cosine_similarity(gradient, expected, dim=0) > 0.95


def test_quantising_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"`dtype: nf4`.*bitsandbytes.*latentwire\[quantised\]"):
        load("llama", tmp_path, dtype="nf4")
