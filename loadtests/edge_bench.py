"""Measures the cost of each middleware: a handler behind none, one, two ... and all of them, and bare FastAPI.

    .venv/bin/python -m loadtests.edge_bench --rounds 5

All servers run at the same time, and ``wrk`` (Debian's package) asks them one after the other in each round, so that
noise on the machine affects all of them alike; where there are two cores, servers have one and wrk the other. Every
request is signed with its own nonce before the measurement. Bare aiohttp and FastAPI (on uvicorn) get the same body
without the headers that the middlewares require, which is an advantage; "aiohttp, the same headers" gets them too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loadtests.load.http_answer import BadAnswer
from loadtests.service import ROOT, free_port
from runtime.signatures.client import Signer

CLIENTS = 8
MOST = 12_000  # requests signed in advance, per second; if one is sent twice, it is rejected and the run fails
AUTHORITY = "api.example"
BODY = json.dumps({"prompt": "Once upon a time there was a small machine", "max_new_tokens": 8}).encode()
FASTAPI = """
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    prompt: str
    max_new_tokens: int = 16


app = FastAPI()


@app.post("/generate")
async def answer(body: Body):
    return {"characters": len(body.prompt)}
"""
# wrk sends the string that request() returns unchanged. In the file, NUL bytes separate the requests, which have none.
SCRIPT = """
local requests, i = {}, 0
function init(args)
  local file = io.open(args[1], "rb")
  for one in file:read("*a"):gmatch("([^%z]+)") do requests[#requests + 1] = one end
  file:close()
end
function request()
  i = i + 1
  return requests[(i - 1) % #requests + 1]
end
"""


@dataclass(frozen=True)
class Side:
    """One server, a row of the table.

    Args:
        name: the name in the table.
        port: the server's port.
        signed: whether it gets the headers that the middlewares require.
    """

    name: str
    port: int
    signed: bool


class Requests:
    """Creates complete raw requests.

    Args:
        keys: the key file of the service, to which new keys are added.
    """

    def __init__(self, keys: Path) -> None:
        self._key = make_key(keys, "key")
        signing, secret = make_key(keys, "secret", "--signing")
        self._signer = Signer(signing, secret, seconds=300)

    def plain(self) -> bytes:
        """Return a request without credentials."""
        return self._raw({})

    def signed(self) -> bytes:
        """Return a request with an API key, its own signature and the headers that a proxy adds."""
        url = f"http://{AUTHORITY}/generate"
        credentials = {"X-API-Key": self._key[1], "X-Forwarded-For": "192.168.7.20", "X-Forwarded-Proto": "https"}
        return self._raw(credentials | self._signer.headers("POST", url, BODY))

    def _raw(self, more: dict[str, str]) -> bytes:
        headers = {"Host": AUTHORITY, "Content-Type": "application/json", "Content-Length": str(len(BODY))} | more
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST /generate HTTP/1.1\r\n{lines}\r\n".encode() + BODY


def make_key(file: Path, field: str, *options: str) -> tuple[str, str]:
    """Create a key, and return its id and its secret part."""
    program = "import sys, server; sys.exit(server.main(sys.argv[1:]))"
    command = ["keys", "create", "--name", "edge_bench", "--json", "--file", str(file), *options]
    run = subprocess.run([sys.executable, "-c", program, *command], cwd=ROOT, check=True, capture_output=True)
    made = json.loads(run.stdout)
    return made["id"], made[field]


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="What each middleware costs, beside bare FastAPI on uvicorn.")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many are printed")
    parser.add_argument("--seconds", type=int, default=2, help="that each server is asked in a round")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("edge_bench: there is no wrk; install it: apt-get install wrk")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = folder / "keys.jsonl"
        requests = Requests(keys)
        sides = stack.enter_context(servers(folder, keys))
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        (folder / "wrk.lua").write_text(SCRIPT)
        (folder / "plain").write_bytes(requests.plain())
        for _ in range(options.rounds):
            # Each server has its own memory of nonces, so all get the same requests.
            (folder / "signed").write_bytes(b"\0".join(requests.signed() for _ in range(MOST * options.seconds)))
            for side in sides:
                rates[side.name].append(rate(side, folder, options.seconds))
    if options.json:
        print(json.dumps(rates))
    else:
        print(table(rates))


@contextmanager
def servers(folder: Path, keys: Path) -> Iterator[list[Side]]:
    """Start all servers; yield them once they answer: FastAPI, bare aiohttp, then one per further middleware."""
    everything = {
        "LOG_FORMAT": "json",
        "API_KEYS_FILE": str(keys),
        "REQUEST_SIGNING": "required",
        "SIGNING_AUTHORITY": AUTHORITY,
        "RATE_LIMIT_ENABLED": "true",
        "RATE_LIMIT_REQUESTS_PER_MINUTE": "10000000",
        "RATE_LIMIT_TOKENS_PER_MINUTE": "1000000000",
        "RATE_LIMIT_CONCURRENCY": "1000",
        "AUDIT_KEY": "a secret of the benchmark, 32 characters",
        "TRUSTED_PROXIES": "127.0.0.1",
        "FORWARDED_ORIGIN": "true",
    }
    (folder / "fastapi_app.py").write_text(FASTAPI)
    uvicorn = [str(ROOT / ".venv-load/bin/uvicorn"), "fastapi_app:app", "--app-dir", str(folder)]
    ours = [sys.executable, "-m", "loadtests.edge_server"]
    with ExitStack() as stack:

        def start(name: str, command: list[str], *, signed: bool, port: int) -> Side:
            environment = os.environ | everything | {"AUDIT_LOG": str(folder / f"{port}.jsonl")}
            log = stack.enter_context((folder / f"{port}.log").open("wb"))
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, preexec_fn=lambda: pin(0)
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    return Side(name, port, signed)
                if process.poll() is not None:
                    raise RuntimeError(f"{name} has ended:\n{(folder / f'{port}.log').read_text()[-2000:]}")
                time.sleep(0.01)

        port = free_port()
        quiet = ["--no-access-log", "--log-level", "warning"]
        sides = [start("FastAPI, uvicorn", [*uvicorn, "--port", str(port), *quiet], signed=False, port=port)]
        for name, signed in (("aiohttp", False), ("aiohttp, the same headers", True)):
            port = free_port()
            sides.append(start(name, [*ours, str(port), "-1"], signed=signed, port=port))
        names = middlewares(everything | {"AUDIT_LOG": str(folder / "none.jsonl")})
        for count, name in enumerate(["connection limits", *names, "headers of the answer"]):
            port = free_port()
            sides.append(start(f"+ {name}", [*ours, str(port), str(count)], signed=True, port=port))
        yield sides


def middlewares(settings: dict[str, str]) -> list[str]:
    """Return the names of the middlewares that these settings turn on, outermost first."""
    program = "from loadtests.edge_server import names; print(*names(), sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    return run.stdout.split()


def rate(side: Side, folder: Path, seconds: int) -> float:
    """Return requests per second.

    Raises:
        BadAnswer: an answer was not 2xx, or a connection failed.
    """
    requests = folder / ("signed" if side.signed else "plain")
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "-s", str(folder / "wrk.lua")]
    run = subprocess.run(
        [*command, f"http://127.0.0.1:{side.port}/generate", "--", str(requests)],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: pin(-1),
    )
    found = re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)
    if found is None or "Non-2xx" in run.stdout or "Socket errors" in run.stdout:
        raise BadAnswer(f"{side.name}:\n{run.stdout}{run.stderr}")
    return float(found[1])


def pin(core: int) -> None:
    """Pin the process to the first or the last core that it may use, where the system supports that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


def table(rates: dict[str, list[float]]) -> str:
    """Return the medians as a Markdown table."""
    middle = {name: statistics.median(found) for name, found in rates.items()}
    fastapi = middle["FastAPI, uvicorn"]
    lines = [
        "| behind | requests/s | us a request | of which this one | times FastAPI |",
        "|---|---:|---:|---:|---:|",
    ]
    before: float | None = None
    for name, found in middle.items():
        took = 1e6 / found
        added = f"{took - before:+.1f}" if before is not None and name.startswith("+") else ""
        lines.append(f"| {name} | {found:,.0f} | {took:.1f} | {added} | {found / fastapi:.2f} |")
        before = took
    return "\n".join(lines)


if __name__ == "__main__":
    main()
