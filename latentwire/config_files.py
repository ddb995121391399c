"""Files generated from the configuration's models: the commented default and the JSON schema."""

import json
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latentwire.config import Experiment
from latentwire.files import write_text

REPOSITORY = Path(__file__).parents[1]
WIDTH = 100
HEADER = (
    "# The default experiment: the pocket corpus, on the CPU, without network.\n"
    "# Generated from latentwire/config.py by `python -m latentwire config --write`; change the\n"
    "# defaults there. For an experiment of your own, copy it and change `experiment` first.\n"
)


def generated_files() -> dict[Path, str]:
    """Contents of the generated files, by path relative to the repository."""
    return {
        Path("config/config.yaml"): commented_yaml(Experiment()),
        Path("workflow/schemas/config.schema.json"): json.dumps(schema(), indent=2) + "\n",
    }


def write_config_files() -> list[Path]:
    """Writes the generated files; returns their paths."""
    paths = []
    for path, text in generated_files().items():
        write_text(REPOSITORY / path, text)
        paths.append(REPOSITORY / path)
    return paths


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment; unknown keys are refused at every level."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(),
    }


def commented_yaml(experiment: Experiment) -> str:
    """Every key of an experiment with its description above it."""
    return HEADER + "\n".join(_section_lines(experiment, is_top=True)) + "\n"


def _section_lines(section: BaseModel, is_top: bool = False) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if is_top:
            yield ""
        if isinstance(value, BaseModel):
            yield from _comment(type(value).__doc__ or "")
            yield from _alternatives(field, type(value))
            yield f"{key}:"
            yield from _indent(_section_lines(value))
            continue
        yield from _comment(_meaning(field))
        if isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield f"{key}:"
            yield from _items(value)
        else:
            yield from _plain(key, section.model_dump(mode="json")[key])


def _items(sections: list[BaseModel]) -> Iterator[str]:
    """List items; only the first carries comments."""
    for number, section in enumerate(sections):
        lines = (
            _section_lines(section)
            if number == 0
            else (
                line
                for key, value in section.model_dump(mode="json").items()
                for line in _plain(key, value)
            )
        )
        # The dash stands before the first key, below the comment of that key.
        is_first_key = True
        for line in lines:
            is_key = is_first_key and not line.startswith("#")
            yield f"  - {line}" if is_key else f"    {line}"
            is_first_key = is_first_key and not is_key


def _plain(key: str, value: Any) -> list[str]:
    if isinstance(value, list) and any(isinstance(entry, list) for entry in value):
        return [f"{key}:", *(f"  - {_inline(entry)}" for entry in value)]
    return [f"{key}: {_inline(value)}"]


def _inline(value: Any) -> str:
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    description = field.description or ""
    if all(choice in description for choice in choices):
        return description
    return f"{description} One of: {', '.join(choices)}."


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal and len(get_args(annotation)) > 1:
        return [str(choice) for choice in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(choice.value) for choice in annotation]
    (inner,) = get_args(annotation) if get_origin(annotation) is list else (None,)
    return _choices(inner) if inner else []


def _alternatives(field: FieldInfo, chosen: type[BaseModel]) -> Iterator[str]:
    """What else could stand here, for a section that is one of several."""
    for section in get_args(field.annotation) if field.discriminator else ():
        if section is not chosen:
            name = section.model_fields[str(field.discriminator)].default
            keys = [key for key in section.model_fields if key != field.discriminator]
            yield from _comment(f"{field.discriminator}: {name} takes instead {', '.join(keys)}.")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, width=WIDTH - 8, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _indent(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
