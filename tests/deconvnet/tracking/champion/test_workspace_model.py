"""Which versions of a registered model are a workspace's own, in a store that others share."""

from dataclasses import replace

import pytest

from deconvnet.tracking.promotion import Decision
from deconvnet.tracking.registry import aliases
from infra.errors import UserError


def test_a_model_that_does_not_exist_has_no_aliases(shop) -> None:
    other = replace(shop.model, name="other")
    assert aliases(shop.tracker.uri, "other") == {} and other.baseline_version() is None and other.foreign_version() is None


def test_a_rejected_challenger_is_not_the_version_to_beat(shop) -> None:
    shop.client.set_registered_model_alias("net", "challenger", "2")
    assert shop.model.baseline_version() == 2
    shop.client.set_model_version_tag("net", "2", "verdict", "not promoted")
    assert shop.model.baseline_version() is None


@pytest.mark.parametrize(
    ("tags", "alias"),
    [
        ({}, ""),
        ({}, "champion"),
        ({"workspace_id": ""}, "challenger"),
        ({"workspace_id": "theirs"}, "challenger"),
        ({"workspace_id": "theirs", "workspace": "/runs/theirs"}, "champion"),
    ],
)
def test_a_version_of_another_workspace_is_refused_on_a_shared_server(shared, tags, alias) -> None:
    foreign = shared.add_version(**tags)
    if alias:
        shared.client.set_registered_model_alias("net", alias, str(foreign))
    before = aliases(shared.tracker.uri, "net")
    with pytest.raises(UserError, match=r"another workspace|/runs/theirs") as refused:
        shared.model.check_owned()
    assert "version 3" in str(refused.value) and "--tracking.model_name" in str(refused.value)
    assert shared.promote(2, None, Decision(True, "it is better")) == before.get("champion")
    assert aliases(shared.tracker.uri, "net") == before
    version = shared.client.get_model_version("net", "2")
    assert version.tags["verdict"] == "not promoted" and "tracking.model_name" in version.tags["verdict.why"]


def test_versions_of_an_earlier_release_and_of_the_own_store_are_ours(shop, shared, tmp_path) -> None:
    shop.add_version()
    shop.model.check_owned()  # registered by hand in the store of the workspace, which nobody shares
    for workspace in ("w", "w/generations/20261101-000000"):
        with shared.tracker.pipeline("p", {}, {"workspace": str(tmp_path / workspace)}) as run:
            shared.client.create_model_version("net", "file:///model", run_id=run.run_id)
    shared.model.check_owned()
    with shared.tracker.pipeline("p", {}, {"workspace": str(tmp_path / "w2")}) as run:
        shared.client.create_model_version("net", "file:///model", run_id=run.run_id)
    assert shared.model.foreign_version().version == 5


def test_a_version_whose_run_was_deleted_is_not_ours_and_the_rest_of_the_registry_can_be_used(shared) -> None:
    """`mlflow gc` deletes a run for good. The version has no tag that names its workspace."""
    with shared.tracker.pipeline("p", {}) as run:
        shared.client.create_model_version("net", "file:///model", run_id="0" * 32)
    shared.client.delete_run(run.run_id)
    assert shared.model.foreign_version().version == 3
    with pytest.raises(UserError, match="version 3"):
        shared.model.check_owned()


def test_only_the_version_with_the_alias_is_looked_at_if_one_is_named(shared) -> None:
    """Version 3 is of another workspace, version 4 is ours; the challenger is in turn nobody, theirs and ours."""
    assert shared.model.foreign_version("challenger") is None
    theirs, ours = shared.add_version(workspace_id="theirs"), shared.add_version(workspace_id="ours")
    assert shared.model.foreign_version("challenger") is None and shared.model.foreign_version().version == theirs
    shared.client.set_registered_model_alias("net", "challenger", str(theirs))
    assert shared.model.foreign_version("challenger").version == theirs
    shared.client.set_registered_model_alias("net", "challenger", str(ours))
    assert shared.model.foreign_version("challenger") is None


def test_only_versions_of_the_same_generation_and_workspace_are_its_own(shared) -> None:
    for workspace, generation in (("ours", "1"), ("ours", "2"), ("theirs", "1")):
        shared.add_version(workspace_id=workspace, generation=generation)
    assert shared.model.versions_of("1") == {3} and shared.model.versions_of("9") == set()
