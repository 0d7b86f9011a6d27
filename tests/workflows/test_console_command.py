"""The console command `deconvnet`, from the source and from a wheel that is installed elsewhere."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import deconvnet
from tests.conftest import ROOT
from workflows.cli.main import COMMANDS, main


def test_help_lists_every_script_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {path.stem for path in (ROOT / "workflows").glob("*.py")} - {"__init__", "settings"}
    assert set(COMMANDS) == scripts
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for script in COMMANDS:
        (line,) = [line for line in lines if line.split()[:1] == [script.replace("_", "-")]]
        assert line.endswith(".") and len(line) < 160


@pytest.mark.parametrize("script", COMMANDS)
def test_a_subcommand_is_its_script(script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deconvnet"])
    with pytest.raises(SystemExit) as stopped:
        main([script.replace("_", "-"), "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith(f"usage: deconvnet {script.replace('_', '-')} ")
    assert "Exit codes:" in text and ("--config FILE" in text or script in ("figures", "download", "promote"))


def test_user_errors_have_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deconvnet"])
    assert main(["predict", "--outptu", "x"]) == 2 and "did you mean --output?" in capsys.readouterr().err
    assert main(["train-pipelin"]) == 2 and "did you mean train-pipeline?" in capsys.readouterr().err


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == f"deconvnet {deconvnet.__version__}"


def test_a_wheel_works_from_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["deconvnet"] == "workflows.cli.main:main"
    for name in ("pyproject.toml", "README.md", "LICENSE", "infra", "proposals", "deconvnet", "workflows"):
        source.mkdir(exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("deconvnet-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import sys, workflows.cli.main as m; print(m.__file__); sys.exit(m.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train-pipeline", "--dry-run", "--workspace", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "installed") in done.stdout and "train: 800" in done.stdout and "would run" in done.stdout
