"""Run the processes that predict with Ray Serve.

Ray Serve starts several replicas, which are processes that each hold the models. `deconvnet.serving.app` receives the requests
in the process of the command and passes each image to one of them. Ray Serve's own HTTP server is not used, because it keeps a
body of any size in memory, and has no limit on the time in which a body must arrive.
"""

import asyncio
import importlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from deconvnet.serving.http import Answer
from deconvnet.serving.replica import Replica, ServedModel
from deconvnet.serving.routing import LoadedModel
from deconvnet.tracking.registry import Version
from infra.errors import UserError, find_user_error

APP = "deconvnet"
"""Name of the application in Ray Serve."""
_SHUTDOWN_SECONDS = 60.0  # how long a replica may take to finish its requests when it is stopped
_LOAD_SECONDS = 1800.0
_DROP_SECONDS = 10.0
_JOIN_SECONDS = 30.0  # how long to wait until the driver knows all started replicas
_ONGOING_REQUESTS = 2  # per replica: while one image is predicted, the next is sent


class Replicas:
    """The replicas of a served model, as the process of the command sees them.

    Attributes:
        loaded: the versions that all replicas hold.
    """

    def __init__(self, handle: Any, number: int) -> None:
        """Wrap a handle of Ray Serve.

        Args:
            handle: the handle of the deployment of `Replica`.
            number: number of the replicas.
        """
        self._handle, self._number = handle, number
        self.loaded: dict[Version, LoadedModel] = {}

    def load(self, version: Version) -> LoadedModel:
        """Load a version into all replicas, and wait until they have loaded it.

        A replica that Ray Serve restarts later loads it by itself, with the first request.

        Args:
            version: the version.

        Returns:
            The version with its classes.

        Raises:
            UserError: if the version can't be downloaded, is not one of this project's ensembles, or the replicas fail.
        """
        deadline = time.monotonic() + _JOIN_SECONDS
        while True:
            try:
                found = self._on_all("load", version, deadline)
            except UserError:
                self.drop([version])  # other replicas may hold it
                raise
            if len(found) >= self._number or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.loaded[version] = found[0]
        return found[0]

    def drop(self, versions: Collection[Version]) -> None:
        """Free the memory of versions in all replicas. Errors are ignored, since a replica that fails holds none.

        A replica that is loading a version drops these afterwards. This is not waited for, as it may take half an hour.
        """
        for version in versions:
            self.loaded.pop(version, None)
        with suppress(UserError):
            self._on_all("drop", tuple(versions), time.monotonic(), _DROP_SECONDS)

    def _on_all(self, method: str, argument: Any, deadline: float, timeout: float = _LOAD_SECONDS) -> list[Any]:
        """Call a method of all replicas that are known, and return the results.

        Args:
            method: name of the method of `Replica`.
            argument: its argument.
            deadline: time until which to wait for Ray Serve to know a replica, from `time.monotonic()`.
            timeout: seconds within which all replicas must have answered.

        Raises:
            UserError: if the method raises an error, or no replica exists.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        while True:
            try:
                return list(self._handle.broadcast(method, argument).results(timeout_s=timeout))
            except (RayError, RayServeException, TimeoutError) as error:
                if user_error := find_user_error(error):
                    raise user_error from None
                if time.monotonic() > deadline:
                    raise UserError(f"the replicas fail: {failure_reason(str(error) or repr(error))}") from error
            time.sleep(0.2)

    async def predict(self, version: Version, data: bytes, with_overlay: bool, keep_mask: bool) -> Answer:
        """Predict an image on one of the replicas. For the arguments see `Replica.predict`.

        If the replica dies, the image is sent once more, to another replica.
        """
        from ray.exceptions import RayActorError

        call = self._handle.predict
        try:
            return await _result(call.remote(version, data, with_overlay, keep_mask))
        except RayActorError:
            return await _result(call.remote(version, data, with_overlay, keep_mask))

    async def different_pixels(self, model: LoadedModel, data: bytes, other: LoadedModel, mask: bytes) -> float:
        """Predict an image on one of the replicas, and compare the mask. For the arguments see `Replica.different_pixels`."""
        return float(await _result(self._handle.different_pixels.remote(model, data, other, mask)))


async def _result(response: Any) -> Any:
    """Wait for the response of a replica, and return it. If the wait is cancelled, so is the request to the replica."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def check_installed() -> None:
    """Raise UserError if Ray Serve is not installed. The message says how to install it."""
    try:
        importlib.import_module("ray.serve")
    except ImportError:
        raise UserError(
            "Ray Serve is not installed; to install it run in the project's folder: pip install -c constraints.txt -e '.[serve]'"
        ) from None


@contextmanager
def run_replicas(model: ServedModel, nodes: Mapping[str, str] | None = None, *, shared_ray: bool = True) -> Iterator[Replicas]:
    """Run replicas as long as a `with` block runs, on the Ray cluster to which this process is connected.

    The block starts when the replicas (processes that predict) hold the model. At its end, they first finish the images that
    they are predicting.

    Args:
        model: the model to serve, with the number and size of its replicas.
        nodes: Ray labels that a node must have to run replicas, values by key. None for all nodes.
        shared_ray: True if the Ray cluster continues to run after this process. Ray Serve is then shut down at the end of the
            block. If False, only the model is removed from Ray Serve.

    Yields:
        The replicas.

    Raises:
        UserError: if Ray Serve already runs on this cluster, or the replicas can't load the model.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it warns when a replica takes 0.1 s to say how busy it is
    if (status := serve.status()).proxies or status.applications:
        raise UserError("this Ray cluster already runs Ray Serve: stop it (serve shutdown), or use another cluster")
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(proxy_location="Disabled", logging_config=quiet)
        selector = {"label_selector": dict(nodes)} if nodes else {}
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=model.replicas,
            ray_actor_options={"num_cpus": model.cpus, "num_gpus": model.gpus, **selector},
            max_ongoing_requests=_ONGOING_REQUESTS,
            max_constructor_retry_count=1,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=_SHUTDOWN_SECONDS,
            logging_config=quiet,
        )
        try:
            handle = serve.run(deployment.bind(model), name=APP, route_prefix=None, logging_config=quiet)
            replicas = Replicas(handle, model.replicas)
            replicas.load(model.version)
        except (RuntimeError, UserError) as error:
            raise UserError(f"{model.title} can't be served: {failure_reason(str(error) or repr(error))}") from error
        yield replicas
    finally:
        serve.delete(APP)
        if shared_ray:
            serve.shutdown()


def running_replicas() -> int | None:
    """Return how many replicas are running. None if Ray Serve has no such application, can't start it, or is deleting it."""
    from ray import serve

    app = serve.status().applications.get(APP)
    if app is None or app.status in ("DEPLOY_FAILED", "NOT_STARTED", "DELETING"):
        return None
    return sum(count for each in app.deployments.values() for state, count in each.replica_states.items() if state == "RUNNING")


def failure_reason(report: str) -> str:
    """Find the reason why a replica failed, in the text that Ray Serve reports.

    Args:
        report: the text, with or without a traceback. It must not be empty.

    Returns:
        The last line that names an exception, or the last line if none does. The prefix `infra.errors.UserError: ` is removed.
    """
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith(("File ", "ray::", "raise "))]
    return (errors or lines)[-1].removeprefix("infra.errors.UserError: ")
