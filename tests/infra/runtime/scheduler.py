"""Ray's own scheduler of nodes: what an autoscaler launches for a request."""

from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig as NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
from ray.core.generated.common_pb2 import LabelSelectorOperator


def launched(groups: dict[str, NodeTypeConfig], bundles: list[dict[str, float]], labels: dict[str, str]) -> dict[str, int]:
    """Return how many nodes of each group Ray's scheduler launches for a request of Ray Data's autoscaler."""
    selector = [[(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in labels.items()]]
    requests = [ResourceRequestUtil.make(bundle, label_selectors=selector) for bundle in bundles]
    constraint = ClusterResourceConstraint(resource_requests=ResourceRequestUtil.group_by_count(requests))
    request = SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=groups, max_num_nodes=50, cluster_resource_constraints=[constraint]
    )
    return {each.instance_type: each.count for each in ResourceDemandScheduler(None).schedule(request).to_launch}
