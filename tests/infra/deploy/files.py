"""The files for Docker, Kubernetes and AWS, as they are."""

import re
import tomllib
from typing import Any

import yaml

from tests.conftest import ROOT

INFRA = ROOT / "infra" / "deploy"
KUBERAY = INFRA / "kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((INFRA / "docker" / "compose.yaml").read_text())
AWS = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
MANIFESTS = [doc for p in sorted(KUBERAY.rglob("*.yaml")) for doc in yaml.safe_load_all(p.read_text()) if "kind" in doc]


def of_kind(kind: str) -> list[dict[str, Any]]:
    """The Kubernetes manifests of a kind."""
    return [doc for doc in MANIFESTS if doc["kind"] == kind]


(CLUSTER_SPEC,) = (doc["spec"] for doc in of_kind("RayCluster"))
POOLS = {group["groupName"]: group for group in CLUSTER_SPEC["workerGroupSpecs"]}
"""The groups of nodes of the permanent cluster, by name."""


def stages() -> dict[str, str]:
    """The stages of the Dockerfile by name."""
    parts = re.split(r"^FROM (\S+) AS (\w[\w-]*)\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {name: f"FROM {base}\n{text}" for base, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}
