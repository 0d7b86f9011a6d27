"""Servers in processes of their own, and an image to send to them."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proposals.image_codec import encode_jpeg
from tests.deconvnet.ensembles import random_image

PHOTO = encode_jpeg(random_image(0, 90, 120))
START_SECONDS = 200


@contextmanager
def started(log: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own, with its output in `log`; killed with its session at the end."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")} | environment
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=clean, cwd=log.parent, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=10).read()
            return
        except OSError:
            time.sleep(0.3)
