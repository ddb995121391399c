"""Reading and writing experiments: YAML in, a validated `Experiment` or one readable error out."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from latentwire.config import Experiment
from latentwire.errors import UserError


def load_experiment(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Loads an experiment from YAML.

    Args:
        path: a complete experiment; keys that it leaves out take their defaults.
        overrides: values by dotted key, such as `wire.latent_dim` or `receivers.0.source`. A new
            `data.source` replaces the whole section, since each source has keys of its own.

    Raises:
        UserError: if the file is missing or malformed, or with all faults of its values.
    """
    mapping = _read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(mapping, key, value)
    return validate(mapping, str(path))


def validate(mapping: Mapping[str, Any], origin: str = "the configuration") -> Experiment:
    """Turns a mapping into an experiment.

    Args:
        mapping: the sections of an experiment.
        origin: where the mapping comes from, for the error message.

    Raises:
        UserError: with every fault: dotted key, value, what is allowed.
    """
    try:
        return Experiment.model_validate(mapping)
    except ValidationError as error:
        faults = [line for details in error.errors() for line in _explain(details)]
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError("\n  ".join([f"{origin} has {count}:", *faults])) from None


def dump_yaml(experiment: Experiment) -> str:
    """The experiment as canonical YAML with every key; it loads back equal."""
    return yaml.safe_dump(
        experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint at the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(sibling) for sibling in path.parent.glob("*.yaml"))
        hint = f"; there are {', '.join(near)}" if near else ""
        raise UserError(f"the configuration {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the configuration {path} is not valid YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise UserError(
            f"the configuration {path} must hold `key: value` lines, not "
            f"{'nothing' if mapping is None else type(mapping).__name__}; see config/config.yaml"
        )
    return mapping


def _override(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; what the file leaves out on the way to it starts from the defaults."""
    if key == "data.source" and mapping.get("data", {}).get("source") != value:
        mapping["data"] = {}
    *parents, last = key.split(".")
    node: Any = mapping
    default: Any = Experiment().model_dump(mode="json")
    for depth, name in enumerate(parents):
        default = _child(default, name)
        if _child(node, name) is None and isinstance(node, dict):
            node[name] = default if isinstance(default, list) else {}
        node = _child(node, name)
        if not isinstance(node, (dict, list)):
            raise UserError(
                f"cannot set {key}: {'.'.join(parents[: depth + 1])} is "
                f"{'not there' if node is None else f'the value {node!r}'}, it has no keys"
            )
    if isinstance(node, dict):
        node[last] = value
    elif last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    else:
        raise UserError(
            f"cannot set {key}: {'.'.join(parents)} is a list, its entries are 0 to {len(node) - 1}"
        )


def _child(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
        return node[int(name)]
    return None


def _explain(details: ErrorDetails) -> list[str]:
    """One line per fault: dotted key, value, what is allowed."""
    path, section = _locate(details["loc"])
    key = ".".join(map(str, path)) or "the top level"
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            known = list(section.model_fields) if section else []
            hint = did_you_mean(str(path[-1]), known)
            return [f"{key}: unknown key (value {_shorten(value)}){hint or f'; known: {known}'}"]
        case "missing":
            return [f"{key}: missing; {_describe(section, str(path[-1]))}"]
        case "union_tag_invalid" | "union_tag_not_found":
            name, tags = context["discriminator"].strip("'"), _tags(section, str(path[-1]))
            if "tag" not in context:
                return [f"{key}.{name}: missing; allowed: {', '.join(tags)}"]
            return [_not_among(f"{key}.{name}", context["tag"], tags)]
        case "enum" | "literal_error":
            return [_not_among(key, value, re.findall(r"'([^']*)'", context["expected"]))]
        case "string_pattern_mismatch":
            return [f"{key}: {_shorten(value)} is not allowed; {_PATTERNS[context['pattern']]}"]
        case "value_error":
            lines = str(context["error"]).split("\n")
            return [f"{key}: {line}" if path else line for line in lines]
        case "model_type" | "model_attributes_type":
            return [f"{key}: {_shorten(value)} is not allowed; a section with keys of its own is"]
        case _:
            message = details["msg"]
            return [f"{key}: {_shorten(value)} is not allowed: {message[0].lower()}{message[1:]}"]


_PATTERNS = {
    r"^[A-Za-z0-9._-]+$": "letters, digits, dot, underscore and hyphen are",
    r"^[0-9a-f]{40}$": "a full commit hash of 40 hexadecimal digits is, as the hub's page "
    "'Files and versions' shows it",
}


def _locate(location: tuple[int | str, ...]) -> tuple[list[int | str], type[BaseModel] | None]:
    """The dotted path of an error, and the section whose key its last part is."""
    path: list[int | str] = []
    section: type[BaseModel] | None = None
    here: Any = Experiment
    parts = iter(location)
    for part in parts:
        path.append(part)
        section = here if isinstance(here, type) and issubclass(here, BaseModel) else None
        if section is None:
            here = next(iter(get_args(here)), None)
            continue
        field = section.model_fields.get(str(part))
        here = field.annotation if field else None
        if field and field.discriminator:
            # Below a choice of sections the location names the chosen one, which is not a key.
            here = _variants(field).get(str(next(parts, "")))
    return path, section


def _variants(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The sections that a field chooses between, by the value that chooses them."""
    return {
        section.model_fields[str(field.discriminator)].default: section
        for section in get_args(field.annotation)
    }


def _tags(section: type[BaseModel] | None, key: str) -> list[str]:
    return list(_variants(section.model_fields[key])) if section else []


def _not_among(key: str, value: Any, allowed: Sequence[str]) -> str:
    hint = did_you_mean(str(value), allowed)
    return f"{key}: {_shorten(value)} is not allowed; allowed: {', '.join(allowed)}{hint}"


def _describe(section: type[BaseModel] | None, key: str) -> str:
    field = section.model_fields.get(key) if section else None
    return (field.description if field else None) or "it is required"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
