"""The site has every page, and a row for every key; `make docs` checks the rest."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latentwire.config import Experiment

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"


def test_the_navigation_has_every_page():
    navigation = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    others = [f"repository/{name}.md" for name in ("CONTRIBUTING", "CHANGELOG")]
    assert sorted(_leaves(navigation)) == sorted(pages + others)


def test_the_reference_has_every_key_with_its_meaning():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    rows = hooks.configuration_keys().replace("\\|", "|").splitlines()
    for key, field in _fields(Experiment):
        found = [row for row in rows if row.startswith(f"| `{key}` |")]
        assert any(row.endswith(f"| {field.description} |") for row in found), key


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
        return
    for below in node.values() if isinstance(node, dict) else node:
        yield from _leaves(below)


def _fields(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a section and of the sections in it, by its dotted name."""
    for key, field in section.model_fields.items():
        yield f"{path}{key}", field
        for below, brackets in _sections(field.annotation):
            yield from _fields(below, f"{path}{key}{brackets}.")


def _sections(annotation: Any, brackets: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, brackets
    for inner in get_args(annotation):
        yield from _sections(inner, "[]" if get_origin(annotation) is list else brackets)
