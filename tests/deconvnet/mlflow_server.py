"""A real MLflow server for tests, at a port that is known before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.deploy.local.process import free_port
from infra.deploy.local.servers import mlflow_server

__all__ = ["free_port", "server"]


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """A real `mlflow server`, killed at the end with its workers."""
    with mlflow_server(folder, port) as started:
        yield started.url
        started.kill()
