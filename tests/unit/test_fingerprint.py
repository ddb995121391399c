"""The fingerprint of a stage's code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire import fingerprint
from latentwire.fingerprint import code_fingerprint, imported_modules

PACKAGE = Path(fingerprint.__file__).parent


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in which `one.stage` imports `two.tools`, which imports the frame and `three`."""
    files = {
        "__init__.py": "",
        "frame.py": "import latentwire.three.late\n",
        "one/__init__.py": "",
        "one/stage.py": "import os\nfrom latentwire.two import tools\n",
        "one/other.py": "",
        "two/__init__.py": "",
        "two/tools.py": "def f():\n    from latentwire.three.late import x\n"
        "from latentwire.frame import y\n",
        "three/__init__.py": "",
        "three/late.py": "x = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "latentwire" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path / "latentwire")
    fingerprint._imports.cache_clear()
    yield tmp_path / "latentwire"
    fingerprint._imports.cache_clear()


def test_imports_are_followed_also_late_ones(package):
    assert imported_modules("latentwire.one.stage") == {
        "latentwire.one.stage",
        "latentwire.one",
        "latentwire.two",
        "latentwire.two.tools",
        "latentwire.three",
        "latentwire.three.late",
    }


@pytest.mark.parametrize(
    ("edited", "changes"),
    [("one/stage.py", True), ("three/late.py", True), ("one/other.py", False), ("frame.py", False)],
)
def test_fingerprint_changes_with_imported_code_only(package, edited, changes):
    before = code_fingerprint("latentwire.one.stage")
    with (package / edited).open("a") as file:
        file.write("# a comment\n")
    assert (code_fingerprint("latentwire.one.stage") != before) == changes


def test_modules_can_be_left_out(package):
    before = code_fingerprint("latentwire.one.stage", without=["latentwire.two.tools"])
    (package / "three/late.py").write_text("x = 2\n")
    assert code_fingerprint("latentwire.one.stage", without=["latentwire.two.tools"]) == before


def test_unknown_module_is_refused():
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        code_fingerprint("latentwire.nonsense.stage")


@pytest.mark.parametrize(
    "entry",
    ["latentwire.data.prepare", "latentwire.evaluation.evaluate", "latentwire.reporting.figures"],
)
def test_every_module_that_a_stage_loads_is_in_its_fingerprint(entry):
    script = f"import sys, {entry}; print(*sorted(m for m in sys.modules if 'latentwire.' in m))"
    outcome = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    loaded = {name for name in outcome.stdout.split() if (PACKAGE / name.split(".")[1]).is_dir()}
    assert {name for name in loaded if name.split(".")[1] != "cluster"} <= imported_modules(entry)


def test_where_a_stage_runs_is_no_part_of_its_fingerprint():
    modules = imported_modules("latentwire.training.wire")
    assert "latentwire.training.state" in modules
    assert not [name for name in modules if name.startswith("latentwire.cluster")]


def test_the_package_has_no_relative_or_computed_imports():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path
            assert getattr(node, "attr", None) != "import_module", path
