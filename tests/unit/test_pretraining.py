"""Pretraining of the pocket receivers: its aids point where they should."""

import itertools

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
    experiment = Experiment(pretraining=Pretraining(lookup_heads=2))
    return PretrainingTask(experiment, receiver.model, receiver.tokenizer)


@pytest.fixture
def batch(task):
    return task._batch(list(itertools.islice(mixed_passages("aids"), 3)))


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
    ids, _, packed = batch
    columns = task._value_columns(ids, packed)
    found = columns >= 0
    assert torch.equal(
        ids[packed.target_rows, columns.clamp(min=0)][found], packed.target_ids[found]
    )
    last = torch.ones_like(found)
    last[:-1] = packed.starts_answer[1:]
    assert torch.equal(~found, last)


def test_the_aided_heads_are_the_model_s_own(task, batch):
    ids, mask, packed = batch
    model = task.module["model"]
    model.set_attn_implementation("eager")
    visible = packed_attention_mask(mask, packed)
    with torch.no_grad():
        output = model.model(
            input_ids=torch.cat([ids, packed.ids], dim=1),
            attention_mask=torch.zeros(visible.shape).masked_fill(~visible, -1e9),
            position_ids=packed_positions(mask, packed),
            output_attentions=True,
            output_hidden_states=True,
        )
        logits = task._attention_logits(output.hidden_states[2], mask, packed)
    columns = ids.shape[1] + packed.target_columns
    expected = output.attentions[2][packed.target_rows, :2, columns]
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
