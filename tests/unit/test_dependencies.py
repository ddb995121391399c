"""pyproject.toml, requirements.lock and environment.yml say the same, and it is what runs here."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import latentwire

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK_LINES = [
    line.split("#")[0].strip()
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
    if not line.lstrip().startswith("#")
]
LOCK = {canonicalize_name(name): pin for name, _, pin in (x.partition("==") for x in LOCK_LINES)}
DIRECT = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]
# torch asks for these itself, and for none of them in a build for the CPU.
CUDA = ("nvidia-", "cuda-", "triton")
# pytest, pydantic and the executor for SLURM do not come without these.
BROUGHT_ALONG = {"packaging", "pydantic-core", "snakemake-executor-plugin-slurm-jobstep"}


def test_the_lock_pins_exact_public_versions_and_nothing_else():
    for line in LOCK_LINES:
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][a-z0-9.]*", line), line
    assert len(LOCK) == len(LOCK_LINES)
    assert not [name for name in LOCK if name.startswith(CUDA)]
    assert LOCK["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])
    assert any(part.operator == "<" for part in requirement.specifier), "no upper bound"


def test_the_environment_is_the_locked_one():
    installed = {name: Version(importlib.metadata.version(name)).public for name in LOCK}
    assert installed == LOCK


def test_the_lock_is_closed():
    """What a locked package needs is locked too, in a version that it accepts."""
    faults = []
    for name in LOCK:
        extras = {extra for direct in DIRECT if direct.name == name for extra in direct.extras}
        for needed in map(Requirement, importlib.metadata.requires(name) or []):
            pin = LOCK.get(canonicalize_name(needed.name))
            fits = pin is not None and needed.specifier.contains(pin, prereleases=True)
            if _applies(needed, extras) and not fits and not needed.name.startswith(CUDA):
                faults.append(f"{name} needs {needed}, locked: {pin}")
    assert not faults


def test_the_conda_environment_pins_the_lock():
    *conda, pip = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": LOCK_LINES}
    python = next(line for line in conda if line.startswith("python="))
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert python == f"python={oldest}"


def test_code_imports_direct_dependencies_only():
    declared = {canonicalize_name(requirement.name) for requirement in DIRECT}
    tools = {canonicalize_name(Requirement(line).name) for line in EXTRAS["dev"]}
    assert _imported_distributions("latentwire") - BROUGHT_ALONG <= declared - tools
    assert _imported_distributions("tests") - BROUGHT_ALONG <= declared


def test_the_package_knows_nothing_of_snakemake():
    assert "snakemake" not in _imported_distributions("latentwire")


def test_the_version_is_the_same_everywhere():
    version = latentwire.__version__
    assert PROJECT["dynamic"] == ["version"]
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version}" in (REPOSITORY / "CHANGELOG.md").read_text()


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def _imported_distributions(folder: str) -> set[str]:
    """Distributions of others that the Python files of a folder import from."""
    files = list((REPOSITORY / folder).rglob("*.py"))
    packages = {
        name.partition(".")[0]
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported_modules(node)
    }
    own = {path.stem for path in files} | {"latentwire"}
    providers = importlib.metadata.packages_distributions()
    foreign = packages - own - sys.stdlib_module_names
    return {canonicalize_name(providers[package][0]) for package in foreign}


def _imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []
