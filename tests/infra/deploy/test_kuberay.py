"""The Kubernetes manifests do what they promise: jobs, schedules, stops, and which nodes are started."""

import importlib
import inspect
import re

import pytest
import yaml
from ray._private import ray_constants
from ray._private.node import Node
from ray.scripts import scripts

from tests.infra.deploy.files import DOCKERFILE, KUBERAY
from tests.infra.deploy.rendering import FOLDERS, RAY, built, cluster_with, needs_kubectl, pods, selects
from tests.infra.runtime.scheduler import NodeTypeConfig, launched
from workflows.cli.exit_codes import INTERRUPTED, USER_ERROR


@needs_kubectl
def test_jobs_have_the_specification_of_the_permanent_cluster() -> None:
    (cluster,), (job,), (cron,) = (built(KUBERAY / folder) for folder in RAY.values())
    expected = {name: value for name, value in cluster["spec"].items() if name != "upgradeStrategy"}  # KubeRay refuses it in jobs
    assert len(expected) == len(cluster["spec"]) - 1
    assert job["spec"]["rayClusterSpec"] == expected == cron["spec"]["jobTemplate"]["rayClusterSpec"]
    objects = [doc for folder in FOLDERS if folder != "platform" for doc in built(KUBERAY / folder)]
    assert {doc["metadata"]["namespace"] for doc in objects} == {"deconvnet"}
    assert {doc["metadata"]["namespace"] for doc in built(KUBERAY / "platform")} == {"deconvnet-platform"}
    images = {
        container["image"]
        for folder in FOLDERS
        for doc in built(KUBERAY / folder)
        for pod in pods(doc)
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", []))
    }
    ours = {image for image in images if "deconvnet" in image}
    assert len(ours) == 3 and len({image.rpartition("/")[0] for image in ours}) == 1  # all from one registry
    assert len(images - ours) == 1  # PostgreSQL


@needs_kubectl
def test_spot_nodes_are_started_beside_enough_nodes_on_demand() -> None:
    """By Ray's own scheduler: however many workers there are, as many as compute.min_workers are on demand."""
    (cluster,) = cluster_with("spot")
    groups, on_demand = {}, {}
    for group in cluster["spec"]["workerGroupSpecs"]:
        name, spec = group["groupName"], group["template"]["spec"]
        limits = spec["containers"][0]["resources"]["limits"]
        resources = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        resources = {key: value for key, value in resources.items() if value}
        most, priority = group["maxReplicas"], group.get("priority", 0)
        groups[name] = NodeTypeConfig(name, 0, most, resources=resources, labels=group["labels"], priority=priority)
        on_demand[name] = spec.get("nodeSelector", {}).get("karpenter.sh/capacity-type") == "on-demand"
    (minimum,) = set(re.findall(r"--compute.min_workers (\d+)", built(KUBERAY / "pipeline")[0]["spec"]["entrypoint"]))
    for workers in (1, 2, 3, 4, 6, 8, 13, 24):
        nodes = launched(groups, [{"CPU": 8, "GPU": 1}] * workers, {"pool": "gpu"})
        gpus = {name: count * groups[name].resources["GPU"] for name, count in nodes.items()}
        assert sum(gpus.values()) >= workers
        assert sum(count for name, count in gpus.items() if on_demand[name]) >= min(workers, int(minimum)), nodes
    assert nodes["gpu4-spot"] == 4 and nodes["gpu4"] == 1


@needs_kubectl
@pytest.mark.parametrize("part", ["head", "cpu", "gpu4", "gpu"])
def test_a_pod_that_is_stopped_has_time_for_a_checkpoint(part: str) -> None:
    spec = built(KUBERAY / "cluster")[0]["spec"]
    groups = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    template = groups[part]["template"]
    grace = template["spec"]["terminationGracePeriodSeconds"]
    (drains,) = set(re.findall(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", DOCKERFILE))
    assert int(drains) + 20 <= grace
    (hook,) = (c.get("lifecycle") for c in template["spec"]["containers"])
    if part == "head":
        command = hook["preStop"]["exec"]["command"]
        assert command[:2] == ["python", "-m"]
        options = importlib.import_module(command[2]).command_line().parse_args(command[3:])
        (stops,) = set(re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", DOCKERFILE))
        assert options.seconds == int(stops) <= grace - 20
    else:
        assert hook is None
    unmoved = template["metadata"].get("annotations", {}) if "metadata" in template else {}
    budgets = [doc["spec"] for doc in built(KUBERAY / "jobs") if doc["kind"] == "PodDisruptionBudget"]
    labels = {"ray.io/node-type": "head"} if part == "head" else {"ray.io/node-type": "worker", "ray.io/group": part}
    assert any(selects(budget["selector"], labels) for budget in budgets) is (part != "cpu")
    assert (unmoved.get("cluster-autoscaler.kubernetes.io/safe-to-evict") == "false") is (part != "cpu")
    assert (unmoved.get("karpenter.sh/do-not-disrupt") == "true") is (part != "cpu")


def test_ray_drains_a_node_that_is_stopped() -> None:
    """`ray start --block` does it on SIGTERM, for as long as the variable in the image says."""
    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S > 0
    assert "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" in inspect.getsource(Node._drain_node_before_shutdown)
    assert "shutdown_at_exit=block" in inspect.getsource(scripts.start.callback)


@needs_kubectl
def test_schedules_retry_only_what_may_help_and_end_what_hangs() -> None:
    (plain,), (ray_s,) = (built(KUBERAY / folder) for folder in ("retrain-cronjob", "retrain"))
    job, ray_job = plain["spec"]["jobTemplate"]["spec"], ray_s["spec"]["jobTemplate"]
    (container,) = job["template"]["spec"]["containers"]
    (final,) = (rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert final["onExitCodes"]["containerName"] == container["name"]
    assert USER_ERROR in final["onExitCodes"]["values"] and INTERRUPTED not in final["onExitCodes"]["values"]
    assert job["backoffLimit"] > 0 and job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert ray_job["backoffLimit"] == 0  # a RayJob can't tell exit codes apart
    day = 24 * 3600
    assert 0 < job["activeDeadlineSeconds"] == ray_job["activeDeadlineSeconds"] < day
    assert plain["spec"]["concurrencyPolicy"] == "Forbid" and plain["spec"]["failedJobsHistoryLimit"] > 0
    # KubeRay refuses deletion rules beside these two, and rules that delete the job before its cluster.
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & set(ray_job)
    rules = [(r["policy"], *sorted(r["condition"].items())) for r in ray_job["deletionStrategy"]["deletionRules"]]
    ends = {("jobStatus", "SUCCEEDED"), ("jobDeploymentStatus", "Failed")}
    seconds = {(policy, end): ttl for policy, end, (_, ttl) in rules}
    assert set(seconds) == {(policy, end) for policy in ("DeleteCluster", "DeleteSelf") for end in ends}
    assert all(seconds["DeleteCluster", end] < seconds["DeleteSelf", end] for end in ends)
    gates = {gate["name"]: gate["enabled"] for gate in yaml.safe_load((KUBERAY / "operator.yaml").read_text())["featureGates"]}
    assert gates["RayCronJob"] and gates["RayJobDeletionPolicy"]
