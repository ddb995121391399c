"""Publishing results: a person agrees, and nothing but the branch changes."""

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from latentwire import UserError, cli
from latentwire.publish import check_files, published_files

REPOSITORY = Path(cli.__file__).parents[1]
# Put together here, so that no scanner takes this file for a leak.
TOKENS = ["hf_" + "a1B2" * 9, "ghp_" + "c3D4" * 9, "AKIA" + "ABCD1234" * 2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with a finished experiment, which git ignores."""
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "A. Person")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "person@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    (tmp_path / ".gitignore").write_text("/results/*\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "First")
    experiment = tmp_path / "results" / "pocket"
    for name, text in {
        "metrics.csv": "metric,value\n",
        "report.html": "<html>",
        "figures/quality.svg": "<svg>",
        "wires/shared/seed1/README.md": "# Wire\n",
        "wires/shared/seed1/model.safetensors": "weights",
        "data/train.parquet": "rows",
        "predictions/text/a.parquet": "rows",
        ".state/shared-seed1/slot0.pt": "state",
        "logs/prepare.log": "log",
    }.items():
        (experiment / name).parent.mkdir(parents=True, exist_ok=True)
        (experiment / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answer(monkeypatch):
    def answer(text: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(text + "\n"))

    answer("y")
    return answer


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def publish(*arguments: str) -> int:
    return cli.main(["publish", "results/pocket", *arguments])


def test_small_results_go_to_a_branch_and_nothing_else_moves(repository, answer, capsys):
    (repository / "new.py").write_text("x = 1\n")
    git(repository, "add", "new.py")
    before = git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD")
    assert publish() == 0
    listed = capsys.readouterr().out
    files = git(repository, "ls-tree", "-r", "--name-only", "results").splitlines()
    assert files == [
        ".gitignore",
        "results/pocket/figures/quality.svg",
        "results/pocket/metrics.csv",
        "results/pocket/report.html",
        "results/pocket/wires/shared/seed1/README.md",
    ]
    assert all(name in listed for name in files[1:])
    after = git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD")
    assert after == before
    # A second time it goes on top of the first.
    first = git(repository, "rev-parse", "results")
    (repository / "results/pocket/metrics.csv").write_text("metric,value\nf1,1\n")
    answer("yes")
    assert publish() == 0
    assert git(repository, "rev-parse", "results~1") == first
    assert git(repository, "show", "results:results/pocket/metrics.csv").endswith("f1,1")


def test_without_a_yes_nothing_is_committed(repository, answer):
    answer("")
    assert publish() == 0
    assert git(repository, "branch", "--list", "results") == ""


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "CI"])
def test_a_job_does_not_publish(repository, answer, monkeypatch, variable, capsys):
    monkeypatch.setenv(variable, "1")
    assert publish() == 2
    assert "for a person, not for a job" in capsys.readouterr().err
    assert git(repository, "branch", "--list", "results") == ""


def test_without_a_terminal_it_does_not_ask(repository, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert publish() == 2
    assert "run it in a terminal" in capsys.readouterr().err


@pytest.mark.parametrize("token", [*TOKENS, "-----BEGIN OPENSSH PRIVATE KEY-----"])
def test_tokens_are_refused_and_not_shown(repository, answer, capsys, token):
    (repository / "results/pocket/config.yaml").write_text(f"experiment: a\ntoken: {token}\n")
    assert publish() == 2
    error = capsys.readouterr().err
    assert "config.yaml, line 2: looks like" in error
    assert token not in error
    assert git(repository, "branch", "--list", "results") == ""


def test_large_files_and_links_are_refused(repository):
    folder = repository / "results/pocket"
    with (folder / "report.html").open("wb") as file:
        file.truncate(10_000_001)
    (folder / "results.json").symlink_to(repository / ".gitignore")
    with pytest.raises(UserError, match=r"report\.html has 10,000,001 bytes") as refusal:
        check_files(published_files(folder))
    assert "results.json is a link" in str(refusal.value)


def test_it_pushes_but_never_by_force(repository, answer, tmp_path_factory, capsys):
    remote = tmp_path_factory.mktemp("remote")
    git(remote, "init", "--quiet", "--bare")
    git(repository, "remote", "add", "origin", str(remote))
    assert publish("--push", "origin") == 0
    assert git(remote, "rev-parse", "results") == git(repository, "rev-parse", "results")
    # Somebody else's results are on the remote meanwhile.
    theirs = git(repository, "commit-tree", "results^{tree}", "-p", "results", "-m", "Theirs")
    git(repository, "push", "--quiet", "origin", f"{theirs}:refs/heads/results")
    (repository / "results/pocket/metrics.csv").write_text("metric,value\nf1,1\n")
    answer("yes")
    assert publish("--push", "origin") == 2
    assert "git push failed" in capsys.readouterr().err
    assert git(remote, "rev-parse", "results") == theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--branch", "main"], "the branch 'main' is checked out"),
        (["--branch", "a b"], "git check-ref-format failed"),
    ],
)
def test_bad_branches_are_refused(repository, answer, capsys, arguments, message):
    assert publish(*arguments) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_experiment_is_refused(repository, answer, capsys):
    assert cli.main(["publish", "results"]) == 2
    assert "holds no results" in capsys.readouterr().err
    assert cli.main(["publish", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_clean_leaves_results_alone(tmp_path):
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    kept = tmp_path / "results" / "pocket" / "metrics.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("metric,value\n")
    (tmp_path / ".pytest_cache").mkdir()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert kept.read_text() == "metric,value\n"
    assert not (tmp_path / ".pytest_cache").exists()
