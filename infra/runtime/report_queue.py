"""Messages between a driver and its training run. A module of its own, so that the actor's process imports no torch."""

from typing import Any

import ray


class ReportQueue:
    """A Ray actor between driver and run: the run puts reports, the driver takes them; the driver requests a stop, the run checks.

    Messages are dictionaries of JSON values.
    """

    def __init__(self) -> None:
        """Begin without messages or request."""
        self._messages: list[dict[str, Any]] = []
        self._stop_requested = False

    def put(self, message: dict[str, Any]) -> None:
        """Append a message for the driver."""
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """Return the messages put since the last call, oldest first, and forget them."""
        messages, self._messages = self._messages, []
        return messages

    def request_stop(self) -> None:
        """Request that the run stops."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Return True once a stop was requested."""
        return self._stop_requested


class StopFlag:
    """Whether the driver has requested a stop, as of the report queue's last answer; a call never waits."""

    def __init__(self, queue: Any) -> None:
        """Use the handle of a `ReportQueue` actor."""
        self._queue = queue
        self._stopped = False
        self._answer = queue.stop_requested.remote()

    def __call__(self) -> bool:
        """Return True if the last answer was that a stop is requested, and send the next question."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready and not self._stopped:
            try:
                self._stopped = bool(ray.get(self._answer))
            except ray.exceptions.RayError:  # the driver has gone; Ray ends the job
                return False
            self._answer = self._queue.stop_requested.remote()
        return self._stopped
