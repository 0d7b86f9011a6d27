"""A head node of Ray for tests of commands, with the environment that a user's terminal would have."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.deploy.local.cluster import Cluster

_ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Head:
    """A head node that asks for a token."""

    cluster: Cluster

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command that joins this Ray."""
        return self.cluster.environment | {"RAY_ADDRESS": self.cluster.address}

    def ray(self, *arguments: str, cwd: Path = _ROOT, check: bool = True) -> str:
        """Run a `ray` command and return what it prints."""
        done = subprocess.run(
            self.cluster.ray(*arguments),
            env=self.cluster.environment,
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=500,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def submit(self, *arguments: str, check: bool = True) -> str:
        """Submit Python with these arguments as a job, in the project's folder, wait for its end, and return what it prints."""
        return self.ray("job", "submit", "--", "python", *arguments, check=check)
