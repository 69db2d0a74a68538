"""The deployments of docs/access-control.md, run as printed but for ports, certificates and names to resolve."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from loadtests.service import free_port
from tests.support.docs_reader import write_command
from tests.support.models import ROOT
from tests.support.nginx import needs_nginx, nginx

PAGE = (ROOT / "docs/access-control.md").read_text()
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl; install it: apt-get install curl")


def blocks(name: str) -> list[str]:
    """The fenced blocks of a deployment, in their order."""
    section = PAGE.partition(f"<!-- deployment: {name} -->")[2].partition("\n## ")[0]
    return re.findall(r"^```\w+\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@contextmanager
def deployed(folder: Path, script: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Run a block where ``make serve`` is this checkout's server: its URL, and what was printed before it started."""
    port = free_port()
    command = folder / ".venv/bin/warmstart"
    command.parent.mkdir(parents=True)
    write_command(command)
    printed = folder / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-ec", f"make() {{ exec {sys.executable} {ROOT}/server.py; }}\n{script}"],
            cwd=folder,
            # Lines of a shell without PYTHONUNBUFFERED come in the printed order, too.
            env={**os.environ, "PORT": str(port), "LOG_FORMAT": "json", "PYTHONUNBUFFERED": ""},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while status(f"{url}/readyz") != 200:
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < end, printed.read_text()
            time.sleep(0.1)
        yield url, printed.read_text
    finally:
        process.terminate()
        assert process.wait(45) == 0


def status(url: str, payload: Any = None, **headers: str) -> int:
    """The status of an answer; 0 for none."""
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def curl(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A printed curl command, with more options; the answer's status on the last line."""
    more = " ".join([*options, "-w '\\n%{http_code}'"])
    return subprocess.run(
        ["bash", "-c", re.sub(r"^curl ", f"curl {more} ", command)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.slow
@needs_curl
def test_open_on_the_loopback(tmp_path: Path) -> None:
    """This address may call without a key, another one of the same host may not."""
    (script,) = blocks("loopback")
    with deployed(tmp_path, script) as (url, _):
        assert status(f"{url}/complete", {"prompt": "2 + 2 =", "max_new_tokens": 2}) == 200
        assert curl(f"curl -s {url}/models", "--interface 127.0.0.2").stdout.endswith("\n403")


@contextmanager
def before(folder: Path, server: str, upstream: str) -> Iterator[tuple[int, Path]]:
    """nginx with the page's server block before ``upstream``: its port, and the authority that signed for it."""
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("api.example")
    certificate.cert_chain_pems[0].write_to_path(folder / "api.example.pem")
    certificate.private_key_pem.write_to_path(folder / "api.example.key")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for printed, here in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/", f"{folder}/"),
        ("http://127.0.0.1:8000", upstream),
    ):
        assert printed in server
        server = server.replace(printed, here)
    scratch = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = f"pid {folder}/pid; error_log stderr; events {{}} http {{ {scratch} access_log off; {server} }}"
    with nginx(folder, configuration, port):
        yield port, folder / "ca.pem"


@pytest.mark.slow
@needs_curl
@needs_nginx
def test_behind_nginx_with_keys(tmp_path: Path) -> None:
    """The printed curl is answered with the printed key, over TLS, with limits, and recorded; nobody else gets in, a
    client's word on its address is thrown away, and a revoked key is none.
    """
    script, server, call = blocks("nginx")
    with deployed(tmp_path, script) as (url, printed), before(tmp_path, server, url) as (port, authority):
        key = printed().splitlines()[0]
        assert key.startswith("wsk_")
        options = (
            f"--cacert {authority}",
            f"--resolve api.example:{port}:127.0.0.1",
            "--retry 20 --retry-connrefused -i",
        )
        call = call.replace("https://api.example/", f"https://api.example:{port}/")
        answer = curl(call.replace("$KEY", key), *options, "-H 'X-Forwarded-For: 203.0.113.9'").stdout
        assert answer.endswith("\n200")
        assert "strict-transport-security" in answer.lower()
        assert 'ratelimit-policy: "requests";q=120;w=60, "tokens";q=20000' in answer.lower()
        assert curl(call.replace("$KEY", "wsk_wrong"), *options).stdout.endswith("\n401")
        assert status(f"{url}/v1/models") == 401  # past nginx neither
        assert status(f"{url}/livez") == 200
        records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        (record,) = [one for one in records if one.get("operation") == "chat" and one.get("status") == 200]
        assert (record["client"], record["key_name"]) == ("127.0.0.1", "alice")
        assert key not in (tmp_path / "audit.jsonl").read_text() + (tmp_path / "keys.jsonl").read_text()
        subprocess.run(
            [".venv/bin/warmstart", "keys", "revoke", "alice", "--file", "keys.jsonl"], cwd=tmp_path, check=True
        )
        end = time.monotonic() + 30
        while not curl(call.replace("$KEY", key), *options).stdout.endswith("\n401"):
            assert time.monotonic() < end
            time.sleep(0.2)
    verify = subprocess.run(
        [".venv/bin/warmstart", "audit", "verify", "audit.jsonl", "--key-file", "audit.key"], cwd=tmp_path, check=False
    )
    assert verify.returncode == 0


@pytest.mark.slow
@needs_curl
def test_signed_from_service_to_service(tmp_path: Path) -> None:
    """The printed program and the printed curl are answered, each once; what is not signed is not."""
    script, program, call = blocks("signed")
    with deployed(tmp_path, script.replace("HOST=0.0.0.0", "HOST=127.0.0.1")) as (url, printed):
        lines = printed().splitlines()
        secret = lines[0]
        (key_id,) = re.findall(r"\bk_\w+", lines[1])
        for there, here in (
            ("http://warmstart.internal:8000", url),
            ("auth=", 'headers={"host": "warmstart.internal:8000"}, auth='),  # instead of a name that resolves
            ('"k_..."', repr(key_id)),
            ('"the secret"', repr(secret)),
        ):
            assert there in program
            program = program.replace(there, here)
        run = subprocess.run(
            [sys.executable, "-c", f"{program}\nprint(answer.status_code)"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == ["200"], run.stdout
        sign = call.replace("SIGNING_SECRET=...", f"SIGNING_SECRET='{secret}'").replace("k_...", key_id)
        command = subprocess.run(["bash", "-c", sign], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        there = f"--connect-to warmstart.internal:8000:127.0.0.1:{url.rpartition(':')[2]}"
        assert "POST" in command
        assert curl(command.strip(), there).stdout.endswith("\n200")
        assert curl(command.strip(), there).stdout.endswith("\n401")  # a second time
        assert status(f"{url}/complete", {"prompt": "x"}) == 401
