"""The documentation site builds, and every link in it leads somewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "mkdocs").exists(), reason="mkdocs-material is not installed")
def test_the_documentation_site_builds_without_a_warning(tmp_path: Path) -> None:
    """`make site`'s own commands; --strict makes a link to a page or heading that does not exist an error."""
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "site", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    commands = [line.replace("build/site", f"{tmp_path}/site") for line in recipe if "build/site-source" in line]
    assert len(commands) == 2, recipe
    for command in commands:
        subprocess.run(command, shell=True, cwd=ROOT, check=True)
    config = (ROOT / "mkdocs.yml").read_text().replace("build/site", f"{tmp_path}/site")
    (tmp_path / "mkdocs.yml").write_text(config)
    built = subprocess.run(
        [Path(sys.prefix) / "bin" / "mkdocs", "build", "--quiet", "--strict", "-f", tmp_path / "mkdocs.yml"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "DeconvNet" in (tmp_path / "site" / "index.html").read_text()
