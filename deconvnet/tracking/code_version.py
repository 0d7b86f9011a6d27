"""Which version of this project's code is at work."""

import importlib.metadata
import re
import subprocess
from contextlib import suppress
from pathlib import Path


def code_version() -> str:
    """The git commit of this code (`+` where files differ from it), else the package's version."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", __file__):  # a repository that merely contains the installed package says nothing about it
            return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("deconvnet")
    return "unknown"


def code_tags(version: str) -> dict[str, str]:
    """A `code_version` as tags: `code`, and, of a commit, those by which MLflow's pages show it."""
    commit = re.fullmatch(r"([0-9a-f]{40,64})(\+?)", version)
    known = {"mlflow.source.git.commit": commit[1], "mlflow.source.git.dirty": str(bool(commit[2])).lower()} if commit else {}
    return {"code": version, **known}
