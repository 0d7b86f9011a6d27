"""The version of this package and of the code at work."""

import importlib.metadata
import subprocess
from contextlib import suppress
from pathlib import Path


def package_version() -> str:
    """Return the version of the installed package `deconvnet`, or "unknown" where only its files are present."""
    try:
        return importlib.metadata.version("deconvnet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def code_version() -> str:
    """Return which code is at work.

    Returns:
        The git commit of this checkout, followed by "+" if tracked files differ from it; without git, the `package_version`.
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", __file__):  # a repository that only contains the installed package says nothing about its code
            return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    return package_version()
