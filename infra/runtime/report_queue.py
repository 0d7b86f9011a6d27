"""Messages between the driver and its training run.

This is a separate module, so that the process of the `ReportQueue` actor doesn't need to import torch.
"""

from typing import Any

import ray


class ReportQueue:
    """A queue of messages from a training run to its driver, and a stop request in the other direction.

    It is run as a Ray actor. Messages are dictionaries of JSON values.
    """

    def __init__(self) -> None:
        """Start with no messages and no stop request."""
        self._messages: list[dict[str, Any]] = []
        self._stop_requested = False

    def put(self, message: dict[str, Any]) -> None:
        """Append a message for the driver."""
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """Remove and return all messages, oldest first."""
        messages, self._messages = self._messages, []
        return messages

    def request_stop(self) -> None:
        """Ask the training run to stop."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Return whether the driver has asked the run to stop."""
        return self._stop_requested


class StopFlag:
    """A function object that tells whether the driver has asked the training run to stop. A call never waits for an answer."""

    def __init__(self, queue: Any) -> None:
        """Send the first question to the queue.

        Args:
            queue: handle of a `ReportQueue` actor.
        """
        self._queue = queue
        self._stopped = False
        self._answer = queue.stop_requested.remote()

    def __call__(self) -> bool:
        """Return whether a stop was requested, according to the last answer that has arrived. Then ask again."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready and not self._stopped:
            try:
                self._stopped = bool(ray.get(self._answer))
            except ray.exceptions.RayError:  # the driver has died, and Ray will end the job
                return False
            self._answer = self._queue.stop_requested.remote()
        return self._stopped
