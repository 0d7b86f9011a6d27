"""Track experiments and register models with MLflow, or track nothing if `tracking.enabled` is false."""

from typing import TYPE_CHECKING

from deconvnet.tracking.interface import Tracker
from deconvnet.tracking.store import tracking_uri
from infra import storage

if TYPE_CHECKING:
    from deconvnet.tracking.settings import TrackingSettings


def open_tracker(settings: "TrackingSettings", workspace: str) -> Tracker:
    """Open the tracker that the settings ask for. MLflow is imported only if tracking is enabled.

    Args:
        settings: the section `tracking` of the settings.
        workspace: folder or bucket prefix of the pipeline run.

    Returns:
        A tracker that logs to MLflow, or one that logs nothing if `settings.enabled` is false.

    Raises:
        UserError: if the MLflow store can't be used.
    """
    if not settings.enabled:
        return Tracker(workspace)
    from deconvnet.tracking.mlflow_runs import MlflowTracker

    spool = storage.join(workspace, "mlflow", "spool")
    return MlflowTracker(tracking_uri(workspace, settings.uri), settings.experiment, spool)
