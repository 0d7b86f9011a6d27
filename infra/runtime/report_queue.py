"""Messages between a training run and its driver, the process that started it.

This is a separate module, so that the process of the `ReportQueue` actor doesn't need to import torch.
"""

from typing import Any

import ray


class ReportQueue:
    """A queue of messages from a training run to its driver, and a stop request to the run.

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
        """Return whether the driver has requested a stop. The training run calls this."""
        return self._stop_requested


class StopFlag:
    """A callable that returns whether the driver has requested a stop of the training run.

    It asks a `ReportQueue` actor in the background. A call returns the latest answer without waiting for a new one.
    """

    def __init__(self, queue: Any) -> None:
        """Ask the queue actor for the first time whether a stop was requested, without waiting for its answer.

        Args:
            queue: handle of a `ReportQueue` actor, in which the driver records the stop request.
        """
        self._queue = queue
        self._stopped = False
        self._answer = queue.stop_requested.remote()

    def __call__(self) -> bool:
        """Return whether a stop was requested, according to the latest answer of the queue actor.

        If a new answer has arrived, or the actor was out of reach for a moment, it is asked again in the background. Once the
        result is True, it stays True. If the actor has died, the result is False.
        """
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready and not self._stopped:
            try:
                self._stopped = bool(ray.get(self._answer))
            except ray.exceptions.ActorUnavailableError:
                pass
            except ray.exceptions.RayError:  # the driver has died, and Ray will end the job
                return False
            self._answer = self._queue.stop_requested.remote()
        return self._stopped
