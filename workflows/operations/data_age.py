"""Remember when the data of a workspace last changed, to report stale data."""

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from infra import storage
from workflows.pipelines import generations

FILE = "data_age.json"
"""Name of the file in the folder of all generations that holds a `DataAge`."""


@dataclass(frozen=True)
class DataAge:
    """The time since which the images and masks have not changed.

    Attributes:
        key: content key of the stage `prepare`, which identifies the images and masks.
        since: time when a retraining first saw them, such as "2026-01-31T23:59:59+00:00".
        reported: time when they were last reported as stale, in the same form. None if they never were.
    """

    key: str
    since: str
    reported: str | None = None

    def days(self, now: datetime) -> float:
        """Return how old the data are at the time `now`, in days."""
        return (now - datetime.fromisoformat(self.since)) / timedelta(days=1)

    def report_is_due(self, stale_days: int | None, now: datetime) -> bool:
        """Return whether the data are stale and a report is due now.

        Args:
            stale_days: age in days from which data are stale, and days from one report to the next. None for no reports.
            now: the current time.
        """
        last = datetime.fromisoformat(self.reported or self.since)
        return stale_days is not None and now - last >= timedelta(days=stale_days)


def update(workspace: str, key: str, now: datetime) -> DataAge:
    """Record which data a retraining has seen, and return their age.

    Args:
        workspace: URI of the parent workspace, which holds all generations.
        key: content key of the stage `prepare`.
        now: the current time, in UTC.
    """
    uri = generations.folder(workspace, FILE)
    if storage.exists(uri) and (found := DataAge(**storage.read_json(uri))).key == key:
        return found
    age = DataAge(key, now.isoformat(timespec="seconds"))
    storage.write_json(uri, asdict(age))
    return age


def mark_reported(workspace: str, age: DataAge, now: datetime) -> None:
    """Record in the parent workspace that stale data were reported at the time `now` (UTC)."""
    storage.write_json(generations.folder(workspace, FILE), asdict(replace(age, reported=now.isoformat(timespec="seconds"))))
