"""Who may connect to which pod on Kubernetes, and which secrets there are in which namespace."""

import os
import re
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.deploy.files import KUBERAY
from tests.infra.deploy.rendering import FOLDERS, built, cluster_with, needs_kubectl, selects

PODS = {
    "head": ("deconvnet", {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}),
    "worker": ("deconvnet", {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}),
    "a job's own": ("deconvnet", {}),
    "redis": ("deconvnet", {"app": "redis"}),
    "server": ("deconvnet", {"app": "server"}),
    "mlflow": ("deconvnet-platform", {"app": "mlflow"}),
    "postgres": ("deconvnet-platform", {"app": "postgres"}),
    "prepare": ("deconvnet-platform", {"app": "prepare"}),
    "backup": ("deconvnet-platform", {"app": "backup"}),
    "operator": ("kuberay-system", {}),
    "ingress": ("ingress-nginx", {}),
    "prometheus": ("monitoring", {}),
    "anyone": ("default", {"app": "mlflow"}),
}


def admits(policies: list[dict[str, Any]], to: str, port: int, source: str) -> bool:
    """Whether the network rules admit a connection from one of `PODS` to another, as Kubernetes decides it."""
    (namespace, labels), (from_namespace, from_labels) = PODS[to], PODS[source]
    mine = [p for p in policies if p["metadata"]["namespace"] == namespace and selects(p["spec"]["podSelector"], labels)]
    assert any("Ingress" in p["spec"]["policyTypes"] for p in mine)  # otherwise everything would be admitted
    for rule in (rule for policy in mine for rule in policy["spec"].get("ingress", [])):
        if not any(entry["port"] == port for entry in rule.get("ports", [{"port": port}])):
            continue
        for peer in rule["from"]:
            if "namespaceSelector" in peer:
                near = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": from_namespace})
            else:
                near = from_namespace == namespace
            if near and selects(peer.get("podSelector", {}), from_labels):
                return True
    return False


@needs_kubectl
@pytest.mark.parametrize(
    ("to", "port", "sources"),
    [
        ("head", 6379, {"head", "worker"}),
        ("head", 8265, {"head", "worker", "a job's own", "redis", "server", "operator"}),
        ("head", 8080, {"head", "worker", "prometheus"}),
        ("worker", 10002, {"head", "worker"}),
        ("redis", 6379, {"head"}),
        ("server", 8000, {"ingress", "prometheus"}),
        ("mlflow", 5000, {"head", "worker", "a job's own", "redis", "server", "prepare", "ingress"}),
        ("postgres", 5432, {"mlflow", "backup"}),
        ("a job's own", 80, set()),
        ("backup", 80, set()),
    ],
)
def test_network_rules_admit_those_who_need_it(to: str, port: int, sources: set[str]) -> None:
    folders = ("jobs", "platform", "serve")
    objects = [doc for folder in folders for doc in built(KUBERAY / folder)] + [*cluster_with("gcs-fault-tolerance")]
    policies = [doc for doc in objects if doc["kind"] == "NetworkPolicy"]
    assert {source for source in PODS if admits(policies, to, port, source)} == sources


def reaches(policies: list[dict[str, Any]], source: str, address: str) -> bool:
    """Whether the network rules admit a connection from one of `PODS` to an address outside the cluster."""
    namespace, labels = PODS[source]
    mine = [p for p in policies if p["metadata"]["namespace"] == namespace and selects(p["spec"]["podSelector"], labels)]
    rules = [rule for p in mine if "Egress" in p["spec"]["policyTypes"] for rule in p["spec"]["egress"]]
    blocks = [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    return any(
        ip_address(address) in ip_network(block["cidr"])
        and not any(ip_address(address) in ip_network(other) for other in block.get("except", []))
        for block in blocks
    )


@needs_kubectl
@pytest.mark.parametrize("source", ["head", "worker", "a job's own"])
def test_jobs_reach_every_address_but_those_that_give_them_the_rights_of_their_machine(source: str) -> None:
    policies = [doc for doc in built(KUBERAY / "jobs") if doc["kind"] == "NetworkPolicy"]
    reached = {each: reaches(policies, source, each) for each in ("8.8.8.8", "2600::1", "169.254.169.254", "fd00:ec2::254")}
    assert reached == {"8.8.8.8": True, "2600::1": True, "169.254.169.254": False, "fd00:ec2::254": False}


KUBECTL = """#!/bin/bash
file=${0%/*}/$2-$5
case $3 in
get) test -e "$file" || exit 1; [[ $7 == name ]] || sed -n 's/^MLFLOW_TRACKING_PASSWORD=//p' "$file" | tr -d '\n' | base64 ;;
create) cat >"${0%/*}/$2-$6"; echo "$*" >>"$0.calls" ;;
*) exit 9 ;;
esac
"""


def made_secrets(folder: Path, **variables: str) -> dict[tuple[str, str], dict[str, str]]:
    """The secrets that secrets.sh makes, by namespace and name, with a stand-in for kubectl that keeps them in files."""
    kubectl = folder / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", KUBERAY / "secrets.sh"], check=True, capture_output=True, env=env)
    made = {}
    for path in folder.glob("deconvnet-*"):
        namespace = "deconvnet-platform" if path.name.startswith("deconvnet-platform-") else "deconvnet"
        text = path.read_text()
        made[namespace, path.name.removeprefix(f"{namespace}-")] = dict(re.findall(r"^(\w+)=(.+)$", text, re.MULTILINE))
    return made


def test_secrets_are_created_once(tmp_path: Path) -> None:
    key = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    made = made_secrets(tmp_path, **key, DECONVNET_NOTIFY_URL="https://hooks.slack.com/services/hush")
    calls = (tmp_path / "kubectl.calls").read_text()
    assert made_secrets(tmp_path, **key) == made and (tmp_path / "kubectl.calls").read_text() == calls
    assert len(calls.splitlines()) == len(made) == 8 and "very-secret" not in calls and "hush" not in calls
    assert made["deconvnet", "notify"] == {"DECONVNET_NOTIFY_URL": "https://hooks.slack.com/services/hush"}
    assert made["deconvnet", "s3"] == made["deconvnet-platform", "s3"] == key
    assert made["deconvnet", "mlflow-client"] == made["deconvnet-platform", "mlflow-client"]
    assert len(made["deconvnet", "mlflow-client"]["MLFLOW_TRACKING_PASSWORD"]) == 48


def test_a_temporary_key_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """Without its session token the key would be refused by S3, and with it in some hours."""
    key = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "hush"}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        made_secrets(tmp_path, **key)
    assert refused.value.returncode == 2 and b"AWS_SESSION_TOKEN is set" in refused.value.stderr
    assert b"hush" not in refused.value.stderr and [path.name for path in tmp_path.iterdir()] == ["kubectl"]
    assert made_secrets(tmp_path, AWS_SESSION_TOKEN="left over")["deconvnet", "s3"] == {}


@pytest.mark.parametrize("namespace", ["deconvnet", "deconvnet-platform"])
def test_a_password_that_one_namespace_has_is_copied_to_the_other(namespace: str, tmp_path: Path) -> None:
    (tmp_path / f"{namespace}-mlflow-client").write_text("MLFLOW_TRACKING_USERNAME=pipeline\nMLFLOW_TRACKING_PASSWORD=old\n")
    made = made_secrets(tmp_path)
    assert made["deconvnet", "mlflow-client"] == made["deconvnet-platform", "mlflow-client"]
    assert made["deconvnet", "mlflow-client"]["MLFLOW_TRACKING_PASSWORD"] == "old"
    assert made["deconvnet", "s3"] == made["deconvnet", "notify"] == {}


@needs_kubectl
def test_pods_get_secrets_of_their_own_namespace_and_no_others_are_made(tmp_path: Path) -> None:
    made = made_secrets(tmp_path, AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="key")
    used = set()
    for doc in [doc for folder in FOLDERS for doc in built(KUBERAY / folder)] + [*cluster_with("gcs-fault-tolerance")]:
        namespace, text = doc["metadata"]["namespace"], yaml.safe_dump(doc, default_flow_style=True, width=10**6)
        used |= {(namespace, name) for name in re.findall(r"secretRef: \{name: ([\w-]+)", text)}
        used |= {(namespace, name) for name in re.findall(r"secretName: ([\w-]+)", text)}
        for key, name in re.findall(r"secretKeyRef: \{key: (\w+), name: ([\w-]+)", text):
            assert key in made[namespace, name]
            used.add((namespace, name))
    assert used == set(made)
    # What would make a job the master of the platform is out of its reach.
    assert not {key for (namespace, _), keys in made.items() if namespace == "deconvnet" for key in keys} & {
        "PGPASSWORD",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
    }
