"""Messages between a driver and its training run. A module of its own, so that the actor's process imports no torch."""

from typing import Any


class ReportQueue:
    """A Ray actor between driver and run: the run puts reports, the driver takes them; the driver requests a stop, the run checks.

    Messages are dictionaries of JSON values.
    """

    def __init__(self) -> None:
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
