"""Which code a stage runs: a fingerprint of the modules that it imports.

Whoever runs a stage by a command does not see what is behind it; the fingerprint says when the
code of a stage has changed. The modules directly under `latentwire/` are left out: they hold
settings, paths and the command line, and a change in those shows by itself. So are those of
`latentwire.cluster`: where and when a stage runs is not what it computes.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def code_fingerprint(module: str, without: Collection[str] = ()) -> str:
    """Hash of the source of a module and of all of the package that it imports.

    Args:
        module: dotted name, for example `latentwire.data.prepare`.
        without: modules not to follow, for imports that will not run.

    Raises:
        ModuleNotFoundError: if the package has no such module.
    """
    digest = hashlib.sha256()
    for name in sorted(imported_modules(module, without)):
        digest.update(f"{name}\n".encode() + _read(name))
    return digest.hexdigest()[:16]


def imported_modules(module: str, without: Collection[str] = ()) -> set[str]:
    """Names of the module and of all modules in subpackages that it imports, directly or not."""
    found: set[str] = set()
    waiting = [module, *filter(_is_in_subpackage, _with_ancestors(module))]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in without:
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    names = (name for node in ast.walk(ast.parse(_read(module))) for name in _imported_names(node))
    ancestry = (ancestor for name in names for ancestor in _with_ancestors(name))
    return frozenset(name for name in ancestry if _is_in_subpackage(name))


def _imported_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        # `from a import b` may load the module `a.b`.
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _with_ancestors(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _is_in_subpackage(name: str) -> bool:
    source = _source(name)
    return (
        name.startswith("latentwire.")
        and source is not None
        and source.parent not in (PACKAGE, PACKAGE / "cluster")
    )


def _source(name: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _read(name: str) -> bytes:
    source = _source(name)
    if source is None:
        raise ModuleNotFoundError(f"the package has no module {name}", name=name)
    return source.read_bytes()
