"""Brings up the services of ``docker-compose.yml`` on an engine of its own, profile by profile, and tests them.

    make compose-test, or: .venv/bin/python -m loadtests.containers.compose_test [STEP ...]

It needs Debian and root, and: apt-get install docker.io debootstrap. Everything that it makes lies in ``image-build/``,
which may be deleted after it; of that, images and caches stay for the next time. The images that are not built here are
made of Debian's packages (``stand_ins``). Grafana has no such package: without REAL_IMAGES=1 it is left out, which is
printed. Images are built as the compose file says, but by ``docker build``, to which this machine's settings of pip
can be passed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from loadtests.containers.compose_project import Compose, project
from loadtests.containers.engine import ROOT, WORK, ContainerFault, engine
from loadtests.containers.http_checks import LocalClient, check, wait_for
from loadtests.containers.image_test import check_locked, fields
from loadtests.containers.stand_ins import make_stand_ins
from loadtests.peers.models import embedded_gguf

_MEMORY = {"warmstart": "2g", "nginx": "128m", "prometheus": "512m", "worker": "2g", "nats": "512m"}
_UNITS = {"m": 1 << 20, "g": 1 << 30}
_LEFT_OUT_VERB = "has no stand-in and is NOT TESTED; REAL_IMAGES=1 takes the real one"


def main() -> int:
    """Run the steps that the command line names beside the first two, by default all; return the exit status."""
    chosen = [step for step in STEPS if len(sys.argv) == 1 or step in STEPS[:2] or step.__name__ in sys.argv[1:]]
    started = time.monotonic()
    try:
        with engine() as docker, project(docker) as compose:
            for step in chosen:
                timed(step, compose)
    except (ContainerFault, OSError, http.client.HTTPException) as fault:
        print(f"compose-test: {fault!r}", file=sys.stderr)
        return 1
    print(f"compose-test: {len(chosen)} steps passed in {time.monotonic() - started:.0f} s")
    return 0


def timed(step: Callable[[Compose], None], compose: Compose) -> None:
    """Run a step, and print how long it took."""
    started = time.monotonic()
    step(compose)
    text = (step.__doc__ or "").partition("\n")[0]
    print(f"compose-test: {time.monotonic() - started:6.1f} s  {text}", flush=True)


def build(compose: Compose) -> None:
    """Every image is built as the compose file says; the others are there."""
    found = json.loads(compose.run("--profile", "*", "config", "--format", "json"))["services"]
    recipes = {service["image"]: service["build"] for service in found.values() if "build" in service}
    left_out = make_stand_ins(compose.engine, {s["image"] for s in found.values()} - recipes.keys())
    compose.left_out = [name for name, service in found.items() if service["image"] in left_out]
    for name in compose.left_out:
        print(f"compose-test: {name} ({found[name]['image']}) {_LEFT_OUT_VERB}", flush=True)
    for image, recipe in recipes.items():
        seconds = compose.engine.build(image, recipe["dockerfile"], recipe.get("target", ""), **recipe.get("args", {}))
        print(f"compose-test: {image} was built in {seconds:.0f} s", flush=True)
    compose.engine.build("warmstart-events", "deploy/lambda/Dockerfile", "events", IMAGE="warmstart:latest")


def start(compose: Compose) -> None:
    """The default services start, nginx after the service is healthy, and a question through nginx is answered."""
    everything = compose.run("config", "--services").split()
    before = int(time.time())
    compose.up(*(name for name in everything if name not in compose.left_out))
    found = compose.engine.docker("events", "--since", str(before), "--until", str(int(time.time()) + 1))
    events = [line for line in found.splitlines() if " container " in line]
    order = [
        next((place for place, line in enumerate(events) if event in line and f"compose.service={name}" in line), -1)
        for event, name in (("health_status: healthy", "warmstart"), ("container start", "nginx"))
    ]
    check(0 <= order[0] < order[1], "nginx did not wait until the service was healthy")
    compose.client.ask()


def locked(compose: Compose) -> None:
    """Every running container has a read-only root, no capability, no way to new privileges, and its memory limit."""
    services = compose.run("--profile", "*", "ps", "--services").split()
    check({"warmstart", "nginx", "prometheus"} <= set(services), f"only {services} run")
    for service in services:
        container = compose.container(service)
        found = compose.engine.inspect(container)
        host = found["HostConfig"]
        check(host["ReadonlyRootfs"], f"{service}: its root can be written")
        amount, unit = re.findall(r"(\d+)(\w)", _MEMORY[service])[0]
        check(host["Memory"] == int(amount) * _UNITS[unit], f"{service}: its memory limit is {host['Memory']}")
        limit = compose.engine.docker("exec", container, "cat", _limit_file())
        check(limit.split()[0] == str(host["Memory"]), f"{service}: the kernel's limit is {limit}")
        written = compose.engine.attempt("exec", container, "touch", "/etc/x")
        check("Read-only file system" in written.stderr, f"{service}: {written.stderr}")
        status = Path(f"/proc/{found['State']['Pid']}/status").read_text()
        if service == "nats":  # root of no capabilities
            status = re.sub(r"^([UG]id:).*$", r"\1 65534", status, flags=re.MULTILINE)
        check_locked(fields(status))


def _limit_file() -> str:
    """Return the file of a container's memory limit, of cgroup v2 or v1."""
    two = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return "/sys/fs/cgroup/memory.max" if two else "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def outside(compose: Compose) -> None:
    """The service reaches nothing on the network with a way out; Prometheus scrapes it, and has its rules."""
    networks = compose.engine.inspect(compose.container("nginx"))["NetworkSettings"]["Networks"]
    container = compose.container("warmstart")
    for network, reached in (("edge", True), ("outside", False)):
        address = next(found["IPAddress"] for name, found in networks.items() if name.endswith(f"_{network}"))
        connect = f"import socket; socket.create_connection(('{address}', 80), 5)"
        done = compose.engine.attempt("exec", container, "python", "-c", connect)
        check((done.returncode == 0) is reached, f"to nginx on {network} from the service: {done.stderr[-200:]}")
    prometheus = LocalClient(compose.ports["prometheus"])

    def scraped() -> bool:
        with prometheus.open("/api/v1/query?query=up%7Bjob%3D%22warmstart%22%7D") as response:
            found = json.load(response)["data"]["result"]
        return [series["value"][1] for series in found] == ["1"]

    wait_for(scraped, "Prometheus does not scrape the service", 60)
    with prometheus.open("/api/v1/rules") as response:
        check(json.load(response)["data"]["groups"], "Prometheus has no rules")


def killed(compose: Compose) -> None:
    """A container that is killed is started again: the service (nginx says 503 meanwhile), nginx, Prometheus."""
    kill(compose, "warmstart", lambda: compose.client.status("/readyz") == 503)
    kill(compose, "nginx")
    kill(compose, "prometheus")
    compose.client.wait("/readyz")
    compose.client.ask()


def kill(compose: Compose, service: str, meanwhile: Callable[[], bool] = lambda: True) -> None:
    """Kill a service's process, and wait until the engine has started it again and it is healthy.

    Args:
        compose: the compose file.
        service: the service.
        meanwhile: what has to hold at some moment in between.
    """
    container = compose.container(service)
    before = compose.state(service)["Pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(meanwhile, f"{service} is killed and nothing shows it", 20)

    def again() -> bool:
        state = compose.engine.inspect(container)["State"]
        return state["Pid"] not in (0, before) and state["Health"]["Status"] == "healthy"

    wait_for(again, f"{service} is not started again")


def restarted(compose: Compose) -> None:
    """After a restart of each container nginx finds the service again."""
    for service in ("warmstart", "nginx"):
        compose.run("restart", service)
        compose.client.wait("/readyz")
        compose.client.ask()


def drained(compose: Compose) -> None:
    """A stop of everything lets a stream end, each container ends with status 0, and all of them start again."""
    stop = threading.Thread(target=compose.run, args=("stop",))
    compose.client.stream_over(stop.start)
    stop.join()
    for service in ("warmstart", "nginx", "prometheus"):
        state = compose.state(service)
        check(state["ExitCode"] == 0, f"{service} ended with status {state['ExitCode']}")
    start(compose)


def worker(compose: Compose) -> None:
    """Profile events: a request over NATS is answered, also after the worker and NATS were killed."""
    compose.up("nats", "worker", profile="events")
    locked(compose)
    submit(compose)
    for service in ("worker", "nats"):
        kill(compose, service)
        submit(compose)
    compose.run("--profile", "events", "stop", "worker", "nats")
    check(
        compose.state("worker")["ExitCode"] == 0, f"the worker ended with status {compose.state('worker')['ExitCode']}"
    )


def submit(compose: Compose) -> None:
    """Send a request over NATS from within a container, and check its answer."""
    payload = json.dumps({"prompt": "The capital of France is", "max_new_tokens": 8, "temperature": 0})
    command = ("exec", "-T", "warmstart", "warmstart", "submit", "nats://nats:4222", "generate", payload)
    printed = compose.run(*command, seconds=120)
    check("Paris" in printed, f"the answer over NATS is {printed}")


def load(compose: Compose) -> None:
    """Profile load: Locust's master and two workers make a report, as docs/load.md says."""
    page = (ROOT / "docs/load.md").read_text()
    first, then = re.findall(r"^(docker compose --profile load run.*?)\s*#.*\n(.*)$", page, re.MULTILINE)[0]
    report = WORK / "report"
    shutil.rmtree(report, ignore_errors=True)
    # 1 and 3 are limits that a busy machine breaks; here it matters that there is a report.
    compose.shell(f"{first.replace('--build ', '')} || case $? in 1|3) ;; *) exit 1;; esac")
    compose.shell(then.replace("cp load:/reports report", f"cp load:/reports {report}"))
    made = {path.suffix for path in report.rglob("*") if path.is_file()}
    check({".html", ".json", ".csv"} <= made, f"the load made {made}")
    workers = compose.run("--profile", "load", "ps", "--all", "--quiet", "load-worker").split()
    check(len(workers) == 2, f"{len(workers)} workers ran")


def pull(compose: Compose) -> None:
    """Profile pull: a model is converted into the volume, where the service has it; the image's own needs nothing."""
    compose.run("run", "--rm", "--no-deps", "pull", "smollm2-135m-instruct", seconds=300)
    listing = ("exec", "-T", "warmstart", "find", "/var/lib/warmstart/converted", "-name", "weights.bin")
    check(not compose.run(*listing).split(), "the image's own model is in the volume, too")
    file = ("--volume", f"{embedded_gguf(Path(sys.executable))}:/pulled.gguf:ro")
    compose.run("run", "--rm", "--no-deps", *file, "pull", "/pulled.gguf", seconds=300)
    check("/pulled-" in compose.run(*listing), "what was pulled is not in the volume")


STEPS = (build, start, locked, outside, killed, restarted, drained, worker, load, pull)


if __name__ == "__main__":
    sys.exit(main())
