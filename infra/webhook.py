"""Send messages to a webhook: a URL at which a chat program, such as Slack, takes messages.

Anyone who knows such a URL can post, so it is a secret: log messages contain only its host name.
"""

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import requests

from infra.errors import UserError
from infra.redaction import without_secrets
from infra.settings import NotifySettings, check_webhook_url

URL_VARIABLE = "DECONVNET_NOTIFY_URL"
"""Environment variable with the URL, if the settings have none."""
_MAX_TEXT = 3000  # characters; escaping makes them up to five times as many, and Slack cuts messages of more than 40,000
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # so that no text becomes a mention, such as <!channel>

logger = logging.getLogger(__name__)


class Webhook:
    """A webhook that messages are sent to. Without a URL, messages are dropped."""

    def __init__(self, url: str | None, seconds: float = 10.0) -> None:
        """Create the webhook. Nothing is sent yet.

        Args:
            url: its URL. None to send nothing.
            seconds: how long a message may take. The caller never waits longer, whatever the server does.
        """
        self._url, self._seconds = url, seconds

    def send(self, text: str) -> None:
        """Send a message. No error is raised: if the message is not accepted in time, it is lost, and a warning is logged.

        Args:
            text: the message. Secrets in URIs are removed from it.
        """
        if self._url is None:
            return
        if problem := run_with_timeout(self._seconds, partial(self._post, text)):
            logger.warning(f"a message was not delivered to the webhook at {urlsplit(self._url).hostname}: {problem}")

    def _post(self, text: str) -> str:
        """Post a message. Return what went wrong, without the URL, or "" if nothing did."""
        message = without_secrets(text)[:_MAX_TEXT].translate(_ESCAPES)
        try:
            # Redirections are refused: they would turn the POST into a GET, which may succeed without delivering the message.
            with requests.post(
                self._url or "", json={"text": message}, timeout=self._seconds, allow_redirects=False, stream=True
            ) as reply:
                return "" if 200 <= reply.status_code < 300 else f"HTTP status {reply.status_code}"
        except Exception as error:  # its text contains the URL, so only its type is reported
            return type(error).__name__


def run_with_timeout(seconds: float, work: Callable[[], str]) -> str:
    """Run a function in a thread with a timeout.

    HTTP libraries limit the time of each read, but neither the time of all reads nor the time to look up a host name.

    Args:
        seconds: longest time to wait.
        work: the function. It returns what went wrong, or "" if nothing did. It must not raise errors.

    Returns:
        The text that `work` returned, or a text that says that there was no answer.
    """
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(work()), name="delivery", daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"there was no answer within {seconds:g} s"


def open_webhook(settings: NotifySettings) -> Webhook:
    """Return the webhook that the settings name, else the environment variable DECONVNET_NOTIFY_URL, else one that sends nothing.

    Raises:
        UserError: if the variable's value is not a URL.
    """
    if settings.url is not None:
        return Webhook(settings.url.get_secret_value())
    url = os.environ.get(URL_VARIABLE)
    try:
        return Webhook(check_webhook_url(url) if url else None)
    except ValueError as error:
        raise UserError(f"the environment variable {URL_VARIABLE} is not allowed: {error}") from None
