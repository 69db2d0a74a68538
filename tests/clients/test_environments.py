"""Real clients against the real service with the embedded model, each in an environment of its own (``make soak``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.environments import make_once
from loadtests.ray_cluster import running_cluster
from loadtests.service import ROOT, running_service
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.clients.client_table import CLIENTS, Client
from tests.support.minilm import NAME, minilm_folder
from tests.support.soak import SOAK

REASON = "installs real clients; run them with: SOAK=1 pytest tests/clients"
SCRIPTS = Path(__file__).parent / "environments"
MODEL = "smollm2-135m-instruct"
SETTINGS = {"MODEL_NAME": MODEL, "RESPONSE_CACHE": "off"}
ON_RAY = [client for client in CLIENTS if client.name in ("langchain", "litellm", "pydantic_ai")]


def test_table_of_the_documentation() -> None:
    """docs/clients.md has each client with its version, its number of cases, and what fails for which reason."""
    page = (ROOT / "docs/clients.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| ")][1:] == [client.row for client in CLIENTS]


def test_each_script_is_of_a_client() -> None:
    """No script is left out, and pinned packages have versions."""
    scripts = {f"{client.name}_cases.{'mjs' if client.node else 'py'}" for client in CLIENTS}
    assert {path.name for path in SCRIPTS.glob("*_cases.*")} == scripts
    assert all("==" in package or "@" in package[1:] for client in CLIENTS for package in client.packages)


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, str]]:
    """The addresses of a service that needs no key, and of one that does, in the environment of the scripts."""
    embedder = {"MODELS": str(minilm_folder()), "MODEL_ALIASES": f"{NAME}=model"}
    record = KeyRecord(Caller("k", "test", frozenset({"*"})), 0, None, digest=digest(new_key()))
    with (
        running_service(**SETTINGS, **embedder) as service,
        running_service(**SETTINGS, **embedder, API_KEYS=record.line()) as with_keys,
    ):
        service.wait("/readyz")
        with_keys.wait("/livez")
        yield {
            "WARMSTART_URL": service.url,
            "WARMSTART_URL_WITH_KEYS": with_keys.url,
            "WARMSTART_MODEL": MODEL,
            "WARMSTART_EMBEDDER": NAME,
        }


@pytest.fixture(scope="module")
def ray_services(services: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same, with the application of Ray Serve instead of the service that needs no key."""
    embedder = {"MODELS": str(minilm_folder()), "MODEL_ALIASES": f"{NAME}=model"}
    with running_cluster({"replicas": 1, "settings": SETTINGS | embedder}) as cluster:
        yield services | {"WARMSTART_URL": cluster.url}


def _environment(client: Client) -> list[str]:
    """Install a client's packages, unless they are, and return the command that runs its script."""
    folder = ROOT / "build/clients" / client.folder

    def install() -> None:
        if client.node:
            (folder / "package.json").write_text('{"private": true, "type": "module"}')
            _install("npm", "install", "--no-audit", "--no-fund", *client.packages, cwd=folder)
        else:
            _install(sys.executable, "-m", "venv", str(folder))
            pip = [f"{folder}/bin/pip", "install", "--disable-pip-version-check", "--quiet"]
            _install(*pip, *client.packages, cwd=folder)

    make_once(folder, install)
    if not client.node:
        return [f"{folder}/bin/python", str(SCRIPTS / f"{client.name}_cases.py")]
    for script in (f"{client.name}_cases.mjs", "cases.mjs"):  # Node looks for packages beside the script
        shutil.copy(SCRIPTS / script, folder)
    return ["node", str(folder / f"{client.name}_cases.mjs")]


def _install(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.skipif(not SOAK, reason=REASON)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
def test_client(client: Client, services: dict[str, str], tmp_path: Path) -> None:
    """All of a client's cases pass but those that the table names."""
    _check(client, services, tmp_path)


@pytest.mark.skipif(not SOAK, reason=REASON)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("client", ON_RAY, ids=[client.name for client in ON_RAY])
def test_client_on_ray(client: Client, ray_services: dict[str, str], tmp_path: Path) -> None:
    """The same cases pass through Ray Serve."""
    _check(client, ray_services, tmp_path)


def _check(client: Client, services: dict[str, str], tmp_path: Path) -> None:
    if client.node and shutil.which("npm") is None:
        pytest.skip("needs Node 20 and npm")
    command = _environment(client)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path), **services},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    results: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case":')
    ]
    failed = {result["case"]: result["error"] for result in results if result["error"]}
    assert (done.returncode, len(results)) == (0, client.cases), done.stderr[-3000:]
    assert failed.keys() == client.failing.keys(), "\n".join(failed.values())
