"""Messages between a training run and its driver, the process that started it.

This is a separate module, so that the process of the `ReportQueue` actor doesn't need to import torch.
"""

from typing import Any

import ray


class ReportQueue:
    """A queue of messages from a training run to its driver (the process that started it), and a stop request to the run.

    It is run as a Ray actor. Messages are dictionaries of JSON values, such as {"workers": 4}.
    """

    def __init__(self) -> None:
        """Create the queue, with no messages and no stop request."""
        self._messages: list[dict[str, Any]] = []
        self._stop_requested = False

    def put(self, message: dict[str, Any]) -> None:
        """Append a message for the driver, a dictionary of JSON values, to the queue. The training run calls this."""
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """Remove all messages from the queue and return them, oldest first. The driver calls this."""
        messages, self._messages = self._messages, []
        return messages

    def request_stop(self) -> None:
        """Record that the training run should stop. The driver calls this."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Return whether the driver has asked the training run to stop. The training run calls this."""
        return self._stop_requested


class StopFlag:
    """A callable that tells a training run whether its driver has asked it to stop.

    It asks the `ReportQueue` actor in the background, so that a call never waits for an answer.
    """

    def __init__(self, queue: Any) -> None:
        """Ask the queue actor for the next reports for the first time, without waiting for its answer.

        Args:
            queue: handle of a `ReportQueue` actor.
        """
        self._queue = queue
        self._stopped = False
        self._answer = queue.stop_requested.remote()

    def __call__(self) -> bool:
        """Return whether a stop was requested, by the latest answer that has arrived. If one has arrived, ask again."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready and not self._stopped:
            try:
                self._stopped = bool(ray.get(self._answer))
            except ray.exceptions.RayError:  # the driver has died, and Ray will end the job
                return False
            self._answer = self._queue.stop_requested.remote()
        return self._stopped
