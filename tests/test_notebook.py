"""The example notebook runs from its first cell to its last, on a model registered for the test."""

import ast
from pathlib import Path
from typing import Any

import cv2
import mlflow
import nbformat
import pytest
from matplotlib import pyplot as plt

from deconvnet.tracking.mlflow_runs import MlflowTracker
from tests.conftest import ROOT
from tests.deconvnet.ensembles import random_image, register_ensemble, save_networks


def run_cell(source: str, names: dict[str, Any]) -> str | None:
    """Run a cell and return the HTML that a notebook would show of its last value."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    show = getattr(value, "_repr_html_", None)
    return show() if show else None


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store) -> None:
    folder = tmp_path / "registered"
    save_networks(folder)
    register_ensemble(MlflowTracker(make_store(folder / "work"), "test"), folder)
    for seed in range(3):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), random_image(seed, 64, 80))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in {"WORKSPACE": str(folder / "work"), "MODEL": "models:/shapes@challenger", "IMAGES": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT / "examples")
    notebook = nbformat.read("segment.ipynb", as_version=4)
    nbformat.validate(notebook)
    names: dict[str, Any] = {}
    try:
        shown = [run_cell(cell.source, names) for cell in notebook.cells if cell.cell_type == "code"]
        assert len(plt.get_fignums()) == 2
    finally:
        plt.close("all")
        mlflow.set_tracking_uri(None)
    assert any("2.png" in html for html in shown if html)
    assert 0 < names["result"]["confidence"].min() <= names["result"]["confidence"].max() <= 1
