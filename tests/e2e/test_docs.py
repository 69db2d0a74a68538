"""The pages of docs/, run as they are printed but for the brokers' addresses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loadtests.service import free_port, running_service
from tests.support.contexts import real
from tests.support.docs_reader import PATIENCE, SERVICE, Reader, blocks
from tests.support.fakes import serving
from tests.support.kafka_broker import mock_kafka
from tests.support.minilm import NAME, minilm_folder
from tests.support.models import ROOT
from tests.support.nats_server import own_nats_server
from tests.support.rabbitmq_server import own_rabbitmq
from tests.support.redis_server import OwnRedis
from tests.support.soak import SOAK

ANSWER = '"text": "The capital of France is'
WRONG = '{"prompt": []}'


@contextmanager
def nats(folder: Path) -> Iterator[str]:
    with own_nats_server(folder) as server:
        yield server.url


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    server = OwnRedis(folder / "redis")
    try:
        yield server.url
    finally:
        server.kill()


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    with own_rabbitmq(folder, (free_port(), free_port())) as node:
        yield node.url


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    with mock_kafka() as broker:
        for topic in ("warmstart.requests", "warmstart.results", "warmstart.dead"):  # it makes none when told to
            broker.topic(topic, 4)
        yield broker.url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "printed", "broker"),
    [
        ("events-nats", "nats://127.0.0.1:4222", nats),
        ("events-redis", "redis://127.0.0.1:6379/0", redis),
        ("events-rabbitmq", "amqp://guest:guest@127.0.0.1:5672/", rabbitmq),
        ("events-kafka", "kafka://127.0.0.1:9092", kafka),
    ],
)
def test_a_broker_s_page(page: str, printed: str, broker: Callable[..., Iterator[str]], tmp_path: Path) -> None:
    """Two commands put Warmstart behind the broker and get an answer; the program gets one, too.

    A message that is wrong is a dead letter, and the page's program sends it again.
    """
    found = blocks(page)
    commands = [line for language, text in found if language == "bash" for line in text.splitlines()]
    (consume,) = [line.removesuffix(" &") for line in commands if line.startswith("warmstart consume ")]
    (submit,) = [line for line in commands if line.startswith("warmstart submit ")]
    producer, replay = [text for language, text in found if language == "python"]
    with ExitStack() as stack:
        url = stack.enter_context(broker(tmp_path))
        changes = {printed: url}
        if page == "events-kafka":  # whose own clients take addresses without a scheme
            changes |= {printed.partition("://")[2]: url.partition("://")[2]}
        reader = Reader(tmp_path / "reader", changes)
        _serves(url)
        # Beside other tests its usual port may be taken.
        stack.enter_context(reader.running(f"{consume} --port 0"))
        assert ANSWER in reader.run("bash", submit)
        said = reader.run("python", producer)
        assert said.startswith("result ")
        assert ANSWER in said
        wrong = re.sub(r"'\{.*\}'", f"'{WRONG}'", submit)
        assert "invalid_request" in reader.run("bash", wrong, status=1)
        assert "invalid_request" in reader.run("python", replay)
        for line in commands:
            if line not in (submit, f"{consume} &", consume):
                reader.run("bash", line)


def _serves(url: str) -> None:
    """Wait until the broker takes connections."""
    parts = urlsplit(url)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.1)


@pytest.mark.slow
def test_lambda_s_page(tmp_path: Path) -> None:
    """The handler answers a direct call, a Function URL's event and a queue's, in this process as in AWS's."""
    reader = Reader(tmp_path / "reader", {})
    (reader.folder / "tests").symlink_to(ROOT / "tests")  # the program reads events of a checkout
    (text,) = [text for language, text in blocks("events-lambda") if language == "python"]
    direct, chat, queue = reader.run("python", text).splitlines()[:3]
    assert direct == " Paris."
    assert chat == "The capital of France is Paris."
    assert "batchItemFailures" in queue


@pytest.mark.slow
def test_the_page_of_cloud_events(tmp_path: Path) -> None:
    """Each of the three content modes is answered in kind."""
    found = [text for language, text in blocks("events-cloudevents") if text.startswith("curl ")]
    with running_service(IDEMPOTENCY="memory") as service:
        service.wait("/readyz")
        reader = Reader(tmp_path / "reader", {"http://127.0.0.1:8000": service.url})
        structured, binary, batch = [reader.run("bash", text) for text in found]
    answer = json.loads(structured)
    assert (answer["type"], answer["causationid"]) == ("warmstart.complete.result", "structured-1")
    head, _, body = binary.replace("\r", "").partition("\n\n")
    assert "ce-type: warmstart.complete.result" in head
    assert json.loads(body)["text"] == answer["data"]["text"]
    complete, chat = json.loads(batch)
    assert complete["data"]["text"] == answer["data"]["text"]
    assert "Paris" in chat["data"]["choices"][0]["message"]["content"]


@pytest.mark.slow
async def test_the_page_of_embeddings(capsys: pytest.CaptureFixture[str]) -> None:
    """Its search finds, with the real model, the note that answers the question."""
    (search,) = [text for language, text in blocks("embeddings") if language == "python"]
    settings = {"model_name": str(minilm_folder()), "model_aliases": f"{NAME}=model", "response_cache": "off"}
    assert len([line for line in search.splitlines() if line]) <= 20
    async with real(**settings) as ctx, serving(ctx) as url:
        code = compile(search.replace("http://127.0.0.1:8000", url), "search", "exec")
        await asyncio.to_thread(exec, code, {})
    first, *others = capsys.readouterr().out.splitlines()
    assert first.partition(" ")[2] == "Bees see ultraviolet light and find flowers by it."
    assert float(first[:4]) > 0.3 > max(float(line[:4]) for line in others)


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path) -> None:
    """The question gets the same answer in each tab, and the streams have the same text."""
    page = (ROOT / "docs/quickstart.md").read_text()
    found = re.findall(r"^    ```(\w+)\n(.*?)^    ```$", page, re.DOTALL | re.MULTILINE)
    assert len(found) == 8
    with running_service() as service:
        service.wait("/readyz")
        reader = Reader(tmp_path / "reader", {SERVICE: service.url})
        for language, text in found:
            if SOAK or (
                SERVICE in text and (language != "javascript" or shutil.which("node"))
            ):  # others load the model
                printed = reader.run(language, textwrap.dedent(text))
                parts = re.findall(r'"delta":\s*\{[^}]*"content":\s*"([^"]*)"', printed)
                assert " Paris." in ("".join(parts) or printed), text


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="SOAK=1 runs the calls of the table of routes and of the README")
def test_the_calls_of_the_table_of_routes(tmp_path: Path) -> None:
    """Each call that needs nothing but the embedded model is answered without an error; so are those of the README."""
    routes, readme = (ROOT / "docs/routes.md").read_text(), (ROOT / "README.md").read_text()
    calls = [("bash", call) for call in re.findall(r"\| `(curl [^`]+)` \|$", routes, re.MULTILINE)]
    needs_more = re.compile("MODEL|resp_1|/files|/batches")  # another model, or settings
    calls = [(language, call) for language, call in calls if not needs_more.search(call)]
    calls += [("bash", call) for call in re.findall(r"^```sh\n(curl .*?)^```$", readme, re.DOTALL | re.MULTILINE)]
    calls += [("python", call) for call in re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)]
    assert len(calls) > 25
    with running_service() as service:
        service.wait("/readyz")
        here = {SERVICE: service.url, SERVICE.partition("//")[2]: service.url}
        reader = Reader(tmp_path / "reader", here)
        for language, call in calls:
            printed = reader.run(language, call)
            assert printed, call
            assert not re.search(r'"(code|error_code)": ?"', printed), (call, printed)


def test_the_generated_pages_are_up_to_date() -> None:
    """After a change of what they describe ``PYTHONPATH=. python .ci/reference`` must be run again."""
    command = [sys.executable, ROOT / ".ci/reference", "--check"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
