"""The version of the installed package, and the git commit of the code that is running."""

import importlib.metadata
import subprocess
from contextlib import suppress
from pathlib import Path


def package_version() -> str:
    """Return the version of the installed package `deconvnet`, or "unknown" if the package is not installed."""
    try:
        return importlib.metadata.version("deconvnet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def code_version() -> str:
    """Return the git commit of the code that is running, or the package version if there is no git repository.

    Returns:
        The hash of the checked-out commit, 40 hex digits. It is followed by "+" if files that git tracks were changed since. If
        this file is not tracked by git, or git is not available, the package version (or "unknown").
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        """Run a git command in the folder of this file, and return its output without surrounding white space.

        Args:
            arguments: arguments of git, such as "rev-parse" and "HEAD".

        Raises:
            OSError: if git is not installed.
            subprocess.SubprocessError: if git fails or takes more than 10 s.
        """
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", __file__):  # a repository that only contains the installed package says nothing about its code
            return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    return package_version()
