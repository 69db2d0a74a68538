"""``warmstart consume`` and ``warmstart submit`` as processes, on a real Redis and a tiny real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.service import free_port
from tests.support.command_line import warmstart
from tests.support.models import ROOT
from tests.support.redis_server import REDIS_URL, own_names
from tests.support.waiting import wait_until

WARMSTART = [sys.executable, "-c", "import sys, server; sys.exit(server.main(sys.argv[1:]))"]
PROMPT = {"prompt": "You may", "max_new_tokens": 12, "temperature": 0}


@dataclass(frozen=True)
class Queue:
    """A queue of a test's own, and what its workers need."""

    prefix: str
    folder: Path
    model: Path

    @property
    def names(self) -> list[str]:
        """Options that name it."""
        return ["--results", f"{self.prefix}:results", "--dead", f"{self.prefix}:dead"]

    def settings(self, **settings: str) -> dict[str, str]:
        """Of its processes, with changes."""
        found = {"LOG_FORMAT": "json", "MODEL_NAME": str(self.model), "EVENTS_URL": REDIS_URL, "IDEMPOTENCY": "memory"}
        return found | settings

    def environment(self, **settings: str) -> dict[str, str]:
        """The settings beside this process's own environment."""
        return os.environ | self.settings(**settings)

    def submit(self, *arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """``warmstart submit``, to its end."""
        command = ["submit", *arguments, "--stream-name", f"{self.prefix}:requests", *self.names]
        return warmstart(*command, stdin=stdin, **self.settings(**settings))


@pytest.fixture
def queue(tmp_path: Path, tiny_gpt2: Path) -> Iterator[Queue]:
    """A queue on the real Redis."""
    with own_names() as prefix:
        yield Queue(prefix, tmp_path, tiny_gpt2)


@dataclass(frozen=True)
class Running:
    """A worker."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged; every line is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def said(self, text: str) -> bool:
        """Whether a line has that in it."""
        return any(text in line["message"] for line in self.lines())

    @property
    def url(self) -> str:
        """Of its side port."""
        wait_until(lambda: self.said("listening on"))
        (line,) = (line["message"] for line in self.lines() if "listening on" in line["message"])
        return str(line.rpartition(" ")[2])

    def get(self, path: str, payload: object = None) -> tuple[int, str]:
        """Status and body of a request to it."""
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> int:
        """Its status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def worker(queue: Queue, *arguments: str, **settings: str) -> Iterator[Running]:
    """``warmstart consume``."""
    log = queue.folder / f"worker-{time.monotonic_ns()}.log"
    command = [*WARMSTART, "consume", "--stream", f"{queue.prefix}:requests", *queue.names, "--port", "0", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=queue.environment(**settings), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Running(process, log)
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_questions_and_answers(queue: Queue) -> None:
    """What is submitted is answered, as text, as JSON lines and as a stream; the side port has probes and figures."""
    with worker(queue) as running:
        one = queue.submit("complete", json.dumps(PROMPT), "--id", "one")
        assert (one.returncode, one.stderr) == (0, "")
        answer = json.loads(one.stdout)
        assert answer["usage"]["completion_tokens"] == 12
        again = queue.submit("complete", json.dumps(PROMPT), "--id", "one")
        assert again.stdout == one.stdout
        lines = f"{json.dumps(PROMPT)}\n" + '{"prompt": 5}\nnot json\n'
        many = queue.submit("complete", stdin=lines)
        assert many.returncode == 1
        answers = [json.loads(line) for line in many.stdout.splitlines()]
        assert answers[0]["text"] == answer["text"]
        assert [one["error"]["code"] for one in answers[1:]] == ["invalid_request"] * 2
        streamed = queue.submit("generate", json.dumps(PROMPT), "--stream")
        assert streamed.stdout == f"You may{answer['text']}\n"
        ids = queue.submit("complete", "--no-wait", stdin='{"prompt": "a"}\n{"prompt": "b"}\n')
        assert len(set(ids.stdout.split())) == 2

        assert running.get("/readyz") == (200, '{"status": "ready"}')
        assert running.get("/livez")[0] == 200
        assert json.loads(running.get("/health")[1])["status"] == "ok"
        assert running.get("/generate", PROMPT)[0] == 404
        assert running.get("/docs")[0] == 404
        figures = running.get("/metrics")[1]
        labels = f'operation="complete",outcome="rejected",source="redis:{queue.prefix}:requests"'
        assert f"warmstart:events_total{{{labels}}} 1.0" in figures
        assert "warmstart:generation_tokens_total" in figures
        assert running.end() == 0
        events = [line for line in running.lines() if "outcome" in line]
        assert events[0].items() >= {"request_id": "one", "outcome": "acked", "tokens_out": 12, "attempt": 1}.items()
        assert running.lines()[-1]["message"] == "stopped"


def test_http_beside_the_queue(queue: Queue) -> None:
    """--serve: the same process answers both, from the same model; one signal ends both, running requests first."""
    with worker(queue, "--serve") as running:
        queued = json.loads(queue.submit("complete", json.dumps(PROMPT)).stdout)
        status, body = running.get("/complete", PROMPT)
        assert status == 200
        assert json.loads(body)["text"] == queued["text"]
        data = json.dumps({"prompt": "You", "max_new_tokens": 120, "num_return_sequences": 16, "stream": True}).encode()
        request = urllib.request.Request(running.url + "/complete", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
            running.process.send_signal(signal.SIGTERM)
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert running.process.wait(60) == 0


def test_a_stop_gives_back_what_does_not_end(queue: Queue) -> None:
    """Cut off after DRAIN_SECONDS, a generation is another worker's at once, long before the ack wait is over."""
    long = {"prompt": ["You"] * 16, "max_new_tokens": 120, "num_return_sequences": 16, "seed": 1, "temperature": 1}
    settings = {"MAX_SEQUENCES": "1024", "EVENTS_ACK_SECONDS": "3600", "MAX_BATCH": "1"}
    # A worker with a free slot would wait for its fetch, for a second in which a fast machine ends the generation.
    with worker(queue, "--concurrency", "1", DRAIN_SECONDS="0", **settings) as first:
        wait_until(lambda: first.get("/readyz")[0] == 200)
        queue.submit("complete", json.dumps(long), "--id", "long", "--no-wait")
        wait_until(
            lambda: "warmstart:events_in_flight" in (figures := first.get("/metrics")[1]) and _in_flight(figures)
        )
        assert first.end() == 0
        (event,) = [line for line in first.lines() if "outcome" in line]
        assert (event["outcome"], event["code"]) == ("retried", "draining")
    with worker(queue, **settings | {"MAX_BATCH": "64"}) as second:
        answer = queue.submit("complete", json.dumps(long), "--id", "long")
        assert len(json.loads(answer.stdout)["sequences"]) == 256
        attempts = [line["attempt"] for line in second.lines() if line.get("outcome") == "acked"]
        assert attempts == [2]
        assert second.end() == 0


def _in_flight(figures: str) -> bool:
    (line,) = (line for line in figures.splitlines() if line.startswith("warmstart:events_in_flight{"))
    return line.endswith(" 1.0")


def test_a_second_signal_ends_at_once(queue: Queue) -> None:
    """Nobody has to wait for a generation that takes long."""
    long = {"prompt": ["You"] * 16, "max_new_tokens": 120, "num_return_sequences": 16}
    with worker(queue, MAX_SEQUENCES="1024", MAX_BATCH="1", DRAIN_SECONDS="300") as running:
        wait_until(lambda: running.get("/readyz")[0] == 200)
        queue.submit("complete", json.dumps(long), "--no-wait")
        wait_until(lambda: _in_flight(running.get("/metrics")[1]))
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: running.said("draining"))
        assert running.get("/readyz") == (503, '{"status": "draining"}')
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 130


def test_a_broker_that_is_not_there(queue: Queue) -> None:
    """The worker keeps trying and says so once, without the password; it is alive, not ready, and ends when told."""
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    with worker(queue, EVENTS_URL=url) as running:
        assert running.get("/livez")[0] == 200
        wait_until(lambda: json.loads(running.get("/readyz")[1])["status"] == "connecting")
        wait_until(lambda: 'warmstart:events_broker_errors_total{source="redis' in running.get("/metrics")[1])
        wait_until(lambda: running.said("the broker is unavailable"))
        assert running.end() == 0
        assert sum("the broker is unavailable" in line["message"] for line in running.lines()) == 1
        assert "hunter2" not in running.log.read_text()
    submitted = queue.submit("complete", json.dumps(PROMPT), EVENTS_URL=url)
    assert submitted.returncode == 1
    assert submitted.stderr.startswith("warmstart: the broker is unavailable: ")
    assert "hunter2" not in submitted.stderr


def test_nobody_answers(queue: Queue) -> None:
    """Without a worker --timeout ends the waiting, and Ctrl-C ends it without a traceback."""
    late = queue.submit("complete", json.dumps(PROMPT), "--timeout", "0.5")
    assert late.returncode == 1
    assert json.loads(late.stdout)["error"]["code"] == "deadline_exceeded"
    command = [*WARMSTART, "submit", "complete", "--stream-name", f"{queue.prefix}:requests", *queue.names]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=queue.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(PROMPT).encode() + b"\n")
    process.stdin.flush()
    wait_until(lambda: _submitted(queue) == 2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (130, b"", b"")


def _submitted(queue: Queue) -> int:
    import redis

    with redis.Redis.from_url(REDIS_URL) as client:
        return int(client.xlen(f"{queue.prefix}:requests"))


@pytest.mark.parametrize("command", [["consume"], ["submit", "complete", "{}"]], ids=["consume", "submit"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"EVENTS_URL": ""}, "EVENTS_URL"),
        ({"EVENTS_URL": "http://:hunter2@host"}, "EVENTS_URL: it must begin with one of nats://"),
        ({"EVENTS_URL": "nats://host", "PYTHONPATH": ""}, "pip install 'warmstart[nats]'"),
        ({"EVENTS_ACK_SECONDS": "no"}, "EVENTS_ACK_SECONDS"),
    ],
    ids=["none", "other", "library", "setting"],
)
def test_what_is_wrong_is_named(command: list[str], settings: dict[str, str], said: str, tmp_path: Path) -> None:
    """Status 2, one line, no traceback, no secret."""
    if "PYTHONPATH" in settings:  # which a process reads at its start
        (tmp_path / "nats.py").write_text("raise ModuleNotFoundError('none here', name='nats')")
        environment = os.environ | settings | {"PYTHONPATH": str(tmp_path)}
        run = subprocess.run([*WARMSTART, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    else:
        run = warmstart(*command, **settings)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert "hunter2" not in run.stderr
