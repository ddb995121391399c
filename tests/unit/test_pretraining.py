"""Pretraining of the pocket receivers: its aids point where they should."""

import itertools
import math

import pytest
import torch
from samples import make_receiver
from transformers import AutoTokenizer

from latentwire.config import Experiment, Pretraining
from latentwire.data.pocket import HELD_OUT_NAMES, NAMES, mixed_passages
from latentwire.files import save_pretrained
from latentwire.receivers.packing import packed_attention_mask, packed_positions
from latentwire.receivers.pretrain import (
    RECIPES,
    PretrainingTask,
    draw_passages,
    make_tokenizer,
    names_in_use,
)


@pytest.fixture(params=["llama", "qwen"])
def task(request):
    receiver = make_receiver(request.param)
    return PretrainingTask(Experiment(), receiver.model, receiver.tokenizer)


@pytest.fixture
def batch(task):
    return task._batch(list(itertools.islice(mixed_passages("aids"), 3)), [0, 12, math.inf])


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_tokenizer_splits_as_it_did_in_training(name, tmp_path):
    # transformers gives some families a splitting of their own, whatever the file says.
    tokenizer = make_tokenizer(RECIPES[name], Experiment(), seed=1)
    save_pretrained(tmp_path, RECIPES[name].build(tokenizer), tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [passage.context for passage in itertools.islice(mixed_passages("saved"), 100)]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    text = "1987, é🙂\n  in 7 or 350."
    assert loaded.decode(loaded.encode(text)) == text


def test_value_columns_hold_the_answer_tokens(task, batch):
    packed = batch.packed
    columns = task._value_columns(batch)
    # The end of sequence is nowhere.
    last = torch.ones_like(packed.starts_answer)
    last[:-1] = packed.starts_answer[1:]
    assert torch.equal(columns < 0, last)
    held = batch.ids[packed.target_rows, columns.clamp(min=0)] == packed.target_ids
    restates = batch.restates[packed.target_answers]
    assert held[~restates & ~last].all()
    # A restatement goes through the passage from its start, whose first word is spelled otherwise.
    for answer in batch.restates.nonzero():
        own = packed.target_answers == answer
        copied = columns[own & ~last]
        assert copied[0] == len(task._prompt.head_ids)
        steps = copied.diff()
        assert ((steps == 0) | (steps == 1)).all()
        assert (steps[3:] == 1).all()
        assert held[own & ~last][3:].all()


def test_a_restatement_has_the_first_facts_that_fit(task):
    passage = next(mixed_passages("restated"))
    counts = [len(passage.restated(words)) for words in (1, math.inf)]
    assert counts == [1, len(passage.facts)]
    for words in range(1, 60):
        stated = passage.restated(words)
        assert stated == passage.facts[: len(stated)]
        length = sum(len(fact.statement.split()) for fact in stated)
        assert length <= words or len(stated) == 1


def test_the_aided_heads_are_the_model_s_own(task, batch):
    packed = batch.packed
    model = task.module["model"]
    model.set_attn_implementation("eager")
    visible = packed_attention_mask(batch.mask, packed)
    with torch.no_grad():
        output = model.model(
            input_ids=torch.cat([batch.ids, packed.ids], dim=1),
            attention_mask=torch.zeros(visible.shape).masked_fill(~visible, -1e9),
            position_ids=packed_positions(batch.mask, packed),
            output_attentions=True,
            output_hidden_states=True,
        )
        logits = task._attention_logits(output.hidden_states[2], batch)
    columns = batch.ids.shape[1] + packed.target_columns
    expected = output.attentions[2][packed.target_rows, :, columns]
    torch.testing.assert_close(logits.softmax(-1), expected, atol=1e-5, rtol=1e-4)


def test_names_grow_from_a_few_to_all_and_none_is_held_out():
    settings = Pretraining(first_names=8, names_grow_after_steps=10, names_double_every_steps=5)
    sizes = [len(names_in_use(settings, step)) for step in (0, 10, 15, 20, 1000)]
    assert sizes == [8, 8, 16, 32, len(NAMES)]
    people = {
        name for step in range(30) for p in draw_passages(settings, step) for name in p.people
    }
    assert not people & set(HELD_OUT_NAMES)


def test_steps_differ_and_repeat():
    settings = Pretraining()
    assert draw_passages(settings, 3) == draw_passages(settings, 3)
    assert draw_passages(settings, 3) != draw_passages(settings, 4)
