"""The recipe of the images for AWS Lambda, as far as it can be checked without building it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import aiohttp
import pytest

from runtime.settings import Settings
from tests.support.fakes import serving

ROOT = Path(__file__).parents[2]
# Of the adapter 0.9.1: its README, "Configurations".
ADAPTER = {
    "AWS_LWA_ASYNC_INIT",
    "AWS_LWA_ERROR_STATUS_CODES",
    "AWS_LWA_INVOKE_MODE",
    "AWS_LWA_PASS_THROUGH_PATH",
    "AWS_LWA_PORT",
    "AWS_LWA_READINESS_CHECK_PATH",
}


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """(INSTRUCTION, rest) of each stage by its name; "" holds what stands before any FROM."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "deploy/lambda/Dockerfile").read_text(), flags=re.MULTILINE)
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            current = rest.partition(" AS ")[2]
            stages[current] = []
        if instruction:
            stages[current].append((instruction, rest))
    return stages


def _environment(stages: dict[str, list[tuple[str, str]]], *names: str) -> dict[str, str]:
    lines = [rest for name in names for instruction, rest in stages[name] if instruction == "ENV"]
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(lines)))


def test_it_shares_the_services_layers(stages: dict[str, list[tuple[str, str]]]) -> None:
    """Both stand on the service's image as it is, and bring no registry's name of their own."""
    assert ("ARG", "IMAGE=warmstart:latest") in stages[""]
    assert stages["base"][0] == ("FROM", "${IMAGE} AS base")
    assert stages["events"][0] == ("FROM", "base AS events")
    assert stages["http"][0] == ("FROM", "base AS http")
    assert all("/" not in rest for instruction, rest in stages[""] if instruction == "ARG")


def test_settings_are_known_and_good(stages: dict[str, list[tuple[str, str]]]) -> None:
    """Each variable is a setting with a valid value, or one of the adapter's, or the home that can be written to."""
    for image in ("events", "http"):
        environment = _environment(stages, "base", image)
        assert environment.pop("HOME") == "/tmp"
        ours = {name.lower(): value for name, value in environment.items() if not name.startswith("AWS_LWA_")}
        assert ours.keys() <= Settings.model_fields.keys()
        settings = Settings.load(**ours)
        assert settings.idempotency == "memory"  # a file could not be written
        assert {name for name in environment if name.startswith("AWS_LWA_")} <= ADAPTER


def test_the_events_image_starts_the_handler(stages: dict[str, list[tuple[str, str]]]) -> None:
    """Of the package that the extra installs, not as root, and the module is there."""
    found = dict(stages["events"])
    assert json.loads(found["ENTRYPOINT"]) == ["python", "-m", "awslambdaric"]
    (handler,) = json.loads(found["CMD"])
    module, _, name = handler.rpartition(".")
    assert name == "handler"
    assert "handler" in (importlib.import_module(module).__doc__ or "")
    assert found["USER"] == "10001:10001"
    assert "-r /tmp/requirements/lambda.txt" in found["RUN"]
    assert "awslambdaric==" in (ROOT / "requirements/lambda.txt").read_text()


async def test_the_http_image_is_closed_until_somebody_is_let_in(stages: dict[str, list[tuple[str, str]]]) -> None:
    """Behind the adapter everyone comes from 127.0.0.1: clients are known by what it says, and its own check passes."""
    assert ("COPY", "--from=adapter /lambda-adapter /opt/extensions/lambda-adapter") in stages["http"]
    environment = _environment(stages, "http")
    ours = {name.lower(): value for name, value in environment.items() if name.lower() in Settings.model_fields}
    async with serving(**ours) as url, aiohttp.ClientSession(url) as http:
        ready = environment["AWS_LWA_READINESS_CHECK_PATH"]
        assert (await http.get(ready)).status == 200
        stranger = {"X-Forwarded-For": "198.51.100.24"}
        assert (await http.get("/v1/models", headers=stranger)).status == 403
        assert (await http.get("/v1/models", headers={"X-Forwarded-For": "10.1.2.3"})).status == 200
    async with (
        serving(**ours | {"allowed_ips": "127.0.0.1 198.51.100.0/24"}) as url,
        aiohttp.ClientSession(url) as http,
    ):
        assert (await http.get("/v1/models", headers=stranger)).status == 200


async def test_messages_that_come_to_the_http_image_fail(stages: dict[str, list[tuple[str, str]]]) -> None:
    """What the adapter is told to send them to answers what it is told to fail on: Lambda deletes nothing."""
    environment = _environment(stages, "http")
    async with serving() as url, aiohttp.ClientSession(url) as http:
        response = await http.post(environment["AWS_LWA_PASS_THROUGH_PATH"], json={"Records": []})
        assert str(response.status) == environment["AWS_LWA_ERROR_STATUS_CODES"]
