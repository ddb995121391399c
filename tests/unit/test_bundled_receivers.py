"""The receivers under `resources/`: what their cards promise, and batched answers at length."""

import hashlib
import os
from itertools import islice

import pytest
import torch

from latentwire.config import Encoder, Experiment, Receiver, ReceiverSource, Wire
from latentwire.data.pocket import HELD_OUT_NAMES, full_length_passages
from latentwire.layout import Layout
from latentwire.receivers.build import BUNDLED, build_receiver
from latentwire.receivers.loading import load_receiver

PASSAGES = list(islice(full_length_passages("bundled", HELD_OUT_NAMES), 15))
MAX_NEW_TOKENS = 16


@pytest.fixture(scope="module", params=["llama", "qwen", "gemma"])
def bundled(request, tmp_path_factory):
    experiment = Experiment(
        receivers=[Receiver(name=request.param, source=ReceiverSource.bundled)],
        wire=Wire(encoder=Encoder(backbone=request.param)),
    )
    layout = Layout("pocket", tmp_path_factory.mktemp("results"))
    build_receiver(experiment, layout, request.param)
    return load_receiver(experiment, layout, request.param)


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
    for (passage, fact), answer in zip(flat, answers, strict=True):
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
        assert answer == (output[: output.index(eos)] if eos in output else output)


def test_names_never_seen_are_looked_up(bundled, answers):
    values = [fact.value for passage in PASSAGES for fact in passage.facts]
    right = sum(map(str.__eq__, bundled.decode(answers), values))
    assert right / len(values) >= 0.95


def test_the_card_names_the_weights_and_the_folder_is_small(bundled):
    folder = BUNDLED / bundled.name
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()
    assert sum(entry.stat().st_size for entry in os.scandir(folder)) <= 5_000_000
