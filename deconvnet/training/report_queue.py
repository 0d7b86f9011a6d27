"""What lies between a driver and its training run. A module of its own: its process then imports no torch."""

from typing import Any


class Relay:
    """An actor between the driver and the run: reports one way, the request to stop the other."""

    def __init__(self) -> None:
        self._told: list[dict[str, Any]] = []
        self._stop = False

    def tell(self, message: dict[str, Any]) -> None:
        """Keep a message for the driver."""
        self._told.append(message)

    def told(self) -> list[dict[str, Any]]:
        """What was told since the last time."""
        told, self._told = self._told, []
        return told

    def stop(self) -> None:
        """Ask the run to stop."""
        self._stop = True

    def stopped(self) -> bool:
        """True if it was asked to stop."""
        return self._stop
