"""Builds both images on an engine of their own, runs them locked down, asks a question, and stops them mid-stream.

    make image-test, or: .venv/bin/python -m loadtests.containers.image_test [slim] [full]

It needs Debian and root, and: apt-get install docker.io debootstrap. Everything that it makes lies in ``image-build/``,
which may be deleted after it; of that, images and caches stay for the next time. Variables: REAL_IMAGES=1 to build on
the real base image instead of one made of Debian's packages, DEBIAN_MIRROR, and the build arguments BASE_IMAGE, MODELS,
DTYPES, EMBEDDED_FILE and TORCH_INDEX.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from loadtests.containers.engine import ContainerFault, DockerEngine, engine
from loadtests.containers.http_checks import LocalClient, check, wait_for
from loadtests.containers.stand_ins import make_stand_ins
from loadtests.peers.models import embedded_gguf
from loadtests.service import free_port

TARGETS = ("slim", "full")
_DRAIN_SECONDS = 30
_LOCKED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")  # noqa: S108
_ARGUMENTS = ("BASE_IMAGE", "MODELS", "DTYPES", "EMBEDDED_FILE", "TORCH_INDEX")


def main() -> int:
    """Test the targets that the command line names, by default both; return the exit status."""
    targets = sys.argv[1:] or list(TARGETS)
    try:
        with engine() as docker:
            make_stand_ins(docker, set())
            for target in targets:
                check(target in TARGETS, f"no target {target!r}: {', '.join(TARGETS)}")
                test(docker, target)
    except ContainerFault as fault:
        print(f"image-test: {fault}", file=sys.stderr)
        return 1
    return 0


def test(docker: DockerEngine, target: str) -> None:
    """Build and test one image."""
    image = f"warmstart:image-test-{target}"
    arguments = {name: os.environ[name] for name in _ARGUMENTS if os.environ.get(name)}
    seconds = docker.build(image, target=target, **arguments)
    size = int(docker.inspect(image)["Size"]) / 1e6
    packed = {name: compressed(docker, image, command) / 1e6 for name, command in COMPRESSORS.items()}
    sizes = f"{size:.0f} MB on disk, {packed['gzip']:.0f} MB as gzip, {packed['zstd']:.0f} MB as zstd"
    say(target, f"built in {seconds:.0f} s; {sizes}")
    container = f"image-test-{target}"
    try:
        run_and_ask(docker, image, container, target)
    finally:
        docker.docker("rm", "--force", container)
    other_weights(docker, image, target)


COMPRESSORS = {"gzip": ["gzip", "-c"], "zstd": ["zstd", "-q", "-3", "-c"]}


def compressed(docker: DockerEngine, image: str, command: list[str]) -> int:
    """Return the bytes of an image's archive behind a compressor."""
    size = 0
    with (
        subprocess.Popen([docker.program, "save", image], env=docker.environment, stdout=subprocess.PIPE) as save,
        subprocess.Popen(command, stdin=save.stdout, stdout=subprocess.PIPE) as packer,
    ):
        assert packer.stdout is not None
        while piece := packer.stdout.read(1 << 20):
            size += len(piece)
    check(save.returncode == 0 and packer.returncode == 0, f"{image} cannot be saved")
    return size


def run_and_ask(docker: DockerEngine, image: str, container: str, target: str) -> None:
    """Start the image as its user with nothing to write to, ask, and stop it in the middle of a stream."""
    client = LocalClient(port := free_port())
    started = time.monotonic()
    settings = ("-e", f"DRAIN_SECONDS={_DRAIN_SECONDS}", "--init", "-p", f"127.0.0.1:{port}:8000")
    docker.docker("run", "-d", "--name", container, *_LOCKED, *settings, image)
    times: dict[str, float] = {}
    for path in ("/livez", "/readyz"):
        client.wait(path)
        times[path] = time.monotonic() - started
    client.first_token()
    say(
        target,
        f"from `docker run` to /livez {times['/livez']:.1f} s, to /readyz {times['/readyz']:.1f} s, to the "
        f"first token {time.monotonic() - started:.1f} s",
    )
    client.ask()
    wait_for(lambda: health(docker, container) == "healthy", "its own health check does not pass", 60)
    check_locked(fields(Path(f"/proc/{docker.inspect(container)['State']['Pid']}/status").read_text()))
    configured = docker.inspect(image)["Config"]["Healthcheck"]["Test"]
    unhealthy = docker.attempt("exec", "-e", "PORT=1", container, *configured[1:])
    check(unhealthy.returncode != 0, "the health check passes without a service")
    check("packing" not in docker.logs(container), "it converted its model again")
    stop = threading.Thread(target=docker.docker, args=("stop", "-t", str(_DRAIN_SECONDS + 15), container))
    client.stream_over(stop.start)
    stop.join()
    state = docker.inspect(container)["State"]
    check(state["ExitCode"] == 0, f"it ended with status {state['ExitCode']}: {docker.logs(container)[-2000:]}")
    say(target, "it answered, changed nothing on its disk, and a stop let a stream end")


def health(docker: DockerEngine, container: str) -> str:
    """Return what the image's health check found."""
    return str(docker.inspect(container)["State"]["Health"]["Status"])


def fields(status: str) -> dict[str, list[str]]:
    """Return the fields of a ``/proc/PID/status``."""
    return {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}


def check_locked(status: Mapping[str, list[str]]) -> None:
    """Check that a process is of no privileged user, and has and can get no capability."""
    check("0" not in status["Uid"] + status["Gid"], "the process is root")
    check(status["NoNewPrivs"] == ["1"], "the process can get new privileges")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        check(int(status[name][0], 16) == 0, f"the process has capabilities ({name})")


def other_weights(docker: DockerEngine, image: str, target: str) -> None:
    """Check what else the image serves: a GGUF file, which only the full image runs in the reference engine.

    The embedded model's own file is in the image only with EMBEDDED_FILE=1; what would need it is refused by name.
    """
    file = ("-v", f"{embedded_gguf(Path(sys.executable))}:/model.gguf:ro", "-e", "MODEL_NAME=/model.gguf")
    done = generate(docker, image, *file, "-e", "DTYPE=int4")
    check(done.returncode == 0 and "Paris" in done.stdout, f"a GGUF file is not served: {done.stderr}")
    done = generate(docker, image, *file, "-e", "ENGINE=reference")
    if target == "full":
        check(done.returncode == 0 and "Paris" in done.stdout, f"the reference engine does not run: {done.stderr}")
    else:
        check(done.returncode != 0 and "use the full image" in done.stderr, f"ENGINE=reference: {done.stderr}")
    verdict = "runs" if target == "full" else "is refused by name"
    say(target, f"it converted and served a GGUF file; the reference engine {verdict}")
    done = generate(docker, image, "-e", "DTYPE=float32")
    if os.environ.get("EMBEDDED_FILE"):
        check(done.returncode == 0 and "Paris" in done.stdout, f"DTYPE=float32: {done.stderr}")
        say(target, "it converted and served the embedded model's file")
    elif not set(_ARGUMENTS) & set(os.environ):
        check(done.returncode != 0 and "EMBEDDED_FILE=1" in done.stderr, f"DTYPE=float32: {done.stderr}")
        say(target, "the embedded model in a type that the image does not hold is refused by name")


def generate(docker: DockerEngine, image: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Continue a text in a container of its own; return the status and what was printed."""
    command = ("warmstart", "generate", "The capital of France is", "--max-new-tokens", "4", "--temperature", "0")
    return docker.attempt("run", "--rm", *_LOCKED, *options, image, *command)


def say(target: str, text: str) -> None:
    """Print a line of the report."""
    print(f"image-test {target}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
