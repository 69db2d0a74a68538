"""handlers.cloud_function: the function in the real framework, within this process and as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import functions_framework
import pytest
from werkzeug.test import Client, TestResponse

from handlers import cloud_function
from handlers.context import Context
from loadtests.service import free_port
from runtime.errors import ModelLoading, SettingsError
from tests.support.fakes import FakeEngine, fake_context
from tests.support.models import ROOT

SOURCE = ROOT / "handlers/cloud_function.py"
EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "/here",
    "type": "warmstart.complete",
    "data": {"prompt": "Hi", "max_new_tokens": 2},
}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Makes the framework's application for the function, on a fake model."""
    monkeypatch.setenv("IDEMPOTENCY", "memory")
    monkeypatch.setattr(cloud_function, "setup_logging", lambda *_: None)  # this process has its own
    for name in ("FUNCTION_TARGET", "FUNCTION_SIGNATURE_TYPE"):  # the framework sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    main = tmp_path / "main.py"
    main.write_text("from handlers.cloud_function import make_function\n\nwarmstart_event = make_function()\n")

    def made(ctx: Context | None = None, signature: str = "cloudevent") -> Client:
        monkeypatch.setattr(cloud_function, "shared_context", lambda: ctx or fake_context())
        return Client(functions_framework.create_app("warmstart_event", str(main), signature))

    path = list(sys.path)
    yield made
    sys.path[:] = path  # the framework adds the source's folder
    sys.modules.pop("main", None)


def post(client: Client, body: Any, headers: dict[str, str] | None = None) -> TestResponse:
    """A request."""
    return client.post("/", data=body if isinstance(body, bytes) else json.dumps(body), headers=headers or STRUCTURED)


@pytest.mark.parametrize("signature", ["cloudevent", "http", "event"])
def test_every_mode(call: Callable[..., Client], signature: str) -> None:
    """Answered as POST /events answers, whatever kind of function the framework is told that it is."""
    client = call(signature=signature)
    answer = post(client, EVENT)
    assert (answer.status_code, answer.content_type) == (200, STRUCTURED["Content-Type"])
    assert json.loads(answer.data)["data"]["text"] == "Hello there"
    headers = {f"ce-{name}": str(value) for name, value in EVENT.items() if name != "data"}
    again = post(client, json.dumps(EVENT["data"]).encode(), headers | {"Content-Type": "application/json"})
    assert again.status_code == 200
    assert json.loads(again.data) == json.loads(answer.data)["data"]
    assert again.headers["ce-id"] == json.loads(answer.data)["id"]
    batch = post(client, [EVENT, EVENT | {"id": "2"}], {"Content-Type": "application/cloudevents-batch+json"})
    assert [reply["causationid"] for reply in json.loads(batch.data)] == ["1", "2"]


def test_errors(call: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the statuses and bodies of POST /events."""
    monkeypatch.setenv("MAX_BODY_BYTES", "2000")
    client = call()
    answer = post(client, EVENT | {"type": "warmstart.nothing"})
    assert (answer.status_code, json.loads(answer.data)["type"]) == (422, "warmstart.nothing.error")
    answer = post(client, {**EVENT, "id": ""})
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json; charset=utf-8")
    assert json.loads(answer.data)["param"] == "id"
    assert post(client, EVENT | {"data": {"prompt": "x" * 2000}}).status_code == 413
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    answer = post(call(fake_context(failure=ModelLoading("it loads", retry_after=7))), EVENT)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 7


def test_threads_share_all(call: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """The framework calls on many threads at once; there is one loop, one model and one store of records."""
    engine = FakeEngine(pause=0.002)
    contexts = []

    def ctx() -> Context:
        contexts.append(1)
        return fake_context(engine)

    client = call()
    monkeypatch.setattr(cloud_function, "shared_context", ctx)

    def ask(number: int) -> int:
        return post(client, EVENT | {"id": str(number % 20)}).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(ask, range(40)))
    assert len(contexts) == 1
    assert set(statuses) <= {200, 409}  # the same event at the same time
    assert statuses.count(200) >= 20
    assert len(engine.jobs) == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RATE_LIMIT_ENABLED", "true"),
        ("ALLOWED_IPS", "10.0.0.0/8"),
        ("API_KEYS_FILE", "keys"),
        ("AUDIT_LOG", "audit"),
        ("MAX_BODY_BYTES", "x"),
    ],
)
def test_settings(call: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong one ends the framework at its start, and so does one of the edge, which is not here."""
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("AUDIT_KEY", "k" * 40)
    with pytest.raises(SettingsError, match=name.removesuffix("_FILE")):
        call()


def test_importing_it_does_nothing() -> None:
    """The function is made when it is asked for, and nothing else is there."""
    program = (
        "import sys; import handlers.cloud_function as f; from handlers import local\n"
        "assert local._shared is None and 'torch' not in sys.modules\n"
        "try: f.other\nexcept AttributeError: print('none')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PORT": "x"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr


def test_the_process(tiny_gpt2: Path, tmp_path: Path) -> None:
    """As docs/events-cloudevents.md has it: the framework's own server, and a real model, loaded once, when asked."""
    port = free_port()
    command = Path(sys.executable).with_name("functions-framework")
    arguments = ["--source", str(SOURCE), "--target", "warmstart_event", "--signature-type", "cloudevent"]
    environment = os.environ | {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "MODEL_NAME": str(tiny_gpt2),
        "CACHE_DIR": str(tmp_path),
        "LOG_FORMAT": "json",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([command, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        answers = [_ask(process, port, EVENT | {"data": {"prompt": "Hi", "seed": 1, "max_new_tokens": 4}})]
        answers += [_ask(process, port, EVENT | {"id": str(n), "data": {"prompt": "Hi", "seed": 1}}) for n in (2, 3)]
        answers.append(_ask(process, port, EVENT | {"data": {"prompt": "Hi", "seed": 1, "max_new_tokens": 4}}))
    finally:
        process.terminate()
        process.wait(30)
    text = (tmp_path / "log").read_text()
    assert answers[0]["data"] == answers[3]["data"], text
    assert answers[1]["data"]["text"] == answers[2]["data"]["text"]
    assert text.count("is ready: load") == 1
    assert text.count("event acked") == 3
    assert text.count("event repeated") == 1


def _ask(process: subprocess.Popen[bytes], port: int, event: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(event).encode(), STRUCTURED)
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:  # it does not listen yet
            assert process.poll() is None
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError("it never listened")
