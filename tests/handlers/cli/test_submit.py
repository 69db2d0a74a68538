"""``warmstart submit``: what it sends, and what it prints. The process is in tests/events."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import pytest

from handlers.cli import submit as submit_command
from handlers.cli.submit import PrintedText, piece_of, text_of
from runtime.errors import ServiceError
from runtime.events.envelope import Envelope
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply

URL = "redis://127.0.0.1:6379/0"
ANSWER = {"text": "Hello there.", "sequences": []}


class FakeSubmitter:
    """Answers by a function of the envelope.

    Args:
        reply: the replies; an exception among them is raised.
    """

    def __init__(self, reply: Callable[[Envelope], list[Reply | Exception]]) -> None:
        self.reply = reply
        self.sent: list[Envelope] = []
        self.waits: list[bool] = []
        self.open_now = self.most = 0
        self.closed = False
        self.failure: Exception | None = None
        self.pause = 0.0

    async def open(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def submit(self, envelope: Envelope, *, wait: bool) -> AsyncGenerator[Reply, None]:
        self.sent.append(envelope)
        self.waits.append(wait)
        return self._replies(envelope if wait else None)

    async def _replies(self, envelope: Envelope | None) -> AsyncGenerator[Reply, None]:
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        try:
            for reply in [] if envelope is None else self.reply(envelope):
                await asyncio.sleep(self.pause)
                if isinstance(reply, Exception):
                    raise reply
                yield reply
        finally:
            self.open_now -= 1

    async def close(self) -> None:
        self.closed = True


Submit = Callable[..., int]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSubmitter:
    """What the command opens."""
    found = FakeSubmitter(lambda envelope: [Reply("result", ANSWER)])
    monkeypatch.setattr(submit_command, "open_submitter", lambda queue: setattr(found, "queue", queue) or found)
    monkeypatch.setattr(submit_command, "setup_logging", lambda *_: None)
    return found


def submit(*arguments: str) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    submit_command.add(parser.add_subparsers())
    options = parser.parse_args(["submit", *arguments])
    return int(options.run(options))


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Standard input, from a thread."""

    def feed(*pieces: bytes, close: bool = True) -> int:
        reading, writing = os.pipe()
        monkeypatch.setattr(sys, "stdin", open(reading))  # noqa: SIM115 - it is standard input until the test's end

        def write() -> None:
            for piece in pieces:
                os.write(writing, piece)
            if close:
                os.close(writing)

        threading.Thread(target=write, daemon=True).start()
        return writing

    return feed


def test_one_message(fake: FakeSubmitter, capsys: pytest.CaptureFixture[str]) -> None:
    """The payload goes out with a seed, so that a worker that takes over gives the same text; the answer is printed."""
    assert submit(URL, "complete", '{"prompt": "é"}', "--deadline", "60", "--group", "g", "--stream-name", "s") == 0
    assert json.loads(capsys.readouterr().out) == ANSWER
    (sent,) = fake.sent
    assert (sent.operation, sent.data["prompt"], sent.stream, fake.waits) == ("complete", "é", False, [True])
    assert isinstance(sent.data["seed"], int)
    assert sent.deadline is not None
    assert abs(sent.deadline - time.time() - 60) < 30
    queue: QueueOptions = fake.queue  # type: ignore[attr-defined]
    assert (queue.url, queue.stream, queue.group) == (URL, "s", "g")
    assert fake.closed


def test_seeds(fake: FakeSubmitter) -> None:
    """The same id is the same work, and so has the same seed; a given one stays; who takes none gets none."""
    for arguments in (["--id", "a"], ["--id", "a"], ["--id", "b"]):
        submit(URL, "complete", '{"prompt": "x"}', *arguments)
    submit(URL, "complete", '{"prompt": "x", "seed": 5}')
    submit(URL, "health", "{}")
    first, second, other, given, none = (envelope.data.get("seed") for envelope in fake.sent)
    assert first == second != other
    assert (given, none) == (5, None)
    assert len({envelope.id for envelope in fake.sent}) == 4


def test_many_messages(fake: FakeSubmitter, feed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON lines, however they come, are answered in their order; what is none is an error among them."""

    def reply(envelope: Envelope) -> list[Reply | Exception]:
        if envelope.data.get("n") == 2:
            return [Reply("error", {"error": {"code": "invalid_request"}})]
        return [Reply("chunk", {}), Reply("result", {"n": envelope.data.get("n")})]

    fake.reply = reply
    feed(b'{"n": 1}\n{"n"', b": 2}\n\n", b"nonsense\n[]\n", b'{"n": 3}')
    assert submit(URL, "health") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("n", line.get("error", {}).get("code")) for line in lines] == [
        1,
        "invalid_request",
        "invalid_request",
        "invalid_request",
        3,
    ]


def test_many_are_waited_for_together(fake: FakeSubmitter, feed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to a bound; none is sent before there is room."""
    fake.pause = 0.2  # long enough to read many lines meanwhile
    fake.reply = lambda envelope: [Reply("result", envelope.data)]
    feed(b"".join(b'{"n": %d}\n' % number for number in range(300)))
    assert submit(URL, "health") == 0
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == list(range(300))
    assert 32 < fake.most <= submit_command._MAX_IN_FLIGHT + 3


def test_an_answer_is_printed_when_it_is_there(fake: FakeSubmitter, feed: Any, capsys: Any) -> None:
    """Not when the next line comes."""
    printed = threading.Event()
    fake.reply = lambda envelope: [Reply("result", envelope.data)]
    writing = feed(b'{"n": 1}\n', close=False)

    def then() -> None:
        while not capsys.readouterr().out:
            time.sleep(0.005)
        printed.set()
        os.close(writing)

    thread = threading.Thread(target=then)
    thread.start()
    assert submit(URL, "health") == 0
    thread.join()
    assert printed.is_set()


def test_ids(fake: FakeSubmitter, feed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """--no-wait prints what the answers can be asked for with; --id is one message's."""
    feed(b"{}\n{}\n")
    assert submit(URL, "health", "--no-wait") == 0
    assert capsys.readouterr().out.split() == [envelope.id for envelope in fake.sent]
    assert fake.waits == [False, False]
    feed(b"{}\n{}\n")
    with pytest.raises(ServiceError, match="--id"):
        submit(URL, "health", "--id", "x")


def test_an_answer_that_does_not_come(fake: FakeSubmitter, capsys: pytest.CaptureFixture[str]) -> None:
    """--timeout ends the waiting with an error that says how to ask again."""
    fake.pause = 60
    assert submit(URL, "health", "{}", "--timeout", "0.01", "--id", "x") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "deadline_exceeded"
    assert "--id x" in error["message"]
    assert fake.open_now == 0


@pytest.mark.parametrize("when", ["open", "wait"])
def test_a_broker_that_is_away(fake: FakeSubmitter, when: str) -> None:
    """One line that says so; nothing is left open."""
    if when == "open":
        fake.failure = BrokerUnavailable("connection refused")
    else:
        fake.reply = lambda envelope: [BrokerUnavailable("connection refused")]
    with pytest.raises(ServiceError, match="the broker is unavailable: connection refused"):
        submit(URL, "health", "{}")
    assert fake.closed


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing", "{}"],
        [URL],
        [URL, "health", "{}", "more"],
        ["load_model", "{}", "--stream"],
        ["chat", "--no-wait", "--stream"],
    ],
)
def test_wrong_words(fake: FakeSubmitter, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        submit(*arguments)
    assert caught.value.code == 2
    assert "usage: warmstart submit" in capsys.readouterr().err


def pieces(texts: list[str], *, first: int = 0, attempt: int = 1) -> list[Reply]:
    """Chunks of a text."""
    return [Reply("chunk", {"index": 0, "text": text}, number, attempt) for number, text in enumerate(texts, first)]


RESULT = Reply("result", {"text": "one two three"})
WHOLE = ["one", " two", " three"]


@pytest.mark.parametrize(
    ("replies", "printed"),
    [
        pytest.param([*pieces(WHOLE), RESULT], "one two three", id="all there"),
        pytest.param([RESULT], "one two three", id="none there"),
        pytest.param([*pieces(WHOLE[:1]), *pieces(WHOLE[2:], first=2), RESULT], "one two three", id="one missing"),
        pytest.param([*pieces(WHOLE), *pieces(WHOLE), RESULT], "one two three", id="twice"),
        pytest.param([*pieces(WHOLE[:2]), *pieces(WHOLE, attempt=2), RESULT], "one two three", id="taken over"),
        pytest.param(
            [*pieces(WHOLE[:2]), *pieces(["on", "e tw", "o three"], attempt=2), RESULT], "one two three", id="cut"
        ),
        pytest.param([*pieces(WHOLE, attempt=2), *pieces(WHOLE), RESULT], "one two three", id="back from the dead"),
        pytest.param(
            [*pieces(["one", " six"]), *pieces(WHOLE, attempt=2), RESULT], "one six\none two three", id="other"
        ),
    ],
)
def test_a_text_as_it_comes(
    fake: FakeSubmitter, replies: list[Reply], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is lost or comes twice, the text is printed once and whole."""
    fake.reply = lambda envelope: list(replies)
    assert submit(URL, "generate", '{"prompt": "one"}', "--stream") == 0
    assert capsys.readouterr().out == f"{printed}\n"
    assert fake.sent[0].stream


def test_it_is_shown_at_once() -> None:
    """Piece by piece, not at the end."""
    shown = PrintedText()
    assert [shown.add(reply) for reply in pieces(WHOLE)] == WHOLE
    assert shown.add(RESULT) == ""


def test_a_text_that_ends_with_an_error(fake: FakeSubmitter, capsys: pytest.CaptureFixture[str]) -> None:
    """The error goes to standard error; the next line begins on its own."""
    error = Reply("error", {"error": {"message": "too bad"}})
    fake.reply = lambda envelope: [*pieces(WHOLE[:1]), error]
    assert submit(URL, "generate", "{}", "--stream") == 1
    assert capsys.readouterr() == ("one\n", "warmstart: too bad\n")


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ({"index": 0, "text": "a", "finish_reason": None}, "a"),
        ({"index": 1, "text": "b"}, ""),
        ({"model": "m", "usage": {}}, ""),
        ({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}, ""),
        ({"choices": [{"index": 0, "delta": {"content": "c"}}]}, "c"),
        ({"choices": [{"index": 1, "delta": {"content": "d"}}]}, ""),
        ({"choices": [{"index": 0, "text": "e"}]}, "e"),
        ({"choices": [], "usage": {}}, ""),
    ],
)
def test_pieces_of_every_kind(chunk: Mapping[str, Any], text: str) -> None:
    """The first sequence's text."""
    assert piece_of(chunk) == text


@pytest.mark.parametrize(
    "answer",
    [{"text": "a", "sequences": []}, {"choices": [{"message": {"content": "a"}}]}, {"choices": [{"text": "a"}]}],
)
def test_texts_of_every_kind(answer: Mapping[str, Any]) -> None:
    """The first sequence's text."""
    assert text_of(answer) == "a"
