"""Where a pipeline keeps its tables, models and report in its workspace."""

from typing import Literal

from infra import storage
from infra.runtime.stages import digest
from infra.storage import tables

EXAMPLE_TABLES: tuple[tuple[str, Literal[1, 2], Literal["train", "dev"]], ...] = (
    ("stage1", 1, "train"),
    ("stage1_dev", 1, "dev"),
    ("stage2", 2, "train"),
    ("stage2_dev", 2, "dev"),
)
"""The tables of training crops: name, stage of training, and the split they are cut from."""


class Workspace:
    """The URIs of a workspace, and its table of rejected inputs."""

    def __init__(self, root: str) -> None:
        """Use the folder or s3:// prefix `root`."""
        self.root = root

    def uri(self, *parts: str) -> str:
        """Return the URI of something below the workspace."""
        return storage.join(self.root, *parts)

    @property
    def images(self) -> str:
        """The `images` table."""
        return self.uri("images")

    @property
    def proposals(self) -> str:
        """The `proposals` table."""
        return self.uri("proposals")

    @property
    def changes(self) -> str:
        """The `changes` table: how the images differ from those of the previous workspace."""
        return self.uri("changes")

    def examples(self, table: str) -> str:
        """One of the tables `EXAMPLE_TABLES`."""
        return self.uri("examples", table)

    def model(self, stage: str) -> str:
        """The folder of the network that a training stage leaves."""
        return self.uri("models", stage)

    def report(self, *parts: str) -> str:
        """A file of the report."""
        return self.uri("report", *parts)

    def write_rejects(self) -> None:
        """Gather the rejects of all tables made so far in the table `rejects`."""
        names = (self.images, self.proposals, *(self.examples(name) for name, _, _ in EXAMPLE_TABLES))
        commits = [tables.read_commit(table) for table in names]
        found = sorted({(r.image_id, r.path, r.stage, r.reason) for commit in commits if commit for r in commit.rejects})
        rows = [dict(zip(tables.REJECTS.names, row, strict=True)) for row in found]
        fingerprint = digest(rows)
        part = tables.write_part(self.uri("rejects"), fingerprint, 0, rows, tables.REJECTS)
        tables.commit(self.uri("rejects"), fingerprint, [part])

    def num_rejects(self) -> int:
        """Count the rejected inputs."""
        commit = tables.read_commit(self.uri("rejects"))
        return commit.rows if commit else 0
