"""Hooks of the site: the table of configuration keys, and files outside docs/ that pages link to.

Such files join the site under `repository/`; those that are Markdown become pages.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentwire.config import Experiment

KEYS = "<!-- keys -->"
REPOSITORY = Path(__file__).parents[1]
# A relative link, without an anchor.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)#\s]+")

METHOD = "a [method](../concepts.md#methods-that-are-compared)"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"null": "none", "string": "text", "object": "keys of that section"}

Schema = dict[str, Any]
Definitions = dict[str, Schema]


def on_files(files: Any, config: Any) -> Any:
    """Adds the files outside docs/ that pages link to."""
    from mkdocs.structure.files import File

    pages = list(files.documentation_pages())
    for page in pages:
        for link in LINK.findall(page.content_string):
            path = _path(page.src_uri, link)
            if files.get_file_from_path(uri := _uri(path)) or path.startswith("docs/"):
                continue
            file = File.generated(config, uri, abs_src_path=str(REPOSITORY / path))
            files.append(file)
            if file.is_documentation_page():
                pages.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leads links to where the site has their targets, and fills in the configuration keys."""
    uri = page.file.src_uri
    markdown = LINK.sub(
        lambda link: posixpath.relpath(_uri(_path(uri, link[0])), posixpath.dirname(uri)), markdown
    )
    return markdown.replace(KEYS, configuration_keys())


def _path(uri: str, link: str) -> str:
    """The path in the repository that a link leads to from a page of the site."""
    own = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(own), link))


def _uri(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def configuration_keys() -> str:
    """A table for each section of an experiment: key, default, what is allowed, meaning."""
    schema = Experiment.model_json_schema()
    return "\n".join(_tables("", schema, schema["$defs"]))


def _tables(name: str, section: Schema, definitions: Definitions) -> Iterator[str]:
    """The table of a section, then those of the sections in it."""
    source = section["properties"].get("source", {}).get("const")
    title = f"`{name}`" if name else "Top level"
    yield f"## {title}, `source: {source}`" if source else f"## {title}"
    yield from ("", section["description"], "")
    yield from ("| key | default | allowed | meaning |", "|---|---|---|---|")
    below = []
    for key, value in section["properties"].items():
        path = f"{name}.{key}" if name else key
        sections = list(_sections(path, value, definitions))
        below += sections
        cells = (
            f"`{path}`",
            "required" if key in section.get("required", ()) else _default(value, bool(sections)),
            "see below" if sections else _allowed(value, definitions),
            value["description"],
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for path, own in below:
        yield from _tables(path, own, definitions)


def _sections(path: str, value: Schema, definitions: Definitions) -> Iterator[tuple[str, Schema]]:
    """The sections that a value can be, or that the entries of a list can be."""
    own = definitions.get(_reference(value), {})
    if "properties" in own:
        yield path, own
    for kind in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        yield from _sections(path, kind, definitions)
    if "items" in value:
        yield from _sections(f"{path}[]", value["items"], definitions)


def _default(value: Schema, is_section: bool) -> str:
    default = value["default"]
    if default is None:
        return "none"
    return "" if is_section else f"`{json.dumps(default, ensure_ascii=False)}`"


def _allowed(value: Schema, definitions: Definitions) -> str:
    """What a key takes, in words."""
    if _reference(value) == "Method":
        return METHOD
    if reference := _reference(value):
        return _allowed(definitions[reference], definitions)
    if choices := value.get("enum", [value["const"]] if "const" in value else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "anyOf" in value:
        return " or ".join(_allowed(kind, definitions) for kind in value["anyOf"])
    if "prefixItems" in value:
        return "pair: " + ", ".join(_allowed(kind, definitions) for kind in value["prefixItems"])
    if "items" in value:
        return f"list: {_allowed(value['items'], definitions)}"
    bounds = [f"{sign} {value[bound]:g}" for bound, sign in BOUNDS.items() if bound in value]
    pattern = [f"`{value['pattern']}`"] if "pattern" in value else []
    kind = value.get("format", value["type"])
    return " ".join([KINDS.get(kind, kind), *bounds, *pattern])


def _reference(value: Schema) -> str:
    return value.get("$ref", "").rpartition("/")[2]
