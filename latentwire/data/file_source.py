"""The source `json`: official SQuAD v1 and v2 files, or JSON lines, by path."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from latentwire.config import JsonData
from latentwire.data.corpus import (
    Article,
    Corpus,
    Question,
    hold_out,
    make_articles,
    refuse_repeated_ids,
)
from latentwire.data.tables import Example
from latentwire.errors import UserError

SQUAD_TASK = "squad"
MAX_SHOWN_FAULTS = 10

_Text = Annotated[str, Field(min_length=1)]


class _SquadAnswer(BaseModel):
    text: _Text


class _SquadQuestion(BaseModel):
    id: _Text
    question: _Text
    answers: list[_SquadAnswer]
    is_impossible: bool = False

    @model_validator(mode="after")
    def _answered(self) -> "_SquadQuestion":
        if not self.answers and not self.is_impossible:
            raise ValueError("no answers, and not marked `is_impossible: true`")
        return self


class _SquadParagraph(BaseModel):
    context: _Text
    qas: list[_SquadQuestion]


class _SquadArticle(BaseModel):
    title: str
    paragraphs: list[_SquadParagraph]


class _SquadFile(BaseModel):
    data: list[_SquadArticle]


class _Row(BaseModel):
    example_id: _Text
    passage_id: _Text
    context: _Text
    question: _Text
    answers: list[_Text]
    task: _Text


def read_files(settings: JsonData) -> Corpus:
    """Reads the files of all splits; without a dev file, part of the training set is held out.

    Raises:
        UserError: if a file is missing, malformed, lacks a key, or repeats an example id.
    """
    paths = {"train": settings.train, "dev": settings.dev, "test": settings.test}
    given = {key: path for key, path in paths.items() if path is not None}
    articles = {key: _read(path, f"data.{key}") for key, path in given.items()}
    origin = {"files": {key: _describe(path, articles[key]) for key, path in given.items()}}
    if settings.dev is None:
        articles["train"], articles["dev"] = hold_out(
            articles["train"], settings.dev_share, settings.seed
        )
    return Corpus(
        name="files given by path",
        licence="as stated by their publisher",
        origin=origin,
        **articles,
    )


def _read(path: Path, key: str) -> list[Article]:
    readers = {".json": _read_squad, ".jsonl": _read_rows}
    if path.suffix not in readers:
        raise UserError(
            f"{key}: {path} ends in {path.suffix!r}; allowed are .json (SQuAD layout) and .jsonl"
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{key}: {path} does not exist (relative paths start at {Path.cwd()})"
        ) from None
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from error
    articles = readers[path.suffix](content, f"{key}: {path}")
    if not articles:
        raise UserError(f"{key}: {path} holds no questions")
    return articles


def _read_squad(content: bytes, origin: str) -> list[Article]:
    try:
        file = _SquadFile.model_validate_json(content)
    except ValidationError as error:
        raise UserError(_explain(origin, _faults(error))) from None
    questions = [
        Question(
            example_id=question.id,
            title=article.title,
            context=paragraph.context,
            question=question.question,
            answers=[] if question.is_impossible else [answer.text for answer in question.answers],
        )
        for article in file.data
        for paragraph in article.paragraphs
        for question in paragraph.qas
    ]
    refuse_repeated_ids((question.example_id for question in questions), origin)
    return make_articles(questions, SQUAD_TASK)


def _read_rows(content: bytes, origin: str) -> list[Article]:
    """Reads JSON lines; every passage is an article of its own."""
    passages: dict[str, Article] = {}
    faults: list[str] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = _Row.model_validate_json(line)
        except ValidationError as error:
            faults += [f"line {number}: {fault}" for fault in _faults(error)]
            continue
        passage = passages.setdefault(row.passage_id, [])
        if passage and passage[0].context != row.context:
            faults.append(
                f"line {number}: passage_id {row.passage_id!r} stood for another context before"
            )
        passage.append(Example(**row.model_dump() | {"answers": list(dict.fromkeys(row.answers))}))
    if faults:
        raise UserError(_explain(origin, faults))
    articles = list(passages.values())
    refuse_repeated_ids((example.example_id for rows in articles for example in rows), origin)
    return articles


def _faults(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, details['loc'])) or 'the whole'}: {details['msg']}"
        for details in error.errors(include_url=False)
    ]


def _explain(origin: str, faults: list[str]) -> str:
    shown = [f"  {fault}" for fault in faults[:MAX_SHOWN_FAULTS]]
    if len(faults) > len(shown):
        shown.append(f"  and {len(faults) - len(shown)} more")
    expected = (
        'a .json file has the layout {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", '
        '"question", "answers": [{"text"}]}]}]}]}, a .jsonl file one object a line with '
        "example_id, passage_id, context, question, answers (empty if unanswerable) and task"
    )
    return "\n".join([f"{origin} cannot be read:", *shown, f"  expected: {expected}"])


def _describe(path: Path, articles: list[Article]) -> dict[str, Any]:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "path": str(path),
        "sha256": checksum,
        "size_bytes": path.stat().st_size,
        "questions": sum(map(len, articles)),
    }
