"""Every manifest, as kustomize renders it, has only fields and values of KubeRay 1.7's definitions and Kubernetes' pods."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.deploy import crds
from tests.infra.deploy.files import KUBERAY
from tests.infra.deploy.rendering import COMPONENTS, FOLDERS, RAY, built, cluster_with, needs_kubectl, pods


@pytest.fixture(scope="module")
def definitions(shared: Path) -> Path:
    """KubeRay's custom resource definitions."""
    folder = shared / "kuberay-crds"
    if not folder.is_dir():
        pytest.skip(f"no custom resource definitions at {folder}")
    return folder


@needs_kubectl
@pytest.mark.parametrize("kind", RAY)
def test_ray_objects_have_only_fields_of_their_definitions(kind: str, definitions: Path) -> None:
    (found,) = (doc for doc in built(KUBERAY / RAY[kind]) if doc["kind"] == kind)
    assert list(crds.errors(crds.schema(definitions, kind), found)) == []


@needs_kubectl
@pytest.mark.parametrize("component", sorted({*COMPONENTS} - {"images", "settings"}))
def test_components_of_the_cluster_have_only_fields_of_its_definition(component: str, definitions: Path) -> None:
    (found,) = (doc for doc in cluster_with(component) if doc["kind"] == "RayCluster")
    assert found != built(KUBERAY / "cluster")[0]
    assert list(crds.errors(crds.schema(definitions, "RayCluster"), found)) == []


@needs_kubectl
@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_and_network_rules_have_only_fields_that_kubernetes_has(folder: str, definitions: Path) -> None:
    """The definition of a RayCluster contains Kubernetes' own of pods and of network rules."""
    cluster = crds.schema(definitions, "RayCluster")
    objects = (*built(KUBERAY / folder), *(cluster_with("gcs-fault-tolerance") if folder == "cluster" else ()))
    for doc in objects:
        for pod in pods(doc):
            assert list(crds.errors(crds.at(cluster, "spec.headGroupSpec.template"), pod)) == [], doc["metadata"]["name"]
        if doc["kind"] == "NetworkPolicy":
            for direction in ("ingress", "egress"):
                for rule in doc["spec"].get(direction, []):
                    assert list(crds.errors(crds.at(cluster, f"spec.networkPolicy.head.{direction}Rules[]"), rule)) == []


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("spec.rayVersoin", "2.60.0", "there is no such field"),
        ("spec.headGroupSpec.template.spec.terminationGraceSeconds", 5, "there is no such field"),
        ("spec.autoscalerOptions.version", "v3", "is none of"),
        ("spec.enableInTreeAutoscaling", "yes", "is not of type boolean"),
        ("spec.workerGroupSpecs", {}, "is not of type array"),
        ("spec.headGroupSpec", {}, "is missing"),
    ],
)
def test_a_wrong_field_is_found(path: str, value: Any, error: str, definitions: Path) -> None:
    doc = yaml.safe_load((KUBERAY / "cluster" / "raycluster.yaml").read_text())
    assert list(crds.errors(crds.schema(definitions, "RayCluster"), doc)) == []
    node = doc
    *parents, last = path.split(".")
    for name in parents:
        node = node[name]
    node[last] = value
    (found,) = crds.errors(crds.schema(definitions, "RayCluster"), doc)
    assert path in found and error in found
