"""The project of ``docker-compose.yml`` on an engine: running commands of compose, and removing all that they made."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtests.containers.engine import ContainerFault, DockerEngine, run
from loadtests.containers.http_checks import LocalClient
from loadtests.service import free_port

_PROGRAM = str(Path(sys.executable).with_name("docker-compose"))


@dataclass
class Compose:
    """The compose file on an engine.

    Args:
        engine: the engine.
        ports: published ports by service.
        left_out: services without an image.
    """

    engine: DockerEngine
    ports: dict[str, int]
    left_out: list[str] = field(default_factory=list)

    def run(self, *arguments: str, seconds: float = 600) -> str:
        """Run a command of compose, and return what it printed."""
        return run([_PROGRAM, *arguments], environment=self.engine.environment, seconds=seconds)

    def shell(self, script: str) -> str:
        """Run printed commands of ``docker compose`` and ``docker``, and return what they printed."""
        here = script.replace("docker compose", _PROGRAM).replace("docker ", f"{self.engine.program} ")
        return run(["bash", "-euc", here], environment=self.engine.environment, seconds=600)

    def up(self, *services: str, profile: str = "") -> None:
        """Start services and wait until they are healthy."""
        options = ("--profile", profile) if profile else ()
        self.run(*options, "up", "--detach", "--wait", "--no-build", *services)

    def container(self, service: str) -> str:
        """Return the id of a service's only container."""
        return self.run("--profile", "*", "ps", "--all", "--quiet", service).split()[0]

    def state(self, service: str) -> dict[str, Any]:
        """Return the state of a service's container."""
        state: dict[str, Any] = self.engine.inspect(self.container(service))["State"]
        return state

    @property
    def client(self) -> LocalClient:
        """A client of nginx."""
        return LocalClient(self.ports["nginx"])


@contextmanager
def project(docker: DockerEngine) -> Iterator[Compose]:
    """Give the compose file free ports and a project of its own, and remove all that it made afterwards."""
    ports = {name: free_port() for name in ("nginx", "prometheus", "grafana", "nats")}
    published = {
        "PUBLISH": ports["nginx"],
        "PUBLISH_PROMETHEUS": ports["prometheus"],
        "PUBLISH_GRAFANA": ports["grafana"],
        "PUBLISH_NATS": ports["nats"],
    }
    settings = {name: f"127.0.0.1:{port}" for name, port in published.items()}
    # A load that ends soon, and streams that last long enough to be stopped.
    settings |= {"COMPOSE_PROJECT_NAME": "compose-test", "SCENARIO": "smoke", "COMPOSE_PROGRESS": "plain"}
    compose = Compose(replace(docker, environment={**docker.environment, **settings}), ports)
    down = ("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")
    compose.run(*down)  # what an earlier run that was killed has left
    try:
        yield compose
    except (ContainerFault, OSError, http.client.HTTPException):
        print(compose.run("--profile", "*", "logs", "--tail", "15"), file=sys.stderr)
        raise
    finally:
        compose.run(*down)
