"""The Kubernetes manifests as kustomize renders them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.deploy.files import KUBERAY

KINDS = {path.parent.name: yaml.safe_load(path.read_text())["kind"] for path in sorted(KUBERAY.glob("*/kustomization.yaml"))}
FOLDERS = [name for name, kind in KINDS.items() if kind == "Kustomization"]
COMPONENTS = [name for name, kind in KINDS.items() if kind == "Component"]
RAY = {"RayCluster": "cluster", "RayJob": "pipeline", "RayCronJob": "retrain"}

# GitHub's machines have it. There a test that misses it fails.
needs_kubectl = pytest.mark.skipif(
    not shutil.which("kubectl") and "GITHUB_ACTIONS" not in os.environ, reason="kubectl is not installed"
)


@lru_cache
def built(folder: Path) -> tuple[dict[str, Any], ...]:
    """The objects that kustomize makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@lru_cache
def cluster_with(component: str) -> tuple[dict[str, Any], ...]:
    """The objects of cluster/ with a further component."""
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copytree(KUBERAY, Path(folder) / "kuberay") / "cluster" / "kustomization.yaml"
        path.write_text(path.read_text().replace("components: [../images]", f"components: [../images, ../{component}]"))
        return built(path.parent)


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Iterate over the pod templates at any depth of an object."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", ()):
            yield node
        for child in node.values():
            yield from pods(child)
    elif isinstance(node, list):
        for child in node:
            yield from pods(child)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector selects a pod with these labels."""
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(labels.get(r["key"]) in r["values"] for r in rules)
