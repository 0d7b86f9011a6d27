"""A server follows the aliases of a model: what it loads, when it changes, and what goes on where that fails."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from deconvnet.serving import follow
from deconvnet.serving.app import ServingApp
from deconvnet.serving.follow import Follower, challenger_uri, check_challenger, find_targets
from deconvnet.serving.limits import Limits
from deconvnet.serving.routing import LoadedModel, TargetVersions
from deconvnet.tracking import registry
from deconvnet.tracking.registry import NoSuchAlias, NotRegistered, Version
from infra.errors import UserError
from tests.deconvnet.serving.asgi import Predictors, call, loaded


@dataclass
class Replicas:
    """Loads and drops versions, and records it. Those in `missing` can't be loaded."""

    loaded: dict[Version, LoadedModel] = field(default_factory=lambda: {loaded(1).version: loaded(1)})
    missing: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def load(self, version: Version) -> LoadedModel:
        self.log.append(f"load {version.number}")
        if version.number in self.missing:
            raise UserError(f"{version.title} can't be fetched")
        self.loaded[version] = loaded(version.number)
        return self.loaded[version]

    def drop(self, versions: Collection[Version]) -> None:
        for version in versions:
            self.log.append(f"drop {version.number}")
            del self.loaded[version]


@dataclass
class Server:
    """A server with version 1 of a model, and the registry that it follows."""

    replicas: Replicas = field(default_factory=Replicas)
    predictors: Predictors = field(default_factory=Predictors)
    targets: TargetVersions | UserError = field(default_factory=lambda: TargetVersions(loaded(1).version))

    def __post_init__(self) -> None:
        self.app = ServingApp(self.predictors, loaded(1), Limits(), canary=0.5)
        self.follower = Follower(self.app, self.replicas, self.find, 10)

    def find(self) -> TargetVersions:
        if isinstance(self.targets, UserError):
            raise self.targets
        return self.targets

    def want(self, champion: int, challenger: int | None = None) -> None:
        self.targets = TargetVersions(loaded(champion).version, loaded(challenger).version if challenger else None)

    def settle(self) -> tuple[str, str | None]:
        """Take steps until there is nothing to do, and return the numbers of the versions that are announced."""
        for _ in range(9):
            if not self.follower.step():
                break
        else:
            raise AssertionError("it does not come to an end")
        challenger = self.app.challenger.version.number if self.app.challenger else None
        assert self.app.model.version == self.app.routes.champion
        return self.app.model.version.number, challenger


@pytest.fixture
def server() -> Server:
    return Server()


def test_nothing_happens_while_the_registry_names_the_same_version(server: Server) -> None:
    assert server.settle() == ("1", None) and server.replicas.log == []


def test_a_new_champion_is_loaded_answers_is_announced_and_the_earlier_one_dropped(server: Server, caplog) -> None:
    server.want(2)
    with caplog.at_level(logging.INFO):
        assert server.settle() == ("2", None)
    assert server.replicas.log == ["load 2", "drop 1"] and "serving net version 2 in place of version 1" in caplog.text


def test_the_change_is_announced_after_the_last_answer_of_the_earlier_version(server: Server) -> None:
    """An image is being predicted when the alias moves. Requests after it are answered by the new version at once."""
    server.want(2)
    assert server.follower.step()

    async def run() -> None:
        first = asyncio.ensure_future(call(server.app, body=[b"photo"]))
        await server.predictors.asked(1)
        change = threading.Thread(target=server.follower.step)
        change.start()
        while server.app.routes.champion == loaded(1).version:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(call(server.app, body=[b"photo"]))
        await server.predictors.asked(2)
        assert server.app.model == loaded(1) and server.predictors.calls == ["1", "2"]
        server.predictors.open.set()
        assert (await first).headers["x-model"] == "net version 1"
        await asyncio.to_thread(change.join, 30)
        assert server.app.model == loaded(2)
        assert (await second).headers["x-model"] == "net version 2"

    asyncio.run(run())


@pytest.mark.parametrize("failure", ["load", "registry"])
def test_where_a_new_version_fails_the_present_one_goes_on_and_it_is_said_once(server: Server, caplog, failure: str) -> None:
    server.want(2)
    server.replicas.missing = {"2"}
    if failure == "registry":
        server.targets = UserError("the registry does not answer")
    for _ in range(2):
        try:
            assert server.settle() == ("1", None)
        except UserError as error:
            server.follower._warn(str(error))
    assert server.replicas.log == ([] if failure == "registry" else ["load 2"])
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1


def test_a_version_that_could_not_be_loaded_is_tried_again_after_pauses_that_grow(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: now[0]))
    server.want(2)
    server.replicas.missing = {"2"}
    tried = []
    for second in range(0, 3000, 10):
        now[0], before = float(second), len(server.replicas.log)
        server.settle()
        tried += [second] * (len(server.replicas.log) - before)
    assert tried == [0, 20, 60, 140, 300, 620, 1220, 1820, 2420], "at most ten minutes"
    server.replicas.missing.clear()
    now[0] = 4000.0
    assert server.settle() == ("2", None)


@pytest.mark.parametrize(
    ("moves", "announced", "log"),
    [
        ([(1, 2)], ("1", "2"), ["load 2"]),
        ([(1, 2), (2, 2)], ("2", None), ["load 2", "drop 1"]),  # the challenger is promoted
        ([(1, 2), (1, 3)], ("1", "3"), ["load 2", "drop 2", "load 3"]),
        ([(1, 2), (1, None)], ("1", None), ["load 2", "drop 2"]),
        ([(2, 3)], ("2", "3"), ["load 2", "drop 1", "load 3"]),  # the champion first
        ([(1, 2), (2, 2), (1, 2)], ("1", None), ["load 2", "drop 1", "load 1", "drop 2"]),  # taken back: not tried out again
    ],
)
def test_a_challenger_is_followed_too(server: Server, moves: list, announced: tuple, log: list[str]) -> None:
    for champion, challenger in moves:
        server.want(champion, challenger)
        found = server.settle()
    assert (found, server.replicas.log) == (announced, log)


def test_the_follower_goes_on_after_any_error_and_says_once_that_the_registry_is_away(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    follower = Follower(server.app, server.replicas, server.find, 0)
    stop, errors = threading.Event(), [*[UserError("no registry")] * 3, RuntimeError("a bug")]

    def step() -> bool:
        if errors:
            raise errors.pop(0)
        stop.set()
        return False

    monkeypatch.setattr(follower, "step", step)
    thread = threading.Thread(target=follower.run, args=(stop,))
    thread.start()
    thread.join(30)
    assert not errors and not thread.is_alive()
    warning, error = caplog.records
    assert (warning.levelname, warning.getMessage()) == ("WARNING", "still serving net version 1: no registry")
    text = error.exc_text or logging.Formatter().format(error)  # beside tests on the session's Ray, records have the text only
    assert error.levelname == "ERROR" and "a bug" in text


def test_the_challenger_is_the_alias_of_the_same_model() -> None:
    for model in ("models:/shapes@champion", "models:/shapes/7"):
        assert challenger_uri(model, None) == "models:/shapes@challenger"
    assert challenger_uri("models:/shapes@champion", "models:/other/3") == "models:/other/3"


@pytest.mark.parametrize("present", [("c", "d"), ("c",), ()])
def test_a_registry_without_a_challenger_is_served_and_one_without_a_champion_is_an_error(present, monkeypatch) -> None:
    def find(source: str, store: str, setting: str) -> Version:
        if source not in present:
            raise NotRegistered(f"{source} is not there")
        return Version("net", source, "id", "nowhere")

    monkeypatch.setattr(registry, "find", find)
    ask: Callable[[str | None], TargetVersions] = lambda challenger: find_targets("c", challenger, "store")  # noqa: E731
    if not present:
        with pytest.raises(UserError, match="c is not there"):
            ask("d")
        return
    found = ask("d")
    assert found.champion.number == "c" and (found.challenger is not None) is ("d" in present)
    assert ask(None).challenger is None


def test_only_the_answer_that_there_is_no_such_version_ends_a_trial(
    tmp_path: Path, make_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the registry does not answer the question for the challenger, the challenger goes on, and the champion is followed."""
    from mlflow import MlflowClient

    store = make_store(tmp_path)
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_registered_model("net")
    client.create_model_version("net", str(tmp_path / "nowhere"))
    client.set_registered_model_alias("net", "champion", "1")
    for missing in ("models:/net@challenger", "models:/net/9", "models:/net/x", "models:/typo@champion", "models:/typo/3"):
        with pytest.raises(NotRegistered, match=r"which has net|net has champion") as caught:
            registry.find(missing, store, "challenger")
        assert isinstance(caught.value, NoSuchAlias) == (missing == "models:/net@challenger")
        assert find_targets("models:/net@champion", missing, store).challenger is None
    find = registry.find
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(
        registry, "find", lambda uri, _, name: find(uri, store if name == "model" else "http://127.0.0.1:9", name)
    )
    targets = find_targets("models:/net@champion", "models:/net@challenger", store)
    assert targets.champion.number == "1" and targets.challenger is None and "can't be reached" in targets.problem
    check_challenger(targets.champion, "models:/net@champion", "models:/net/2", store)
    assert (
        "the registry could not be asked for the challenger: challenger models:/net/2 is not in http://127.0.0.1:9" in caplog.text
    )


@pytest.mark.parametrize(("champion", "announced"), [(1, ("1", "2")), (3, ("3", "2")), (2, ("2", None))])
def test_a_challenger_of_which_the_registry_says_nothing_goes_on_and_the_champion_is_followed(
    server: Server, caplog, champion: int, announced: tuple
) -> None:
    server.want(1, 2)
    assert server.settle() == ("1", "2")
    server.targets = TargetVersions(loaded(champion).version, problem="PERMISSION_DENIED")
    assert server.settle() == announced and server.settle() == announced and "drop 2" not in server.replicas.log
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["the challenger stays as it is: PERMISSION_DENIED"]


def test_a_challenger_that_the_user_names_is_another_one_and_its_model_exists(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """The alias may come later, or have gone with the end of a trial, which is logged: the server must start again."""
    versions = {"models:/net@champion": loaded(1).version, "models:/net/1": loaded(1).version, "models:/net/2": loaded(2).version}

    def find(source: str, store: str, setting: str) -> Version:
        if source.startswith("models:/net@") and source not in versions:
            raise NoSuchAlias(f"{setting} {source} is not there")
        if source not in versions:
            raise NotRegistered(f"{setting} {source} is not there")
        return versions[source]

    def log(challenger: str | None) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            check_challenger(loaded(1).version, "models:/net@champion", challenger, "store")
        return caplog.text

    monkeypatch.setattr(registry, "find", find)
    with pytest.raises(UserError, match="challenger models:/typo/3 is not there"):
        log("models:/typo/3")
    with pytest.raises(UserError, match="model models:/net@champion would be its own challenger"):
        log("models:/net@champion")
    for challenger, level in ((None, logging.INFO), ("models:/net@challenger", logging.WARNING)):
        assert "no challenger to try out now: models:/net@challenger names no version" in log(challenger)
        assert [record.levelno for record in caplog.records] == [level]
    assert "no challenger to try out now: models:/net/1 names net version 1, which is the champion" in log("models:/net/1")
    assert log("models:/net/2") == ""
