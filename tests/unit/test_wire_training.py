"""Wire training: what it changes, and what it leaves alone."""

import pytest
import torch
import torch.nn.functional as F
from samples import make_receiver

from latentwire.config import Encoder, Experiment, PocketData, Receiver, Training
from latentwire.config import Wire as WireConfig
from latentwire.configuration import validate
from latentwire.data.pocket_source import read_pocket
from latentwire.data.tables import write_examples
from latentwire.errors import UserError
from latentwire.files import save_pretrained, write_json
from latentwire.layout import Layout
from latentwire.receivers.loading import load_receiver
from latentwire.training.loop import Schedule, fit
from latentwire.training.passages import continuation, middle_index, repetition
from latentwire.training.state import Identity, StateDirectory
from latentwire.training.wire import (
    WireTask,
    least_sharpness,
    make_wire,
    other_passages,
    pooling_widths,
    train_wire,
)
from latentwire.wire.pooling import num_groups
from latentwire.wire.reading import LatentBatch
from latentwire.wire.wire import Wire


@pytest.fixture
def task(tmp_path):
    return make_task(tmp_path)


@pytest.fixture
def aligned(tmp_path):
    return make_task(tmp_path, alignment_steps=1)


def make_task(tmp_path, readers=None, alignment_steps=0, **encoder):
    experiment = Experiment(
        experiment="tiny",
        data=PocketData(train_passages=40, dev_passages=2, test_passages=2),
        receivers=[
            Receiver(name="llama", source="bundled"),
            Receiver(name="qwen", source="bundled"),
        ],
        wire=WireConfig(latent_dim=16, receivers=readers, encoder=Encoder(**encoder)),
        training=Training(steps=4, passages_per_step=4, alignment_steps=alignment_steps),
    )
    layout = Layout("tiny", tmp_path)
    for receiver in experiment.receivers:
        made = make_receiver(receiver.name)
        save_pretrained(layout.receiver(receiver.name), made.model, made.tokenizer)
        write_json(
            layout.receiver(receiver.name) / "receiver.json", {"model": ".", "revision": None}
        )
    for split in ("train", "dev"):
        write_examples(layout.split(split), examples(split))
    receivers = [load_receiver(experiment, layout, r.name) for r in experiment.readers]
    return WireTask(experiment, layout, make_wire(experiment, layout, receivers, 1), receivers, 1)


def examples(split):
    corpus = read_pocket(PocketData(train_passages=40, dev_passages=2, test_passages=2))
    return [example for article in getattr(corpus, split) for example in article]


def test_receivers_stay_bit_identical_while_the_wire_learns(task, tmp_path):
    receivers = task._receivers
    before = [
        {name: value.clone() for name, value in r.model.state_dict().items()} for r in receivers
    ]
    wire_before = {name: value.clone() for name, value in task.module.state_dict().items()}
    schedule = Schedule(
        num_steps=4, warmup_steps=1, matrix_learning_rate=1e-2, other_learning_rate=1e-2
    )
    with StateDirectory(tmp_path / "state", Identity({}, "")) as state:
        fit(task, schedule, state)
    for receiver, weights in zip(receivers, before, strict=True):
        assert all(
            torch.equal(value, weights[name]) for name, value in receiver.model.state_dict().items()
        )
        assert all(parameter.grad is None for parameter in receiver.model.parameters())
    after = task.module.state_dict()
    assert not torch.equal(after["encoder.project.weight"], wire_before["encoder.project.weight"])


def test_lora_trains_updates_of_the_backbone_and_merges_them(tmp_path):
    task = make_task(tmp_path, lora_rank=2)
    encoder = task.module.encoder
    backbone = [n for n, p in encoder.backbone.named_parameters() if p.requires_grad]
    assert backbone
    assert all("lora" in name for name in backbone)
    assert encoder.project.weight.requires_grad
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    passages = [p.encoder_ids for p in task._passages[None][:2]]
    before = task.module.read(passages).hidden
    task.module.encoder.merge_lora()
    torch.testing.assert_close(task.module.read(passages).hidden, before, atol=1e-4, rtol=1e-4)
    task.module.save_pretrained(tmp_path / "wire")
    again = Wire.from_pretrained(tmp_path / "wire").read(passages).hidden
    torch.testing.assert_close(again, before, atol=1e-4, rtol=1e-4)


def test_checkpointed_activations_change_no_gradient(task):
    """Not even that of attention which was softened when it ran first, and is not any longer."""

    def gradients(task):
        task._least_sharpness = dict.fromkeys(task._least_sharpness, 0.5)
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        task.module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = task.losses(0)[0]["loss"]
        loss.backward()
        return [parameter.grad for parameter in task.module.parameters()], sum(kept.values())

    whole, kept_whole = gradients(task)
    settings = task._settings.model_copy(update={"checkpoint_activations": True})
    experiment = task._experiment.model_copy(update={"training": settings})
    layout, receivers = task._layout, task._receivers
    again, kept = gradients(WireTask(experiment, layout, task.module, receivers, 1))
    assert all(map(torch.equal, whole, again))
    assert kept < kept_whole / 2


def test_an_encoder_from_scratch_shares_nothing_with_its_backbone(tmp_path):
    trained, scratch = make_task(tmp_path / "a"), make_task(tmp_path / "b", from_scratch=True)
    backbones = [t.module.encoder.backbone.state_dict() for t in (trained, scratch)]
    assert backbones[0].keys() == backbones[1].keys()
    matrices = [name for name in backbones[0] if backbones[0][name].ndim == 2]
    assert not any(torch.equal(backbones[0][n], backbones[1][n]) for n in matrices)


def test_an_adapter_that_was_not_drawn_gets_no_gradient(task):
    task._settings = task._settings.model_copy(update={"receivers_per_step": "one"})
    losses, counts = task.losses(0)
    losses["loss"].backward()
    gradients = [adapter.up.weight.grad for adapter in task.module.adapters]
    assert sum(gradient is None for gradient in gradients) == 1
    assert counts["examples"] > 0


def test_all_receivers_read_the_messages_of_a_step(task):
    both = task.losses(0)[0]["loss"]
    task._settings = task._settings.model_copy(update={"receivers_per_step": "one"})
    receivers, alone = task._receivers, []
    for receiver in receivers:
        task._receivers = [receiver]
        alone.append(task.losses(0)[0]["loss"])
    torch.testing.assert_close(both, sum(alone) / 2)


def test_the_guard_reads_messages_of_other_passages(task):
    # A margin below zero keeps the guard above zero, whatever untrained models say.
    settings = {"guard_weight": 0.5, "guard_margin": -10.0, "max_questions_per_passage": 99}
    task._settings = task._settings.model_copy(update=settings)
    task._receivers = task._receivers[:1]
    task._experiment.wire.target_ratios[1:] = []
    reader = task._receivers[0]
    passages = [task._passages[None][index] for index in task.order.batch(0)[1]]
    order = other_passages([p.passage_id for p in passages])
    packed = reader.pack([p.questions[reader.name] for p in passages])
    latents = task._encode(passages, [4.0] * len(passages))
    others = task.module.soft_tokens(reader.name, latents).select(order)
    costs = [
        F.cross_entropy(reader.answer_logits(source, packed), packed.target_ids, reduction="none")
        for source in (others, reader.text_source([[]] * len(passages)))
    ]
    losses = task.losses(0)[0]
    guards = [
        (costs[0] - costs[1])[packed.target_answers == answer].mean() + 10
        for answer in packed.target_answers.unique()
    ]
    torch.testing.assert_close(losses["guard"], torch.stack(guards).mean())
    torch.testing.assert_close(
        losses["loss"], losses["cross_entropy"] + losses["kl"] + 0.5 * losses["guard"]
    )


def test_other_passages():
    assert other_passages(["a", "a", "b", "c"]) == [2, 2, 3, 0]
    assert other_passages(["a", "a"]) is None


def test_losses_are_a_pure_function_of_the_step(task):
    first = task.losses(2)[0]["loss"]
    task.losses(0)
    assert torch.equal(task.losses(2)[0]["loss"], first)


def test_every_receiver_reaches_the_target_ratio(task):
    for ratio, width in task.module.widths.items():
        for receiver in task._receivers:
            tokens = sum(len(p.source_ids[receiver.name]) for p in task._passages[None])
            latents = sum(max(1, round(len(p.encoder_ids) / width)) for p in task._passages[None])
            assert tokens / latents >= ratio * 0.98


def test_alignment_fits_soft_tokens_to_the_embeddings_of_the_same_text(aligned):
    aligned._settings = aligned._settings.model_copy(update={"alignment_steps": 60})
    parameters = [p for p in aligned.module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for step in range(60):
        loss = aligned.losses(step % 4)[0]["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_each_receiver_token_belongs_to_the_encoder_token_around_its_middle():
    # Encoder: "Bran|ford| 18|76"; receiver: "Br|anford| |1|8|76".
    encoder = [(0, 4), (4, 8), (8, 11), (11, 13)]
    receiver = [(0, 2), (2, 8), (8, 9), (9, 10), (10, 11), (11, 13)]
    assert middle_index(encoder, receiver) == [0, 1, 2, 2, 2, 3]


def test_ratio_grows_from_one_to_the_target(task):
    task._settings = task._settings.model_copy(update={"alignment_steps": 10, "ratio_growth": 0.5})
    task.num_steps = 100
    assert [task.growth(step) for step in (10, 35, 60, 99)] == [0, 0.5, 1, 1]
    wire, passages = task.module, task._passages[None][:3]
    sources = wire.read([p.encoder_ids for p in passages])
    lengths = [len(p.encoder_ids) for p in passages]
    assert wire.latents(sources, [16.0] * 3, 0.0).mask.sum(1).tolist() == lengths
    halfway = wire.latents(sources, [16.0] * 3, 0.5).mask.sum(1).tolist()
    assert halfway == [round(n / wire.widths[16.0] ** 0.5) for n in lengths]
    at_lowest = wire.latents(sources, [4.0] * 3).mask.sum(1).tolist()
    assert wire.latents(sources, [4.0] * 3, 0.6).mask.sum(1).tolist() == at_lowest


def test_softness_is_held_while_the_ratio_grows_and_then_falls_to_zero(task):
    task._settings = task._settings.model_copy(update={"alignment_steps": 10, "ratio_growth": 0.4})
    task.num_steps = 100
    assert [task.softness(step) for step in (10, 50)] == [1, 1]
    assert task.softness(65) == pytest.approx(0.5)
    assert [task.softness(step) for step in (80, 99)] == [0, 0]


def test_softening_costs_a_reader_of_text_what_is_allowed():
    assert least_sharpness(lambda sharpness: 1 / sharpness, 1.5) == pytest.approx(0.4, rel=0.02)
    assert least_sharpness(lambda sharpness: 1.0, 0.1) == pytest.approx(1 / 64, rel=0.02)
    assert least_sharpness(lambda sharpness: 1e9 * (sharpness < 1), 0.1) == 1


def test_relative_f1_on_dev_is_one_where_soft_tokens_are_the_text(task, monkeypatch):
    reader = task._receivers[0]
    questions = [p.questions[reader.name] for p in task._dev_passages[None]]
    text = reader.text_source([p.text_ids[reader.name] for p in task._dev_passages[None]])
    given = iter(reader.generate(text, [[ids for ids, _ in own] for own in questions], 16))
    for own in questions:
        # What the untrained receiver answers from the text becomes the gold.
        own[:] = [(ids, [*next(given), reader.tokenizer.eos_token_id]) for ids, _ in own]
    task._receivers = [reader]
    assert task._dev_text_f1 == {reader.name: 1}
    assert task.dev()[f"dev/{reader.name}/4x/relative_f1"] < 1
    monkeypatch.setattr(task.module, "soft_tokens", lambda *_: text)
    assert task.dev()[f"dev/{reader.name}/4x/relative_f1"] == 1


def test_dev_questions_are_answered_in_bfloat16_too(task):
    task._settings = task._settings.model_copy(update={"precision": "bfloat16"})
    reader = task._receivers[0]
    assert 0 <= task._dev_f1(reader, task._dev_passages[None], 4.0) <= 1


def test_dev_is_measured_with_the_receivers_as_they_are(task):
    expected = task.dev()
    task._least_sharpness = dict.fromkeys(task._least_sharpness, 0.3)
    task.losses(0)
    assert task.dev() == expected


def test_a_new_receiver_gets_an_adapter_and_changes_nothing_else(tmp_path):
    task = make_task(tmp_path, readers=["llama"])
    task.module.save_pretrained(task._layout.wire("shared", 1))
    adapted = {
        "name": "adapted",
        "method": "latent_adapted",
        "wire": {"encoder_of": "shared", "receivers": ["qwen"], "target_ratios": [8]},
    }
    experiment = validate(
        {**task._experiment.model_dump(mode="json"), "variants": [adapted]}
    ).of_wire("adapted")
    train_wire(experiment, task._layout, 1)
    wire, before = (
        Wire.from_pretrained(task._layout.wire(name, 1)) for name in ("adapted", "shared")
    )
    assert wire.wire_id == before.wire_id
    assert wire.widths == before.widths
    state = wire.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    messages = before.encode(["Ada was born in Ashford."], 4)
    assert wire.receive("llama", messages).embeddings.equal(
        before.receive("llama", messages).embeddings
    )
    assert (
        wire.receive("qwen", messages).embeddings.shape[-1] == wire.receivers["qwen"].embedding_dim
    )
    with pytest.raises(UserError, match="no adapter for receiver 'qwen'"):
        before.receive("qwen", messages)


def test_a_wire_goes_on_from_the_weights_of_another(tmp_path):
    task = make_task(tmp_path)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.add_(0.01)
    task.module.save_pretrained(task._layout.wire("shared", 1))
    other = {
        "name": "other",
        "method": "latent_prompt",
        "wire": {"start_from": "shared", "receivers": ["qwen"], "source_mode": "prompt"},
    }
    experiment = validate(
        {**task._experiment.model_dump(mode="json"), "variants": [other]}
    ).of_wire("other")
    receiver = load_receiver(experiment, task._layout, "qwen")
    wire = make_wire(experiment, task._layout, [receiver], 1)
    assert wire.wire_id == task.module.wire_id
    latents = LatentBatch(
        torch.randn(1, 3, wire.config.latent_dim),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(1),
    )
    assert torch.equal(
        wire.soft_tokens("qwen", latents).embeddings,
        task.module.soft_tokens("qwen", latents).embeddings,
    )
    assert all(parameter.requires_grad for parameter in wire.parameters())


def test_going_on_with_a_passage_parts_every_receivers_tokens_at_the_same_place(aligned):
    passage = aligned._passages[None][0]
    index = {name: own for name, (own,) in aligned._encoder_index([passage]).items()}
    going_on = continuation(passage, 0.4, index)
    kept = aligned.module.tokenizer.decode(going_on.encoder_ids)
    whole = aligned.module.tokenizer.decode(passage.encoder_ids)
    assert whole.startswith(kept)
    for receiver in aligned._receivers:
        ((first, rest),) = going_on.questions[receiver.name]
        written = receiver.tokenizer.decode([*first, *rest])
        assert len(first) == 1
        assert whole.endswith(written)
        # Tokens of two tokenizers may overlap at the cut.
        assert abs(len(kept) + len(written) - len(whole)) <= 6


def test_repeating_a_passage_asks_for_all_of_it_and_the_end(task):
    passage = task._passages[None][0]
    again = repetition(passage, *task._requests)
    assert again.encoder_ids == passage.encoder_ids
    for receiver in task._receivers:
        ((request, answer),) = again.questions[receiver.name]
        assert "Repeat the text." in receiver.tokenizer.decode(request)
        assert answer == [*passage.source_ids[receiver.name], receiver.tokenizer.eos_token_id]


def test_text_steps_come_between_alignment_and_answers(aligned):
    steps = {"text_steps": 2, "text_ratio": 16, "kl_weight": 1.0}
    aligned._settings = aligned._settings.model_copy(update=steps)
    losses = [set(aligned.losses(step)[0]) for step in range(4)]
    assert "llama/alignment_loss" in losses[0]
    # A teacher that reads the text has nothing to say on how the text goes on.
    assert losses[1] == losses[2] == {"loss", "cross_entropy"}
    assert "kl" in losses[3]


def test_the_likelihood_of_repeating_is_what_the_receiver_gives_it(tmp_path):
    task = make_task(tmp_path)
    steps = {"text_steps": 4, "repeat_share": 1.0, "receivers_per_step": "all"}
    task._settings = task._settings.model_copy(update=steps)
    _, indices = task.order.batch(0)
    passages = [task._passages[None][index] for index in indices]
    loss = task.losses(0)[0]["cross_entropy"]
    with torch.no_grad():
        latents = task._encode(passages, [16] * len(passages), task.growth(0))
        each = []
        for receiver in task._receivers:
            soft = task.module.soft_tokens(receiver.name, latents)
            logs = []
            for row, passage in enumerate(passages):
                request = receiver.prompt.question_ids(["Repeat the text."])[0]
                target = [*passage.source_ids[receiver.name], receiver.tokenizer.eos_token_id]
                embed = receiver.model.get_input_embeddings()
                inputs = torch.cat(
                    [
                        embed(torch.tensor(receiver.prompt.head_ids, dtype=torch.long)),
                        soft.embeddings[row][soft.mask[row]],
                        embed(torch.tensor([*request, *target[:-1]])),
                    ]
                )
                num_head, num_soft = len(receiver.prompt.head_ids), int(soft.mask[row].sum())
                places = [num_head + int(i * soft.spacing[row]) for i in range(num_soft + 1)]
                rest = range(places[-1], places[-1] + len(inputs) - num_head - num_soft)
                positions = torch.tensor([[*range(num_head), *places[:-1], *rest]])
                logits = receiver.model(inputs_embeds=inputs[None], position_ids=positions).logits[
                    0, -len(target) :
                ]
                logs.append(F.cross_entropy(logits, torch.tensor(target), reduction="none"))
            each.append(torch.cat(logs).mean())
    torch.testing.assert_close(loss, torch.stack(each).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [2, 4.0, 7.5])
def test_widths_reach_the_ratio_for_every_receiver_in_every_split(task, ratio):
    splits = [task._passages[None], task._dev_passages[None]]
    width = pooling_widths(splits, [ratio])[ratio]
    measured = []
    for passages in splits:
        tokens = torch.tensor([len(passage.encoder_ids) for passage in passages])
        count = num_groups(tokens, torch.full(tokens.shape, width)).sum()
        measured += [
            (sum(len(p.source_ids[name]) for p in passages) / count).item()
            for name in ("llama", "qwen")
        ]
    assert ratio <= min(measured) <= 1.1 * ratio


def test_no_width_is_wider_than_the_texts_are_long(task):
    lengths = [len(passage.encoder_ids) for passage in task._passages[None]]
    width = pooling_widths([task._passages[None]], [1000])[1000]
    assert max(lengths) <= width <= 2.1 * max(lengths)
