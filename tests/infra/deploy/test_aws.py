"""The files for AWS: Ray and CloudFormation accept them, and the nodes and the MLflow server are those of the other platforms."""

import copy
import re
from typing import Any

import pytest
import yaml

from tests.infra.deploy.files import AWS, COMPOSE, INFRA, KUBERAY, POOLS, of_kind, stages
from tests.infra.runtime.scheduler import NodeTypeConfig, launched


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


def resources(name: str) -> dict[str, Any]:
    """The resources of a file for CloudFormation."""
    return yaml.load((INFRA / "aws" / name).read_text(), Loader=CloudFormation)["Resources"]


STACK, MLFLOW = resources("stack.yaml"), resources("mlflow.yaml")


def test_runs_and_the_database_outlive_their_stacks_and_only_scratch_expires() -> None:
    bucket, database = STACK["Bucket"], MLFLOW["Database"]
    for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
        assert (bucket[policy], database[policy]) == ("Retain", "Snapshot")
    rules = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    assert [rule["Prefix"] for rule in rules if any(key.startswith("Expiration") for key in rule)] == ["scratch/"]
    assert bucket["Properties"]["VersioningConfiguration"] == {"Status": "Enabled"}
    assert database["Properties"]["DeletionProtection"] is True
    assert database["Properties"]["BackupRetentionPeriod"] == 7, "a week, as the file says"


def test_nobody_reaches_what_is_on_aws_from_everywhere_and_it_is_encrypted() -> None:
    bucket, database = STACK["Bucket"]["Properties"], MLFLOW["Database"]["Properties"]
    blocked = bucket["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4 and all(value is True for value in blocked.values())
    assert bucket["BucketEncryption"] and database["StorageEncrypted"] is True and database["PubliclyAccessible"] is False
    groups = [each["Properties"] for each in (STACK | MLFLOW).values() if "::SecurityGroup" in each["Type"]]
    ingress = [rule for each in groups for rule in each.get("SecurityGroupIngress", [each])]
    assert {rule.get("SourceSecurityGroupId") or rule["CidrIp"] for rule in ingress} == {
        f"Ref {name}" for name in ("SshFrom", "Nodes", "ServerGroup")
    }
    for container in MLFLOW["Task"]["Properties"]["ContainerDefinitions"]:
        variables = {each["Name"]: each["Value"] for each in container["Environment"]}
        assert ("PGHOST" in variables) is (variables.get("PGSSLMODE") == "require"), container["Name"]
    for kind in AWS["available_node_types"].values():
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required", "a task could be made to send it the node's rights"
        assert all(device["Ebs"]["Encrypted"] is True for device in node["BlockDeviceMappings"])
    assert "--dashboard-host=127.0.0.1" in AWS["head_start_ray_commands"][-1].split(), "it is reached through SSH"


def test_the_head_starts_and_stops_instances_of_its_own_cluster_alone() -> None:
    (policy,) = STACK["HeadRole"]["Properties"]["Policies"]
    limited = set()
    for statement in policy["PolicyDocument"]["Statement"]:
        actions = {statement["Action"]} if isinstance(statement["Action"], str) else {*statement["Action"]}
        if "instance/*" in str(statement["Resource"]) or "ec2:TerminateInstances" in actions:
            ((name, cluster),) = statement["Condition"]["StringEquals"].items()
            assert name.endswith("Tag/ray-cluster-name") and cluster == AWS["cluster_name"]
            limited |= actions
    assert limited == {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"}


def test_two_versions_of_mlflow_never_use_the_database_at_once() -> None:
    """A new version may change its schema."""
    (mlflow,) = (doc["spec"] for doc in of_kind("Deployment") if doc["metadata"]["name"] == "mlflow")
    assert (mlflow["replicas"], mlflow["strategy"]["type"]) == (1, "Recreate")
    service = MLFLOW["Service"]["Properties"]
    assert (service["DesiredCount"], service["DeploymentConfiguration"]["MaximumPercent"]) == (1, 100)


def test_the_three_mlflow_servers_agree() -> None:
    """On Docker Compose, Kubernetes and AWS the schema is upgraded before the server starts, which gets the same variables."""
    services = COMPOSE["services"]
    aws = {c["Name"]: c for c in MLFLOW["Task"]["Properties"]["ContainerDefinitions"]}
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
