"""Follow the aliases of a registered model while it is served: load the version that an alias names now, and change to it."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

from deconvnet.serving.app import ServingApp
from deconvnet.serving.routing import LoadedModel, TargetVersions, next_step
from deconvnet.tracking import registry
from deconvnet.tracking.registry import CHALLENGER, NoSuchAlias, NotRegistered, RegistryUnavailable, Version
from infra.errors import UserError

logger = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 600.0


class Loader(Protocol):
    """The interface that loads and drops versions in all replicas. `deconvnet.serving.ray_serve.Replicas` implements it."""

    @property
    def loaded(self) -> dict[Version, LoadedModel]:
        """Return the versions that all processes hold."""

    def load(self, version: Version) -> LoadedModel:
        """Load a version into all processes, and wait until they have loaded it. Raise UserError if that fails."""

    def drop(self, versions: Collection[Version]) -> None:
        """Free the memory of versions in all processes."""


def challenger_uri(model: str, challenger: str | None) -> str:
    """Return the URI of the challenger: `challenger`, or if it is None, the alias `challenger` of the model in `model`."""
    name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    return challenger or f"models:/{name}@{CHALLENGER}"


def find_targets(model: str, challenger: str | None, store: str) -> TargetVersions:
    """Ask MLflow's registry which versions to serve now.

    Args:
        model: URI of the registered model that answers.
        challenger: URI of the one to try out, or None. If there is no such version, none is tried out.
        store: URI of the MLflow store.

    Returns:
        The versions. If the registry names the champion, but can't be asked for the challenger, `problem` says why.

    Raises:
        UserError: if `model` names no version, or the registry does not answer.
    """
    champion = registry.find(model, store, "model")
    if challenger is None:
        return TargetVersions(champion)
    try:
        return TargetVersions(champion, registry.find(challenger, store, "challenger"))
    except NotRegistered:
        return TargetVersions(champion)
    except RegistryUnavailable as error:
        return TargetVersions(champion, problem=str(error))


def check_challenger(champion: Version, model: str, challenger: str | None, store: str) -> None:
    """Check before a server starts that the challenger's URI can be used, and log if there is no challenger now.

    A missing alias is no error, even if the user named it: a trial may have ended, and the server must be able to restart.

    Args:
        champion: the version that answers.
        model: URI that names it.
        challenger: URI of the challenger that the user has named. None for the alias `challenger` of the same model.
        store: URI of the MLflow store.

    Raises:
        UserError: if both URIs are the same, or the user has named a model or a number of a version that does not exist.
    """
    uri = challenger_uri(model, challenger)
    if uri == model:
        raise UserError(
            f"model {model} would be its own challenger: name another --challenger, or leave out --canary and --shadow"
        )
    try:
        found = registry.find(uri, store, "challenger")
    except NotRegistered as error:
        if challenger and not isinstance(error, NoSuchAlias):
            raise
        level = logging.WARNING if challenger else logging.INFO
        logger.log(level, f"there is no challenger to try out now: {uri} names no version")
        return
    except RegistryUnavailable as error:
        logger.warning(f"the registry could not be asked for the challenger: {error}")
        return
    if found == champion:
        logger.info(f"there is no challenger to try out now: {uri} names {champion.title}, which is the champion")


class Follower:
    """Changes the versions that a server serves, whenever the registry names others.

    A new version is loaded beside the one that answers. Then all further requests go to it. When the last request to the earlier
    version has been answered, the change is announced, and the earlier version is dropped. If a version can't be loaded, or the
    registry does not answer, the present version continues to answer. If the registry fails only for the challenger, the
    challenger stays as it is, and the champion is still followed.
    """

    def __init__(self, app: ServingApp, loader: Loader, find: Callable[[], TargetVersions], poll_seconds: float) -> None:
        """Create the follower of a server that is running.

        Args:
            app: the application that answers the requests.
            loader: the processes that predict, which hold the version that answers.
            find: function that asks the registry which versions to serve.
            poll_seconds: seconds between two questions.
        """
        self._app, self._loader, self._find, self._poll_seconds = app, loader, find, poll_seconds
        self._challenger: Version | None = None  # the latest challenger that the registry named
        self._retired: set[Version] = set()  # versions that others have replaced: a rollback must not try them out again
        self._broken: dict[Version, tuple[float, float]] = {}  # when to try again, and the length of that pause
        self._last_warning = ""

    def run(self, stop: threading.Event) -> None:
        """Follow the aliases until an event is set. All errors are logged, none ends the server."""
        while not stop.wait(self._poll_seconds):
            try:
                while self.step() and not stop.is_set():
                    pass
            except UserError as error:
                self._warn(f"still serving {self._app.model.version.title}: {error}")
            except Exception:
                logger.exception(f"still serving {self._app.model.version.title}: the next version could not be served")

    def step(self) -> bool:
        """Take one step towards the versions that the registry names.

        Returns:
            True if something was changed, so that another step may follow. False if there is nothing to do.

        Raises:
            UserError: if the registry does not answer.
        """
        app, routes, loaded = self._app, self._app.routes, self._loader.loaded
        targets = self._find()
        if targets.problem:
            self._warn(f"the challenger stays as it is: {targets.problem}")
            targets = TargetVersions(targets.champion, self._challenger)
        self._challenger = targets.challenger
        if targets.challenger in self._retired - {targets.champion}:
            targets = TargetVersions(targets.champion)
        now = time.monotonic()
        step = next_step(
            targets, routes.champion, loaded, [version for version, (until, _) in self._broken.items() if now < until]
        )
        champion = routes.champion if step.champion is None else step.champion
        if (champion, step.challenger) != (routes.champion, routes.challenger):
            before = routes.champion
            routes.change(champion, step.challenger)
            app.announce(loaded[champion], loaded[step.challenger] if step.challenger else None)
            if champion != before:
                self._retired = (self._retired | {before}) - {champion}
                logger.info(f"serving {champion.title} in place of version {before.number}")
            if step.challenger:
                logger.info(f"trying out {step.challenger.title}")
            return True
        if step.drop:
            self._loader.drop(step.drop)
            return True
        if step.load:
            self._load(step.load[0])
            return True
        return False

    def _load(self, version: Version) -> None:
        """Load a version. If that fails, log the reason, and try again after a pause, which is doubled each time."""
        logger.info(f"loading {version.title} …")
        try:
            self._loader.load(version)
            self._broken.pop(version, None)
        except UserError as error:
            pause = min(2 * self._broken.get(version, (0.0, self._poll_seconds))[1], _MAX_PAUSE_SECONDS)
            self._broken[version] = (time.monotonic() + pause, pause)
            self._warn(f"still serving {self._app.model.version.title}: {error}")

    def _warn(self, text: str) -> None:
        """Log a warning, unless the last one was the same."""
        if text != self._last_warning:
            logger.warning(text)
        self._last_warning = text
