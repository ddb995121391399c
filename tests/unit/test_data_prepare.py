"""From a source to prepared tables: reading, duplicates, lengths, splits and the data card."""

import json
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import latentwire
from latentwire.config import Experiment
from latentwire.configuration import validate
from latentwire.data.prepare import prepare
from latentwire.data.tables import group_by_passage, read_examples
from latentwire.errors import UserError
from latentwire.layout import Layout

SQUAD = Path(latentwire.__file__).parents[2] / "shared/data/squad"
WINDOW = 4096


@pytest.fixture
def layout(tmp_path) -> Layout:
    """An experiment's folder with a prepared receiver whose tokens are bytes."""
    layout = Layout("test", tmp_path / "results")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = layout.receiver("bytes")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    _write(folder / "receiver.json", {"model": ".", "revision": None, "max_positions": WINDOW})
    return layout


def _write(path: Path, value) -> Path:
    path.write_text(json.dumps(value))
    return path


def _experiment(data: dict, **sections) -> Experiment:
    receivers = [{"name": "bytes", "source": "bundled"}]
    wire = {"encoder": {"backbone": "bytes"}} | sections.pop("wire", {})
    return validate(
        {"experiment": "test", "data": data, "receivers": receivers, "wire": wire, **sections}
    )


def _passage(context: str, *questions: str, **more) -> dict:
    """A SQuAD paragraph whose questions are answered by its first word."""
    answer = {"text": context.split()[0], "answer_start": 0}
    return {
        "context": context,
        "qas": [
            {"id": f"{context[:8]}-{number}", "question": question, "answers": [answer], **more}
            for number, question in enumerate(questions)
        ],
    }


def _squad(path: Path, *articles: list[dict]) -> Path:
    data = [
        {"title": f"{path.stem}{number}", "paragraphs": paragraphs}
        for number, paragraphs in enumerate(articles)
    ]
    return _write(path, {"version": "v2.0", "data": data})


@pytest.fixture
def files(tmp_path) -> dict:
    """A training file of ten articles, and a test file of one."""
    train = [[_passage(f"T{number:03d} is here.", "Who?", "What?")] for number in range(10)]
    return {
        "source": "json",
        "train": str(_squad(tmp_path / "train.json", *train)),
        "test": str(_squad(tmp_path / "test.json", [_passage("Test is here.", "Who?")])),
    }


def _read(layout: Layout) -> dict:
    return {split: read_examples(layout.split(split)) for split in ("train", "dev", "test")}


def _card(layout: Layout) -> dict:
    return json.loads(layout.data_card.read_text())


POCKET = {"source": "pocket", "train_passages": 30, "dev_passages": 2, "test_passages": 4}


class TestPocket:
    def test_same_seed_same_bytes(self, layout):
        tables = []
        for seed in (1, 1, 2):
            prepare(_experiment(POCKET | {"seed": seed}), layout)
            tables.append({s: layout.split(s).read_bytes() for s in ("train", "dev", "test")})
        assert tables[0] == tables[1]
        assert all(tables[0][split] != tables[2][split] for split in tables[0])

    def test_card(self, layout):
        prepare(_experiment(POCKET), layout)
        card, examples = _card(layout), _read(layout)
        test = card["splits"]["test"]
        assert (test["questions"], test["passages"], test["unanswerable"]) == (56, 4, 0)
        assert test["tasks"] == {"pocket": 28, "pocket_unseen_names": 28}
        assert test["dropped"] == {}
        lengths = sorted({len(example.context.encode()) for example in examples["test"]})
        assert test["source_tokens"]["bytes"] == {
            "median": lengths[2],
            "p95": lengths[3],
            "max": lengths[3],
        }
        readable = layout.data_card.with_suffix(".md").read_text()
        assert "| test | 56 | 4 | 0 |" in readable
        assert "Nothing was left out." in readable
        assert f"| test | bytes | {lengths[2]} | {lengths[3]} | {lengths[3]} |" in readable


class TestFiles:
    def test_dev_is_held_out_by_article(self, layout, files):
        prepare(_experiment(files | {"dev_share": 0.2}), layout)
        examples = _read(layout)
        assert {split: len(rows) for split, rows in examples.items()} == {
            "train": 16,
            "dev": 4,
            "test": 1,
        }
        titles = {
            split: {example.passage_id.split("/")[0] for example in rows}
            for split, rows in examples.items()
        }
        assert titles["train"].isdisjoint(titles["dev"])

    def test_one_article_is_held_out_by_passage(self, layout, files, tmp_path):
        article = [_passage(f"P{number:03d} is here.", "Who?", "What?") for number in range(10)]
        _squad(tmp_path / "train.json", article)
        prepare(_experiment(files), layout)
        examples = _read(layout)
        assert (len(examples["train"]), len(examples["dev"])) == (18, 2)
        contexts = [{example.context for example in examples[split]} for split in ("train", "dev")]
        assert contexts[0].isdisjoint(contexts[1])

    def test_a_single_passage_cannot_be_held_out(self, layout, files, tmp_path):
        _squad(tmp_path / "train.json", [_passage("One is here.", "Who?")])
        with pytest.raises(UserError, match=r"cannot hold out dev .* give a file as data\.dev"):
            prepare(_experiment(files), layout)

    def test_dev_file(self, layout, files, tmp_path):
        dev = _squad(tmp_path / "dev.json", [_passage("Dev is here.", "Who?")])
        prepare(_experiment(files | {"dev": str(dev)}), layout)
        assert [example.context for example in _read(layout)["dev"]] == ["Dev is here."]
        assert len(_read(layout)["train"]) == 20
        assert _card(layout)["origin"]["files"]["dev"]["questions"] == 1

    def test_answers_keep_their_order_and_unanswerable_ones_have_none(
        self, layout, files, tmp_path
    ):
        passage = _passage("Some words are here.", "A?", "B?")
        passage["qas"][0]["answers"] = [{"text": text} for text in ("words", "Some", "words")]
        passage["qas"][1] |= {"answers": [], "is_impossible": True, "plausible_answers": []}
        _squad(tmp_path / "test.json", [passage])
        prepare(_experiment(files), layout)
        assert [example.answers for example in _read(layout)["test"]] == [["words", "Some"], []]
        assert _card(layout)["splits"]["test"]["unanswerable"] == 1

    def test_json_lines(self, layout, files, tmp_path):
        rows = [
            {
                "example_id": f"e{number}",
                "passage_id": f"p{number % 2}",
                "context": f"Context {number % 2}.",
                "question": f"Q{number}?",
                "answers": ["a"] if number else [],
                "task": "mine",
            }
            for number in range(4)
        ]
        path = tmp_path / "test.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        prepare(_experiment(files | {"test": str(path)}), layout)
        examples = _read(layout)["test"]
        assert [example.example_id for example in examples] == ["e0", "e2", "e1", "e3"]
        assert [len(passage) for passage in group_by_passage(examples)] == [2, 2]
        assert examples[0].answers == []
        assert examples[0].task == "mine"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda file: file.pop("data"), r"test\.json cannot be read:\n  data: Field required"),
            (
                lambda file: file["data"][0]["paragraphs"][0]["qas"][0].pop("id"),
                r"data\.0\.paragraphs\.0\.qas\.0\.id: Field required",
            ),
            (
                lambda file: file["data"][0]["paragraphs"][0]["qas"][0]["answers"].clear(),
                r"qas\.0: Value error, no answers, and not marked",
            ),
            (
                lambda file: file["data"][0]["paragraphs"][0]["qas"].append(
                    file["data"][0]["paragraphs"][0]["qas"][0]
                ),
                r"test\.json: 1 example id\(s\) occur more than once, such as Test is -0",
            ),
            (lambda file: file["data"].clear(), r"data\.test: .*test\.json holds no questions"),
        ],
    )
    def test_faulty_squad(self, layout, files, tmp_path, change, message):
        file = json.loads((tmp_path / "test.json").read_text())
        change(file)
        _write(tmp_path / "test.json", file)
        with pytest.raises(UserError, match=message):
            prepare(_experiment(files), layout)
        assert not layout.split("train").exists()

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("test.json", '{"data": [', r"test\.json cannot be read:\n.*Invalid JSON: EOF"),
            ("test.jsonl", '{"example_id": 1}', r"line 1: example_id: .*valid string"),
            ("test.jsonl", "\n{}", r"line 2: passage_id: Field required"),
            ("test.csv", "", r"data\.test: .*ends in '\.csv'; allowed are \.json"),
            ("absent.json", None, r"data\.test: .*absent\.json does not exist"),
        ],
    )
    def test_faulty_files(self, layout, files, tmp_path, name, text, message):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            prepare(_experiment(files | {"test": str(tmp_path / name)}), layout)

    def test_one_passage_id_for_two_contexts(self, layout, files, tmp_path):
        row = {
            "passage_id": "p",
            "question": "Q?",
            "answers": ["a"],
            "task": "mine",
        }
        path = tmp_path / "test.jsonl"
        path.write_text(
            "\n".join(json.dumps(row | {"example_id": c, "context": c}) for c in ("one", "two"))
        )
        with pytest.raises(UserError, match="line 2: passage_id 'p' stood for another context"):
            prepare(_experiment(files | {"test": str(path)}), layout)


class TestDuplicates:
    def test_a_passage_stays_in_one_split(self, layout, files, tmp_path):
        shared = [_passage("T003  IS here.", "Who?"), _passage("T004 is here.", "Who?")]
        _squad(tmp_path / "test.json", shared)
        dev = [_passage("T004 is here.", "Who?"), _passage("T005 is here.", "Who?")]
        files |= {"dev": str(_squad(tmp_path / "dev.json", dev))}
        prepare(_experiment(files), layout)
        examples = _read(layout)
        assert {example.context[:4] for example in examples["test"]} == {"T003", "T004"}
        assert {example.context[:4] for example in examples["dev"]} == {"T005"}
        assert len(examples["train"]) == 14
        splits = _card(layout)["splits"]
        assert splits["dev"]["dropped"] == {"passage also in test": {"questions": 1, "passages": 1}}
        assert splits["train"]["dropped"] == {
            "passage also in test": {"questions": 4, "passages": 2},
            "passage also in dev": {"questions": 2, "passages": 1},
        }

    def test_a_question_is_asked_once_of_a_passage(self, layout, files, tmp_path):
        articles = [
            [_passage("One is here.", "Who?", "who? ", "What?")],
            [_passage("Two is here.", "Who?"), _passage("One is here.", "What?", "Why?")],
        ]
        for number, paragraph in enumerate(paragraph for a in articles for paragraph in a):
            for question in paragraph["qas"]:
                question["id"] += f"-{number}"
        _squad(tmp_path / "test.json", *articles)
        prepare(_experiment(files), layout)
        passages = group_by_passage(_read(layout)["test"])
        assert [[example.question for example in passage] for passage in passages] == [
            ["Who?", "What?", "Why?"],
            ["Who?"],
        ]
        assert _card(layout)["splits"]["test"]["dropped"] == {
            "question asked before of the passage": {"questions": 2, "passages": 0}
        }

    def test_an_empty_split_is_refused(self, layout, files):
        with pytest.raises(UserError, match=r"the (train|dev) split is empty: \d+ questions read"):
            prepare(_experiment(files | {"test": files["train"]}), layout)
        assert not layout.split("test").exists()


class TestLimits:
    def test_whole_passages_up_to_the_limit(self, layout, files):
        prepare(_experiment(files | {"max_train_questions": 7}), layout)
        examples = _read(layout)["train"]
        assert [len(passage) for passage in group_by_passage(examples)] == [2, 2, 2]
        dropped = _card(layout)["splits"]["train"]["dropped"]
        assert dropped == {"above max_train_questions": {"questions": 12, "passages": 6}}

    def test_a_larger_limit_holds_the_smaller_one(self, layout, files):
        chosen = []
        for limit in (4, 8):
            prepare(_experiment(files | {"max_train_questions": limit}), layout)
            chosen.append({example.example_id for example in _read(layout)["train"]})
        assert chosen[0] < chosen[1]

    def test_less_than_a_passage_is_refused(self, layout, files):
        with pytest.raises(UserError, match=r"data\.max_train_questions: 1 is less than the 2"):
            prepare(_experiment(files | {"max_train_questions": 1}), layout)


class TestLengths:
    def test_long_sources_are_dropped_and_counted(self, layout, files, tmp_path):
        passages = [_passage(word * 10, "Who?", "What?") for word in ("Short ", "Much longer ")]
        _squad(tmp_path / "test.json", passages)
        prepare(_experiment(files, length={"max_source_tokens": 60}), layout)
        assert {example.context for example in _read(layout)["test"]} == {"Short " * 10}
        card = _card(layout)["splits"]["test"]
        assert card["dropped"] == {
            "source longer than 60 tokens of bytes (longest 120)": {"questions": 2, "passages": 1}
        }
        assert card["source_tokens"]["bytes"]["max"] == 60

    def test_the_limit_counts_the_question_where_the_source_holds_it(self, layout, files):
        length = {"max_source_tokens": len("T000 is here.\nWho?")}
        prepare(_experiment(files, length=length, wire={"source_mode": "prompt"}), layout)
        assert {example.question for example in _read(layout)["train"]} == {"Who?"}

    @pytest.mark.parametrize("excess", [0, 1])
    def test_the_window_holds_source_question_and_answer(self, layout, files, tmp_path, excess):
        # Byte tokens: context, template, question, anchor, answer, end of sequence.
        context = "Word" + " " * 3000 + "x"
        frame = len(f"{context}\n" + "\nAnswer: Word") + 1
        question = "?" * (WINDOW - frame + excess)
        _squad(tmp_path / "test.json", [_passage(context, question, "Who?")])
        prepare(_experiment(files, length={"max_source_tokens": 4000}), layout)
        assert len(_read(layout)["test"]) == 2 - excess
        reasons = list(_card(layout)["splits"]["test"]["dropped"])
        assert reasons == ["prompt and answer longer than the 4096 positions of bytes"] * excess

    def test_the_policy_can_be_to_stop(self, layout, files):
        length = {"max_source_tokens": 3, "over_length": "error"}
        with pytest.raises(UserError, match=r"length\.over_length .* such as T00\d is -0: source"):
            prepare(_experiment(files, length=length), layout)

    def test_dropping_everything_is_refused(self, layout, files):
        with pytest.raises(UserError, match=r"the train split is empty: .* dropped: source longer"):
            prepare(_experiment(files, length={"max_source_tokens": 3}), layout)

    def test_an_encoder_of_its_own_counts_too(self, layout, files):
        encoder = {"backbone": str(layout.receiver("bytes"))}
        prepare(_experiment(files, wire={"encoder": encoder}), layout)
        assert set(_card(layout)["splits"]["train"]["source_tokens"]) == {"bytes", "encoder"}

    def test_receivers_come_first(self, tmp_path, files):
        with pytest.raises(UserError, match=r"receiver\.json does not exist"):
            prepare(_experiment(files), Layout("test", tmp_path / "empty"))


REVISION = "0123456789" * 4


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch):
        """Stands in for the hub: datasets by repository, and what was asked for."""
        stored, asked = {}, []

        def load_dataset(*arguments, **options):
            asked.append((*arguments, options))
            if arguments[0] not in stored:
                raise ConnectionError("Couldn't reach the Hub")
            return datasets.DatasetDict(
                {
                    split: datasets.Dataset.from_list(rows, stored.get("features"))
                    for split, rows in stored[arguments[0]].items()
                }
            )

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        stored["asked"] = asked
        return stored

    def test_squad_v2(self, layout, hub):
        def row(number, title, context, answers):
            return {
                "id": str(number),
                "title": title,
                "context": context,
                "question": f"Q{number}?",
                "answers": {"text": answers, "answer_start": [0] * len(answers)},
            }

        hub["rajpurkar/squad_v2"] = {
            "train": [row(n, f"t{n // 2}", f"Context {n}.", ["a"]) for n in range(8)],
            "validation": [row(9, "v", "V.", ["a", "b", "a"]), row(10, "v", "V.", [])],
        }
        data = {"source": "hub", "dataset": "squad_v2", "revision": REVISION}
        prepare(_experiment(data), layout)
        examples = _read(layout)
        assert [example.answers for example in examples["test"]] == [["a", "b"], []]
        assert len({example.passage_id for example in examples["test"]}) == 1
        assert (len(examples["train"]), len(examples["dev"])) == (6, 2)
        assert hub["asked"] == [("rajpurkar/squad_v2", None, {"revision": REVISION})]
        assert _card(layout)["origin"]["revision"] == REVISION
        assert REVISION in layout.data_card.with_suffix(".md").read_text()

    def test_hotpotqa(self, layout, hub):
        def row(number):
            return {
                "id": f"h{number}",
                "question": f"Q{number}?",
                "answer": "yes",
                "context": {
                    "title": ["A", "B"],
                    "sentences": [[f"First {number}.", " Second."], ["Third."]],
                },
            }

        hub["hotpotqa/hotpot_qa"] = {"train": [row(n) for n in range(4)], "validation": [row(9)]}
        prepare(_experiment({"source": "hub", "dataset": "hotpotqa", "revision": REVISION}), layout)
        (example,) = _read(layout)["test"]
        assert example.context == "A: First 9. Second.\nB: Third."
        assert (example.answers, example.task) == (["yes"], "hotpotqa")
        assert hub["asked"][0][1] == "distractor"

    def test_classifications(self, layout, hub):
        text, labels = datasets.Value("string"), datasets.ClassLabel(names=["ABBR", "NUM"])
        hub["features"] = datasets.Features({"text": text, "coarse_label": labels})
        hub["CogComp/trec"] = {
            split: [{"text": f"{split} {n}?", "coarse_label": n % 2} for n in range(count)]
            for split, count in (("train", 10), ("test", 3))
        }
        data = {"source": "hub", "dataset": "trec", "revision": REVISION, "dev_share": 0.2}
        prepare(_experiment(data), layout)
        examples = _read(layout)
        assert {split: len(own) for split, own in examples.items()} == {
            "train": 8,
            "dev": 2,
            "test": 3,
        }
        assert [example.context for example in examples["test"]] == [
            "test 0?",
            "test 1?",
            "test 2?",
        ]
        assert [example.answers for example in examples["test"]] == [["ABBR"], ["NUM"], ["ABBR"]]
        assert "(ABBR)" in examples["test"][0].question
        assert len({e.passage_id for own in examples.values() for e in own}) == 13

    def test_out_of_reach(self, layout, hub):
        data = {"source": "hub", "dataset": "squad", "revision": REVISION}
        with pytest.raises(UserError) as caught:
            prepare(_experiment(data), layout)
        message = str(caught.value)
        assert "cannot load rajpurkar/squad at revision 0123" in message
        assert f"datasets.load_dataset('rajpurkar/squad', revision='{REVISION}')" in message


@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs the official SQuAD files")
def test_official_squad_files(layout):
    data = {
        "source": "json",
        "train": str(SQUAD / "train-v1.1-notre-dame.json"),
        "test": str(SQUAD / "dev-v2.0-five-articles.json"),
    }
    prepare(_experiment(data, length={"max_source_tokens": 3072}), layout)
    card, examples = _card(layout), _read(layout)
    files = card["origin"]["files"]
    assert (files["train"]["questions"], files["test"]["questions"]) == (269, 1407)
    assert len(examples["train"]) + len(examples["dev"]) == 269
    assert len(examples["test"]) == 1407
    assert card["splits"]["test"]["unanswerable"] == 702
    assert card["splits"]["test"]["passages"] == 173
    assert card["splits"]["train"]["passages"] + card["splits"]["dev"]["passages"] == 55
