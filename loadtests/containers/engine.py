"""A Docker engine of its own, with its data below ``image-build/``, so that the machine's own engine stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.containers.pip_settings import pip_conf

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "image-build"
_START_SECONDS = 60
_STOP_SECONDS = 60
_NEEDED = {"dockerd": "docker.io", "debootstrap": "debootstrap"}


class ContainerFault(Exception):
    """What is tested does not behave as it should, or cannot be tested here; the message says what to do."""


@dataclass(frozen=True)
class DockerEngine:
    """A running engine.

    Args:
        program: Docker's command line.
        environment: the variables with which it and compose find the engine.
        pip_conf: pip's settings for builds.
    """

    program: str
    environment: Mapping[str, str]
    pip_conf: Path

    def docker(self, *arguments: str, seconds: float = 900) -> str:
        """Run a command of Docker's command line, and return what it printed.

        Raises:
            ContainerFault: it failed; the message has the end of what it printed.
        """
        return run([self.program, *arguments], environment=self.environment, seconds=seconds)

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Docker's command line that may fail, and return its status and what it printed."""
        command = [self.program, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def build(self, image: str, recipe: str = "Dockerfile", target: str = "", **arguments: str) -> float:
        """Build an image from the repository with BuildKit, and return how many seconds it took.

        Args:
            image: its name.
            recipe: the Dockerfile's path.
            target: the stage; the last one by default.
            arguments: build arguments.
        """
        started = time.monotonic()
        options = [option for name, value in arguments.items() for option in ("--build-arg", f"{name}={value}")]
        options += ["--target", target] if target else []
        secret = f"id=pip.conf,src={self.pip_conf}"
        # On the host's network, because an index may be this machine.
        command = ["build", "--network", "host", "--secret", secret, "-t", image, "-f", recipe, *options, "."]
        self.docker(*command, seconds=3600)
        return time.monotonic() - started

    def logs(self, container: str) -> str:
        """Return what a container has written on both of its outputs."""
        command = [self.program, "logs", container]
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
        )
        return done.stdout.decode()

    def inspect(self, thing: str) -> dict[str, Any]:
        """Return what the engine knows about a container or an image."""
        found: dict[str, Any] = json.loads(self.docker("inspect", thing))[0]
        return found


def run(
    command: list[str], *, environment: Mapping[str, str] | None = None, seconds: float = 900, cwd: Path = ROOT
) -> str:
    """Run a command to its end, and return what it printed on standard output.

    Raises:
        ContainerFault: it failed, or took longer than ``seconds``.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ContainerFault(f"{' '.join(command)} took longer than {seconds:.0f} s") from error
    if done.returncode:
        raise ContainerFault(f"{' '.join(command)} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return done.stdout


@contextmanager
def engine() -> Iterator[DockerEngine]:
    """Start an engine for the block. Images and the build's cache stay for the next time.

    Raises:
        ContainerFault: this machine lacks something; the message says what.
    """
    if os.geteuid() != 0:
        raise ContainerFault("must be root")
    if lacking := [package for program, package in _NEEDED.items() if shutil.which(program) is None]:
        raise ContainerFault(f"needs {' '.join(lacking)}: apt-get install {' '.join(lacking)}")
    WORK.mkdir(exist_ok=True)
    socket = WORK / "docker.sock"
    environment = os.environ | {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "1"}
    command = ["dockerd", "--host", f"unix://{socket}", "--data-root", str(WORK / "docker")]
    command += ["--exec-root", str(WORK / "exec"), "--pidfile", str(WORK / "dockerd.pid")]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the engine is stopped, too
    with (WORK / "dockerd.log").open("wb") as log, pip_conf(WORK / "pip.conf"):
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            started = DockerEngine(_program(environment), environment, WORK / "pip.conf")
            _wait(process, started)
            yield started
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)


def _wait(process: subprocess.Popen[bytes], started: DockerEngine) -> None:
    """Wait until the engine answers."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            started.docker("info")
            return
        except ContainerFault:
            if process.poll() is not None or time.monotonic() > end:
                log = (WORK / "dockerd.log").read_text()[-2000:]
                raise ContainerFault(f"the Docker engine does not start:\n{log}") from None
        time.sleep(0.2)


def _program(environment: Mapping[str, str]) -> str:
    """Return a Docker command line that can use BuildKit: since version 23 it needs a plugin, buildx, for that."""
    for program in dict.fromkeys(("/usr/bin/docker", shutil.which("docker") or "docker")):
        if shutil.which(program) is None:
            continue
        version = run([program, "--version"], environment=environment).split()[2]
        plugin = subprocess.run([program, "buildx", "version"], env=environment, capture_output=True, check=False)
        if int(version.partition(".")[0]) < 23 or plugin.returncode == 0:
            return program
    raise ContainerFault("docker has no buildx to build images with: apt-get install docker.io")
