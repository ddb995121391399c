"""Packed reading and generation against one question at a time."""

import copy
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from samples import ANSWERS, CONTEXTS, QUESTIONS
from transformers import GPT2Config, GPT2LMHeadModel

from latentwire.errors import UserError
from latentwire.receivers.loading import open_model
from latentwire.receivers.packing import pack_questions, pad_rows
from latentwire.receivers.prompt import Prompt
from latentwire.receivers.receiver import Receiver, Source, key_value_dim


def pack(receiver, answers=ANSWERS):
    rows = [
        list(zip(receiver.prompt.question_ids(q), receiver.prompt.answer_ids(a), strict=True))
        for q, a in zip(QUESTIONS, answers, strict=True)
    ]
    return receiver.pack(rows)


def prompt_ids(receiver, row, index):
    prompt = receiver.prompt
    source = prompt.source_ids([CONTEXTS[row]])[0]
    return [*prompt.head_ids, *source, *prompt.question_ids([QUESTIONS[row][index]])[0]]


def flat_questions():
    return [(row, index) for row, qs in enumerate(QUESTIONS) for index in range(len(qs))]


def test_packed_loss_is_the_hand_written_nll(receiver):
    packed = pack(receiver)
    source = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    logits = receiver.answer_logits(source, packed)
    log_probs = logits.log_softmax(-1).gather(1, packed.target_ids[:, None])[:, 0]
    for number, (row, index) in enumerate(flat_questions()):
        answer = receiver.prompt.answer_ids([ANSWERS[row][index]])[0]
        ids = prompt_ids(receiver, row, index)
        full = receiver.model(torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
        expected = [full[len(ids) - 1 + i, token] for i, token in enumerate(answer)]
        torch.testing.assert_close(
            log_probs[packed.target_answers == number], torch.stack(expected), atol=1e-4, rtol=1e-4
        )


def test_generation_equals_unbatched_generate(receiver):
    source = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    rows = [receiver.prompt.question_ids(questions) for questions in QUESTIONS]
    answers = receiver.generate(source, rows, max_new_tokens=8)
    for (row, index), answer in zip(flat_questions(), answers, strict=True):
        ids = torch.tensor([prompt_ids(receiver, row, index)])
        output = receiver.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )[0, ids.shape[1] :].tolist()
        eos = receiver.tokenizer.eos_token_id
        assert answer == (output[: output.index(eos)] if eos in output else output)
    assert len({tuple(answer) for answer in answers}) > 1


def test_soft_tokens_take_the_place_of_text(receiver):
    """Embeddings of the source, given as soft tokens with extra padding, change nothing."""
    packed = pack(receiver)
    text = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    padding = torch.full((len(CONTEXTS), 5, receiver.embedding_dim), 7.0)
    soft = Source(
        torch.cat([text.embeddings, padding], dim=1),
        torch.cat([text.mask, torch.zeros(len(CONTEXTS), 5, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(
        receiver.answer_logits(soft, packed),
        receiver.answer_logits(text, packed),
        atol=1e-4,
        rtol=1e-4,
    )


def deep_part(receiver, text):
    """Something for the keys and values of the first two layers."""
    shape = *text.mask.shape, key_value_dim(receiver.model.model.layers)
    generator = torch.manual_seed(1)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def add(added, start, projection, args, output):
    output[:, start : start + len(added)] += added


@contextmanager
def added_by_hand(receiver, deep, start):
    hooks = []
    for layer, both in zip(receiver.model.model.layers, deep, strict=False):
        halves = both.chunk(2, dim=-1)
        for name, added in zip(("k_proj", "v_proj"), halves, strict=True):
            projection = getattr(layer.self_attn, name)
            hooks.append(projection.register_forward_hook(partial(add, added, start)))
    yield
    for hook in hooks:
        hook.remove()


def test_soft_tokens_are_spread_and_deep(receiver):
    """Every source at a spacing of its own, and its own addition to a layer, against one question
    at a time.
    """
    packed = pack(receiver)
    text = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    spacings = torch.linspace(1.5, 4, len(CONTEXTS))
    deep = deep_part(receiver, text)
    source = Source(text.embeddings, text.mask, spacings, deep)
    logits = receiver.answer_logits(source, packed)
    answers = receiver.generate(
        source, [receiver.prompt.question_ids(row) for row in QUESTIONS], max_new_tokens=5
    )
    num_head = len(receiver.prompt.head_ids)
    for number, (row, index) in enumerate(flat_questions()):
        ids = prompt_ids(receiver, row, index)
        num_source, spacing = int(text.mask[row].sum()), spacings[row].item()
        answer = receiver.prompt.answer_ids([ANSWERS[row][index]])[0]
        for written in (answer, [*answers[number], *receiver.stop_ids]):
            positions = [
                *range(num_head),
                *(num_head + int(place * spacing) for place in range(num_source)),
                *(
                    num_head + int(num_source * spacing) + place
                    for place in range(len(ids) + len(written) - num_head - num_source)
                ),
            ]
            own = [added[row][text.mask[row]] for added in deep]
            with added_by_hand(receiver, own, num_head):
                expected = receiver.model(
                    torch.tensor([[*ids, *written]]), position_ids=torch.tensor([positions])
                ).logits[0, len(ids) - 1 :]
            if written is answer:
                torch.testing.assert_close(
                    logits[packed.target_answers == number], expected[:-1], atol=1e-4, rtol=1e-4
                )
            else:
                greedy = expected.argmax(-1).tolist()
                assert greedy[: len(answers[number])] == answers[number]


def test_one_reading_serves_generation_and_scoring(receiver):
    packed = pack(receiver)
    text = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    spacings = torch.linspace(1.5, 4, len(CONTEXTS))
    source = Source(text.embeddings, text.mask, spacings, deep_part(receiver, text))
    reading = receiver.read(source, [receiver.prompt.question_ids(row) for row in QUESTIONS])
    answers = reading.generate(max_new_tokens=5)
    golds = [ids for row in ANSWERS for ids in receiver.prompt.answer_ids(row)]
    logits, scored = reading.answer_logits(golds)
    assert torch.equal(scored.target_ids, packed.target_ids)
    torch.testing.assert_close(logits, receiver.answer_logits(source, packed), atol=1e-4, rtol=1e-4)
    # Neither has left anything behind, and empty answers need no further pass.
    assert reading.generate(max_new_tokens=5) == answers
    first, _ = reading.answer_logits([ids[-1:] for ids in golds])
    assert torch.equal(first, logits[scored.starts_answer])


def test_softening_scales_attention_logits_and_ends_with_its_block(receiver):
    packed = pack(receiver)
    source = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    sharp = receiver.answer_logits(source, packed)
    with receiver.softened(0.5):
        soft = receiver.answer_logits(source, packed)
    assert torch.equal(receiver.answer_logits(source, packed), sharp)
    model = copy.deepcopy(receiver.model)
    for name, parameter in model.named_parameters():
        if ".q_proj." in name:
            parameter.mul_(0.5)
    scaled = Receiver(receiver.name, model, receiver.tokenizer, receiver.prompt)
    torch.testing.assert_close(soft, scaled.answer_logits(source, packed), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(soft, sharp, atol=1e-3)


def test_the_last_mlp_computes_where_something_is_predicted_alone(receiver):
    packed, computed = pack(receiver), []
    source = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, args: computed.append(args[0].shape[:2].numel())
        )
        for layer in receiver.model.model.layers
    ]
    receiver.answer_logits(source, packed)
    for hook in hooks:
        hook.remove()
    everywhere = packed.ids.numel() + source.mask.numel()
    everywhere += len(CONTEXTS) * len(receiver.prompt.head_ids)
    assert computed == [everywhere] * (len(hooks) - 1) + [len(packed.target_ids)]


@pytest.mark.parametrize("is_taken", [True, False])
def test_experts_that_take_or_give_more_see_every_position(receiver, is_taken):
    packed = pack(receiver)
    source = receiver.text_source(receiver.prompt.source_ids(CONTEXTS))
    model, shapes = copy.deepcopy(receiver.model), []
    experts = model.model.layers[-1].mlp
    whole = experts.forward

    def forward(hidden, more=None):
        shapes.append(hidden.shape)
        return whole(hidden) if is_taken else (whole(hidden), more)

    experts.forward = forward
    if is_taken:
        experts.register_forward_pre_hook(
            lambda _, args, named: (args, named | {"more": 1}), with_kwargs=True
        )
    else:
        experts.register_forward_hook(lambda _, __, output: output[0])
    own = Receiver(receiver.name, model, receiver.tokenizer, receiver.prompt)
    expected = receiver.answer_logits(source, packed)
    torch.testing.assert_close(own.answer_logits(source, packed), expected, atol=1e-4, rtol=1e-4)
    assert shapes[-1][0] == len(CONTEXTS)


def test_receiver_is_frozen(receiver):
    assert not receiver.model.training
    assert not any(parameter.requires_grad for parameter in receiver.model.parameters())


def test_a_model_of_another_build_is_refused(tmp_path):
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="GPT2LMHeadModel, which cannot be a receiver"):
        open_model(str(tmp_path), None, "float32")


class GatedHub(BaseHTTPRequestHandler):
    """Answers as the hub does where a licence has not been accepted."""

    def do_HEAD(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model meta/llama is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()

    def log_message(self, *_):
        pass


def test_a_gated_model_without_a_token_says_how_to_get_it(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{hub.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match="meta/llama") as refusal:
            open_model("meta/llama", "0" * 40, "float32")
        hub.shutdown()
    assert "gated repo" in str(refusal.value)
    assert "`hf auth login` and the licence accepted" in str(refusal.value)


def test_answers_end_with_eos_and_carry_the_anchor_space(receiver):
    ids = receiver.prompt.answer_ids(["Ashford", ""])
    assert ids[1] == [receiver.tokenizer.eos_token_id]
    assert ids[0][-1] == receiver.tokenizer.eos_token_id
    whole = receiver.tokenizer.encode("x\nAnswer: Ashford", add_special_tokens=False)
    tail = receiver.prompt.anchor_ids + ids[0][:-1]
    assert whole[-len(tail) :] == tail


def test_control_tokens_in_user_text_stay_text(receiver):
    eos = receiver.tokenizer.eos_token
    ids = receiver.prompt.source_ids([f"a{eos}b"])[0]
    assert receiver.tokenizer.eos_token_id not in ids
    assert receiver.tokenizer.decode(ids) == f"a{eos}b"


@pytest.mark.parametrize("text", ["Größe 東京 🙂", "\x00\t\n  tail  ", "é" * 300])
def test_any_text_round_trips_uncut(receiver, text):
    assert receiver.tokenizer.decode(receiver.prompt.source_ids([text])[0]) == text


def test_chat_template_wraps_the_template(llama):
    chat = copy.deepcopy(llama.tokenizer)
    chat.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    prompt = Prompt(chat, "Read.\n{source}\nQ: {question}\n", "Answer: ")
    head = chat.decode(prompt.head_ids)
    tail = chat.decode(prompt.question_ids(["Why?"])[0])
    assert head.replace(" ", "") == "<s>user:Read.\n"
    assert tail.replace(" ", "") == "\nQ:Why?\n</s><s>assistant:Answer:"


def test_padding_rows_marks_real_tokens():
    ids, mask = pad_rows([[1, 2, 3], [4]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_packing_predicts_every_answer_token_from_the_position_before():
    # The second source has no question, the third an answer that is not known.
    packed = pack_questions([[([5, 6], [7, 8]), ([9], [1])], [], [([3, 4], [])]], pad_id=0)
    assert packed.ids.tolist() == [[5, 6, 7, 9], [0, 0, 0, 0], [3, 4, 0, 0]]
    assert packed.segments.tolist() == [[0, 0, 0, 1], [-1] * 4, [0, 0, -1, -1]]
    assert packed.offsets.tolist() == [[0, 1, 2, 0], [0] * 4, [0, 1, 0, 0]]
    assert packed.target_rows.tolist() == [0, 0, 0]
    assert packed.target_columns.tolist() == [1, 2, 3]
    assert packed.target_ids.tolist() == [7, 8, 1]
    assert packed.target_answers.tolist() == [0, 0, 1]
