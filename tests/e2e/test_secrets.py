"""Secrets stay secret: canaries are planted wherever one may be, and everything that is said is searched for them."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import secrets
import socket
import ssl
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from pydantic import SecretStr

import server
from loadtests.service import Service, free_port, running_service
from runtime.errors import SettingsError
from runtime.keys.records import new_key
from runtime.settings import Settings
from tests.runtime.audit.logs import written
from tests.support.models import ROOT

WARMSTART = [sys.executable, "-c", "import sys, server; sys.exit(server.main(sys.argv[1:]))"]


def forms(canary: bytes) -> dict[str, str]:
    """How a secret may look when it leaks, in lower case."""
    made = {
        "plain": canary.decode(),
        "hex": canary.hex(),
        "percent": "".join(f"%{byte:02x}" for byte in canary),
        "quoted": quote(canary, safe=""),
        "sha256 hex": sha256(canary).hexdigest(),
        "sha256 base64": base64.b64encode(sha256(canary).digest()).decode().rstrip("="),
        "sha256 base64url": base64.urlsafe_b64encode(sha256(canary).digest()).decode().rstrip("="),
        "reversed": canary.decode()[::-1],
    }
    for shift in range(3):  # in the middle of something longer, whole groups of it
        groups = canary[shift : len(canary) - (len(canary) - shift) % 3]
        made[f"base64 {shift}"] = base64.b64encode(groups).decode()
        made[f"base64url {shift}"] = base64.urlsafe_b64encode(groups).decode()
    return {name: text.lower() for name, text in made.items()}


class Canaries:
    """Secrets that nothing else looks like, by where they were planted."""

    def __init__(self) -> None:
        self.planted: dict[str, bytes] = {}

    def plant(self, where: str, text: str = "") -> str:
        """A new one, or one that is given."""
        canary = text or f"cnry{secrets.token_hex(12)}"
        self.planted[where] = canary.encode()
        return canary

    def found(self, said: str) -> list[str]:
        """Which of them are in a text, and how."""
        said = said.lower()
        return [
            f"{where} ({form})"
            for where, canary in self.planted.items()
            for form, text in forms(canary).items()
            if text in said
        ]


@pytest.fixture
def canaries() -> Canaries:
    """None yet."""
    return Canaries()


def test_the_search_finds_what_it_should() -> None:
    """A canary in any form, beside anything, in capitals or not; and nothing where there is none."""
    canaries = Canaries()
    text = canaries.plant("here")
    raw = text.encode()
    leaks = [
        text.upper(),
        f"user:{text}@host",
        raw.hex(),
        base64.b64encode(b"u:" + raw).decode(),
        base64.b64encode(b"xx" + raw + b"yy").decode(),
        base64.urlsafe_b64encode(b"x" + raw).decode(),
        sha256(raw).hexdigest(),
        "%" + raw.hex("%"),
    ]
    for leak in leaks:
        assert canaries.found(f"before {leak} after"), leak
    assert canaries.found("nothing of the kind, but cnry0000") == []


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a user runs it."""
    return subprocess.run(
        [*WARMSTART, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def run_all(*commands: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line with each of these commands, in one process, whose imports take a second."""
    program = "import json, sys, server; sys.exit(any([server.main(command) for command in json.loads(sys.argv[1])]))"
    return subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def keys(canaries: Canaries, where: str) -> tuple[str, str, str]:
    """(records, API key, signing key's id) with canaries for the key, its hash and the signing key's secret."""
    key = canaries.plant(f"{where}: API key", new_key())
    digest = sha256(key.encode()).hexdigest()
    secret = canaries.plant(f"{where}: hmac_secret", f"cnry{secrets.token_hex(14)}")
    about: dict[str, Any] = {"scopes": ["*"], "created": 1, "expires": None}
    name = sha256(where.encode()).hexdigest()[:8]
    records = [
        {"id": f"k_{name}", "name": f"key {name}", **about, "sha256": digest},
        {
            "id": f"s_{name}",
            "name": f"signer {name}",
            **about,
            "hmac_secret": base64.b64encode(secret.encode()).decode(),
        },
    ]
    return "\n".join(map(json.dumps, records)), key, f"s_{name}"


def private_files(folder: Path, canaries: Canaries) -> dict[str, str]:
    """TLS settings with a real key, each of whose lines is a canary."""
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    for number, line in enumerate(key.read_text().splitlines()[1:-1]):
        if len(line) > 20:
            canaries.plant(f"TLS key, line {number}", line)
    return {"TLS_CERT_FILE": str(certificate), "TLS_KEY_FILE": str(key)}


class Listener:
    """Sends bytes as they are and keeps what comes back."""

    def __init__(self, port: int, tls: bool) -> None:
        self.port, self.tls = port, tls
        self.heard: list[str] = []

    def send(self, data: bytes) -> str:
        """One connection: the bytes, then all that is answered until it is closed or quiet."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as plain:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(plain) if self.tls else plain
            answer = b""
            try:
                with suppress(OSError):  # it has seen enough; what it said before may still be read
                    connection.sendall(data)
                while part := connection.recv(65_536):
                    answer += part
            except OSError:
                pass  # it was closed on us, as it may be
            finally:
                connection.close()
        self.heard.append(answer.decode("latin-1"))
        return self.heard[-1]

    def ask(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> int:
        """A request; its status."""
        lines = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body))} | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        answer = self.send(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        return int(answer.split()[1])


def wait(condition: Callable[[], bool], running: Service) -> None:
    """Until it holds; the service may not listen yet."""
    end = time.monotonic() + 120
    while time.monotonic() < end and running.process.poll() is None:
        with suppress(OSError, IndexError):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError(running.log.read_text())


@contextmanager
def service(
    tls: bool, canaries: Canaries, folder: Path, model: Path
) -> Iterator[tuple[Listener, Path, dict[str, str]]]:
    """A real process with a canary in every secret setting, logging all it can: a client, its log, its settings."""
    own, _, _ = keys(canaries, "API_KEYS")
    (folder / "keys").write_text(keys(canaries, "API_KEYS_FILE")[0])
    (folder / "keys").chmod(0o600)
    settings = {
        "MODEL_NAME": str(model),
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json" if tls else "console",
        "REDIS_URL": f"redis://:{canaries.plant('REDIS_URL')}@127.0.0.1:{free_port()}/0",
        "RESPONSE_CACHE": "redis",
        "API_KEYS": own,
        "API_KEYS_FILE": str(folder / "keys"),
        "REQUEST_SIGNING": "accepted",
        "RATE_LIMIT_ENABLED": "true",
        "RATE_LIMIT_STORE": "redis",
        "AUTH_FAILURES_PER_MINUTE": "1000",
        "AUDIT_LOG": str(folder / "audit.log"),
        "AUDIT_KEY": canaries.plant("AUDIT_KEY", f"cnry{secrets.token_hex(20)}"),
        "TRUSTED_PROXIES": "",
    } | (private_files(folder, canaries) if tls else {})
    with running_service(**settings) as running:
        listener = Listener(running.port, tls)
        wait(lambda: listener.ask("GET", "/readyz", {}) == 200, running)
        yield listener, running.log, settings
        running.process.terminate()
        assert running.process.wait(45) == 0


@pytest.mark.parametrize("tls", [False, True])
def test_nothing_that_is_said_holds_a_secret(tls: bool, canaries: Canaries, tmp_path: Path, tiny_gpt2: Path) -> None:
    """Answers, logs at DEBUG, the audit log and its side files, metrics, and the command line beside the service."""
    prompt = canaries.plant("prompt")
    sent = {
        name: canaries.plant(f"sent: {name}") for name in ("bearer", "basic", "api key", "cookie", "query", "nonce")
    }
    signature = base64.b64encode(canaries.plant("sent: signature").encode()).decode()
    body = json.dumps({"prompt": prompt, "max_new_tokens": 2, "temperature": 0}).encode()
    chat = json.dumps({"messages": [{"role": "user", "content": prompt}], "temperature": 9}).encode()
    json_type = {"Content-Type": "application/json"}
    input_ = (
        '("@method" "@authority" "@path" "@query");created=1;expires=2;keyid="{}";'
        f'nonce="{sent["nonce"]}";tag="warmstart"'
    )
    with service(tls, canaries, tmp_path, tiny_gpt2) as (listener, log, settings):
        good = {"Authorization": f"Bearer {canaries.planted['API_KEYS: API key'].decode()}"}
        other = {"X-API-Key": canaries.planted["API_KEYS_FILE: API key"].decode()}
        ask = listener.ask
        # Answered.
        for path in (
            "/health",
            "/stats",
            "/metrics",
            "/model-info",
            "/models",
            "/openapi.json",
            "/cache/stats",
            "/docs",
        ):
            assert ask("GET", f"{path}?token={sent['query']}", good | {"Cookie": f"id={sent['cookie']}"}) in (200, 400)
            assert ask("GET", path, other) in (200, 503)
        answers = len(listener.heard)
        assert ask("POST", "/generate", good | json_type, body) == 200
        assert ask("POST", "/v1/completions", other | json_type, body.replace(b"new_", b"")) in (200, 400)
        del listener.heard[answers:]  # an answer may repeat what was asked
        # Refused.
        wrong = [
            {},
            {"Authorization": f"Bearer {sent['bearer']}"},
            {"Authorization": f"Basic {base64.b64encode(('u:' + sent['basic']).encode()).decode()}"},
            {"Authorization": sent["bearer"]},
            {"X-API-Key": sent["api key"]},
            good | {"X-API-Key": sent["api key"]},
            {"Authorization": f"Bearer {good['Authorization'][7:]}x"},
            {"Authorization": f"bEARER  {sent['bearer']}, Bearer {sent['bearer']}"},
            {"X-API-Key": f"{sent['api key']}\xe9\xff"},
        ]
        wrong += [
            {"Signature-Input": "sig=" + input_.format(key_id), "Signature": f"sig=:{signature}:"}
            for key_id in ("nobody", "s_" + sha256(b"API_KEYS").hexdigest()[:8], sent["nonce"])
        ]
        wrong += [
            {"Signature-Input": f"sig={sent['nonce']}", "Signature": f"sig=:{signature}:"},
            {"Signature-Input": "sig=" + input_.format("x"), "Signature": f"sig={signature}"},
        ]
        for headers in wrong:
            for path in ("/generate", f"/v1/completions?key={sent['query']}", "/nowhere"):
                status = ask("POST", path, json_type | headers | {"Cookie": f"id={sent['cookie']}"}, body)
                assert status in (400, 401, 404), (headers, status)
        # Wrong in themselves.
        assert ask("POST", "/chat/completions", good | json_type, chat) == 400
        for broken in (
            body[:-1],
            body + b"}",
            b"[" * 400 + body,
            body.replace(b'"max_new_tokens"', b'"max_new_tokens":'),
        ):
            assert ask("POST", "/generate", good | json_type, broken) == 400
        for path in (f"/nowhere?{sent['query']}", f"/generate?{sent['query']}", "/static/none.js"):
            assert ask("PUT", path, good, body) in (404, 405)
        assert ask("POST", "/generate", good | {"Content-Type": "text/plain"}, body) == 415
        assert ask("POST", "/models/none/load", good) in (403, 404)
        # No HTTP.
        secret = f"Authorization: Bearer {sent['bearer']}\r\nCookie: id={sent['cookie']}\r\n"
        for request in (
            f"GET /?{sent['query']} HTTP/9.9\r\n{secret}\r\n",
            f"GET /?{sent['query']} HTTP/1.1\r\nHost: x\r\n{secret}{sent['bearer']}\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: x\r\n{secret}X-Bad: \x00{sent['bearer']}\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: {sent['api key'] * 2000}\r\n\r\n",
            f"GET /{sent['query'] * 2000} HTTP/1.1\r\nHost: x\r\n\r\n",
            f"POST / HTTP/1.1\r\nHost: x\r\n{secret}Content-Length: {sent['query']}\r\n\r\n",
            f"POST / HTTP/1.1\r\nHost: x\r\n{secret}Transfer-Encoding: chunked\r\n\r\n{sent['query']}\r\n",
            f"{sent['bearer']}\r\n\r\n",
        ):
            assert " 4" in listener.send(request.encode("latin-1"))[:12]
        beside = run_all(
            ["config"],
            ["config", "--markdown"],
            ["keys", "list"],
            ["keys", "list", "--json"],
            ["audit", "verify"],
            **settings,
        )
        said = {"warmstart": beside.stdout + beside.stderr}
        assert beside.returncode == 0, said
        assert said["warmstart"].count("REDIS_URL") >= 2
        assert "ok: " in said["warmstart"]
        text = log.read_text(errors="replace")
        assert "Redis" in text
        assert "DEBUG" in text
    said |= {"log": log.read_text(errors="replace") if log.exists() else text, "answers": "\n".join(listener.heard)}
    said |= {path.name: path.read_text(errors="replace") for path in tmp_path.glob("audit.log*")}
    assert said["audit.log"].count("\n") > 40
    leaks = {what: found for what, text in said.items() if (found := canaries.found(text))}
    assert leaks == {}


def bad_settings(canaries: Canaries, folder: Path) -> dict[str, dict[str, str]]:
    """Settings that are wrong, each with a canary in it, by the name that the complaint must have."""
    c = canaries.plant
    _, key, _ = keys(canaries, "record")
    good = {"id": "k_1", "name": "x", "scopes": ["*"], "created": 1, "expires": None}
    digest = sha256(key.encode()).hexdigest()

    def record(**fields: object) -> str:
        return json.dumps(good | {"sha256": digest} | fields)

    def file(name: str, content: str) -> str:
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
        return str(folder / name)

    tls = private_files(folder, canaries)
    swapped = {"TLS_CERT_FILE": tls["TLS_KEY_FILE"], "TLS_KEY_FILE": tls["TLS_CERT_FILE"]}
    damaged = re.sub(r"\n[^-]{9}", "\nAAAAAAAAA", Path(tls["TLS_KEY_FILE"]).read_text())
    redis = {"RESPONSE_CACHE": "redis", "RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_STORE": "redis"}
    records = {
        "no JSON": f"{{{c('record: no JSON')}",
        "a bare key": c("record: bare"),
        "half": record()[:-20],
        "wrong hash": record(sha256=c("record: wrong hash")),
        "short hash": record(sha256=digest[:-2]),
        "wrong secret": json.dumps(good | {"hmac_secret": c("record: wrong secret") + "\u00e9"}),
        "both": record(
            hmac_secret=base64.b64encode(c("record: both", f"cnry{secrets.token_hex(14)}").encode()).decode()
        ),
        "unknown field": record(**{key: c("record: field's value")}),
        "a key as its id": record(id=key + "!"),
        "a key as its name": record(name=key + "\n"),
        "a key as a scope": record(scopes=[key]),
        "twice": f"{record()} {record()}",
    }
    return {
        **{f"API_KEYS: {name}": {"API_KEYS": text} for name, text in records.items()},
        **{
            f"API_KEYS_FILE: {name}": {"API_KEYS_FILE": file(f"keys{number}", text)}
            for number, (name, text) in enumerate(records.items())
        },
        "REDIS_URL: port": redis | {"REDIS_URL": f"redis://:{c('url: slash')}/rest@127.0.0.1:6379/0"},
        "REDIS_URL: fragment": redis | {"REDIS_URL": f"redis://:{c('url: hash')}#rest@127.0.0.1:6379/0"},
        "REDIS_URL: scheme": redis | {"REDIS_URL": f"http://:{c('url: scheme')}@127.0.0.1:6379/0"},
        "REDIS_URL: bracket": redis | {"REDIS_URL": f"redis://[{c('url: bracket')}"},
        "REDIS_URL: bare": redis | {"REDIS_URL": c("url: bare")},
        "AUDIT_KEY: short": {"AUDIT_LOG": str(folder / "a.log"), "AUDIT_KEY": c("audit: short", "cnry5h0rt")},
        "AUDIT_LOG: key": {"AUDIT_LOG": str(folder / "kept.log"), "AUDIT_KEY": c("audit: key", f"cnry{'7' * 40}")},
        "TLS_": swapped,
        "TLS_KEY_FILE": {**tls, "TLS_KEY_FILE": file("text", c("tls: text"))},
        "TLS_CERT_FILE": {**tls, "TLS_KEY_FILE": file("damaged", damaged)},
    }


def test_wrong_settings_are_named_and_not_shown(
    canaries: Canaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every way to get a secret wrong: the setting's name, one line or two, and no part of its value."""
    monkeypatch.setattr("server.setup_logging", lambda *_: None)  # this process has its own
    written(tmp_path / "kept.log")
    for name, environment in bad_settings(canaries, tmp_path).items():
        with monkeypatch.context() as patch:
            for variable, value in ({"PRELOAD": "false", "PORT": "0"} | environment).items():
                patch.setenv(variable, value)
            status = server.main(["serve"])
        said = capfd.readouterr()
        text = said.out + said.err
        assert (status, name.partition(":")[0] in text) == (2, True), (name, text)
        assert canaries.found(text) == [], (name, text)
        assert "Traceback" not in text


def test_a_process_with_wrong_settings_says_no_more(canaries: Canaries) -> None:
    """What the test above sees within this process is all there is outside of it."""
    url = f"redis://:{canaries.plant('url')}/x@127.0.0.1:1"
    done = run("serve", API_KEYS=canaries.plant("records"), REDIS_URL=url, RESPONSE_CACHE="redis", LOG_LEVEL="DEBUG")
    assert done.returncode == 2
    assert "REDIS_URL: " in done.stderr
    assert canaries.found(done.stdout + done.stderr) == []


def test_settings_do_not_show_secrets(canaries: Canaries) -> None:
    """However they are printed: as text, in detail, dumped, described, or in an error that somebody logs."""
    values = {
        "redis_url": f"redis://:{canaries.plant('REDIS_URL')}@127.0.0.1/0",
        "events_url": f"nats://worker:{canaries.plant('EVENTS_URL')}@127.0.0.1",
        "api_keys": canaries.plant("API_KEYS"),
        "audit_key": canaries.plant("AUDIT_KEY", f"cnry{secrets.token_hex(20)}"),
    }
    settings = Settings.load(**values)
    fields = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    assert fields == set(values)  # a new secret setting belongs into this file's tests
    said = [
        repr(settings),
        str(settings),
        f"{settings!s:>10}",
        str(settings.__rich_repr__ and list(settings.__rich_repr__())),
        str(vars(settings)),
        settings.model_dump_json(),
        str(settings.model_dump()),
        str(settings.describe()),
        str(Settings.model_json_schema()),
    ]
    for wrong in ({name: [value] for name, value in values.items()}, {"audit_required": True, **values}):
        with pytest.raises(SettingsError) as caught:
            Settings.load(**wrong)
        said += traceback.format_exception(caught.value)
    assert canaries.found("\n".join(said)) == []
    assert canaries.found(pickle.dumps(settings).decode("latin-1"))  # they are there, and the search finds them


def test_a_core_dump_is_not_asked_for() -> None:
    """Memory holds secrets: nothing here raises the limit on core files that the operator has set."""
    sources = [
        *ROOT.glob("*.py"),
        *(path for room in ("handlers", "middleware", "runtime") for path in (ROOT / room).rglob("*.py")),
    ]
    assert len(sources) > 50
    assert [
        path.name for path in sources if "RLIMIT_CORE" in path.read_text() or "PR_SET_DUMPABLE" in path.read_text()
    ] == []
