"""The version of the code at work, and the tags that mark runs with it."""

import subprocess

import pytest

from deconvnet import version as module
from deconvnet.tracking.mlflow_runs import code_tags
from deconvnet.version import code_version

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("version", "tags"),
    [
        (COMMIT, {"code": COMMIT, "mlflow.source.git.commit": COMMIT, "mlflow.source.git.dirty": "false"}),
        (f"{COMMIT}+", {"code": f"{COMMIT}+", "mlflow.source.git.commit": COMMIT, "mlflow.source.git.dirty": "true"}),
        ("0.1.0", {"code": "0.1.0"}),
    ],
)
def test_a_commit_has_the_tags_that_mlflow_shows(version, tags) -> None:
    assert code_tags(version) == tags


def test_the_code_version_is_the_commit_of_a_repository_that_tracks_the_code(tmp_path, monkeypatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    file = tmp_path / "version.py"
    file.write_text("")
    monkeypatch.setattr(module, "__file__", str(file))
    git("init")
    assert "." in code_version() or code_version() == "unknown"
    git("add", "."), git("commit", "-m", "x")
    assert code_version() == git("rev-parse", "HEAD")
    file.write_text("changed")
    assert code_version() == git("rev-parse", "HEAD") + "+"
