"""The images that the Dockerfile builds, and the program's files in them and in the wheel."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.infra.deploy.files import DOCKERFILE, PINS, PROJECT, stages


def test_the_images_extra_packages_are_pinned() -> None:
    for name in ("Flask-WTF", "WTForms", "psycopg2-binary", "mlflow", "boto3", "torch"):
        assert name in PINS


def sources(stage: str) -> set[str]:
    """The files that a stage of the Dockerfile, and the stages that it uses, copy from the repository."""
    text, every = stages()[stage], stages()
    used = {name for name in re.findall(r"(?:^FROM |from=)(\S+?)(?:,|\n|$)", text, re.MULTILINE) if name in every}
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()}
    return copied.union(*(sources(name) for name in used))


@pytest.mark.parametrize("stage", ["cpu-libraries", "cuda-libraries"])
def test_libraries_are_not_installed_again_when_only_code_changes(stage: str) -> None:
    assert sources(stage) == {"pyproject.toml", "constraints.txt"}
    assert sources(stage.partition("-")[0]) > {"deconvnet", "infra", "proposals", "workflows"}


def test_a_head_that_listens_everywhere_asks_for_a_token() -> None:
    """Whoever reaches a head that asks for none can run code on it."""
    heads = {name: text for name, text in stages().items() if '"--dashboard-host=0.0.0.0"' in text}
    assert {*heads} == {"cpu", "cuda"} and all("ENV RAY_AUTH_MODE=token " in text for text in heads.values())


def test_the_images_have_the_libraries_of_the_project_and_ray_serve(tmp_path: Path) -> None:
    """The Dockerfile's own program, on this pyproject.toml."""
    (program,) = re.findall(r'python -c "(import tomllib;.*?)"', stages()["requirements"], re.DOTALL)
    program = program.replace("\\\n", "").replace("/requirements/", f"{tmp_path}/")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    project = PROJECT["project"]
    assert done.stdout.splitlines() == [*project["dependencies"], *project["optional-dependencies"]["serve"]]


def test_the_image_contains_the_project_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert allowed == packages | {"pyproject.toml", "constraints.txt", "LICENSE", "README.md"}
    for source in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.split():
            assert name.split("/")[0] in allowed and (ROOT / name).exists(), name
    for package in packages:
        assert f"COPY {package} /build/{package}" in DOCKERFILE


def test_the_wheel_contains_every_file_that_the_commands_read() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{name}" for package, names in data.items() for name in names]
    for package in ("deconvnet", "proposals", "workflows"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (
                ".py",
                ".pyc",
                ".nbi",
                ".nbc",
                ".png",
            ):  # the images of a README are left out
                name = path.relative_to(ROOT).as_posix()
                assert any(fnmatch(name, pattern) for pattern in patterns), name
