"""Ray's own scheduler of nodes: what an autoscaler launches for a request of Ray Data, or for tasks that wait."""

from typing import Any

from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig as NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
from ray.core.generated.common_pb2 import LabelSelectorOperator


def launched(groups: dict[str, NodeTypeConfig], bundles: list[dict[str, float]], labels: dict[str, str]) -> dict[str, int]:
    """Return how many nodes of each group Ray's scheduler launches for a request of Ray Data's autoscaler."""
    constraint = ClusterResourceConstraint(resource_requests=_requests(bundles, labels))
    return _launched(groups, cluster_resource_constraints=[constraint])


def launched_for_tasks(groups: dict[str, NodeTypeConfig], tasks: int, labels: dict[str, str]) -> dict[str, int]:
    """Return how many nodes of each group Ray's scheduler launches for tasks of one CPU that wait for a node."""
    return _launched(groups, resource_requests=_requests([{"CPU": 1}] * tasks, labels))


def _requests(bundles: list[dict[str, float]], labels: dict[str, str]) -> list[Any]:
    selector = [[(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in labels.items()]]
    requests = [ResourceRequestUtil.make(bundle, label_selectors=selector) for bundle in bundles]
    return ResourceRequestUtil.group_by_count(requests)


def _launched(groups: dict[str, NodeTypeConfig], **asked: list[Any]) -> dict[str, int]:
    request = SchedulingRequest(disable_launch_config_check=True, node_type_configs=groups, max_num_nodes=50, **asked)
    return {each.instance_type: each.count for each in ResourceDemandScheduler(None).schedule(request).to_launch}
