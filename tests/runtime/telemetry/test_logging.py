"""Log lines: whole, attributable, and not forgeable."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from runtime.telemetry.logging import log_facts, setup_logging
from runtime.telemetry.request_scope import request_facts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


def lines(style: str, stream: io.StringIO) -> list[str]:
    setup_logging(style, "INFO", stream)
    log = logging.getLogger("test")
    token = request_facts.set({"request_id": "r1", "trace_id": "t1"})
    log.info("hello %s", "wor\nld", extra={"status": 200})
    request_facts.reset(token)
    log.debug("not shown")
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("failed")
    return stream.getvalue().splitlines()


def test_json_lines_carry_the_request_and_the_facts() -> None:
    """One object per line, with request id, trace id and extras; line breaks in a message do not break the line."""
    first, second = (json.loads(line) for line in lines("json", io.StringIO()))
    assert first["message"] == "hello wor\nld"
    assert (first["request_id"], first["trace_id"], first["status"]) == ("r1", "t1", 200)
    assert first["time"].endswith("Z")
    assert "request_id" not in second
    assert "ValueError: inner" in second["exception"]


@pytest.mark.parametrize("style", ["json", "console"])
def test_facts_that_stand_together(style: str) -> None:
    """They are shown as ``extra`` is, whatever they are, and so is what they belong to."""
    facts = {"a": 'x"\r\n\ud800', "b": 1, "c": 1.25, "d": None, "e": True, "f": [1, {"g": "h"}], "i\n": float("inf")}
    stream = io.StringIO()
    setup_logging(style, "INFO", stream)
    log = logging.getLogger("test")
    token = request_facts.set({"request_id": "r1"})
    log_facts(log, logging.INFO, "100%\n", facts)
    log.info("100%%\n%s", "", extra=facts)
    request_facts.reset(token)
    together, apart = stream.getvalue().splitlines()
    if style == "json":
        found = json.loads(together)
        assert found.pop("time")
        assert found == {"level": "INFO", "logger": "test", "message": "100%\n", "request_id": "r1", **facts}
    clock = len("2023-11-14T22:13:20.000Z") + len('{"time": "')
    assert together[clock:] == apart[clock:]


def test_others_that_listen_get_records_of_facts() -> None:
    """Whoever adds a handler or a filter, to any logger on the way, sees such a line as a record like any other."""
    seen: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append(record)
            return True

    stream, listener, filter_ = io.StringIO(), Listener(), Filter()
    setup_logging("json", "INFO", stream)
    log = logging.getLogger("test.inner")
    for place in (logging.root, logging.getLogger("test"), log):
        place.addHandler(listener)
        log_facts(log, logging.INFO, "100%", {"status": 200})
        place.removeHandler(listener)
    for filtered in (log, logging.root.handlers[0]):
        filtered.addFilter(filter_)
        log_facts(log, logging.INFO, "100%", {"status": 200})
        filtered.removeFilter(filter_)
    assert [(record.getMessage(), vars(record)["status"]) for record in seen] == [("100%", 200)] * 5
    log_facts(log, logging.INFO, "100%", {"status": 200})
    assert len(seen) == 5
    assert [json.loads(line)["status"] for line in stream.getvalue().splitlines()] == [200] * 6


def test_facts_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """They end no request: the trouble is told where logging tells its own, and the next line is written."""

    class Untold:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    stream = io.StringIO()
    setup_logging("json", "INFO", stream)
    log = logging.getLogger("test")
    log_facts(log, logging.INFO, "lost", {"what": Untold()})
    log_facts(log, logging.INFO, "kept", {})
    assert "no text" in capsys.readouterr().err
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["kept"]


def test_console_lines_cannot_be_forged() -> None:
    """Control characters are escaped, so that a message cannot pretend to be another line or move the cursor."""
    first = lines("console", io.StringIO())[0]
    assert r"wor\nld" in first
    assert "request_id=r1" in first
    assert "status=200" in first
    out = io.StringIO()
    setup_logging("console", "INFO", out)
    try:
        raise ValueError("a\x1b[2Jb\nc")
    except ValueError:
        logging.getLogger("test").exception("failed")
    assert "\x1b" not in out.getvalue()
    assert all(
        line.startswith("  ") for line in out.getvalue().splitlines()[1:]
    )  # nothing looks like a line of its own


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
def test_auto_is_console_on_a_terminal_only(stream: io.StringIO, is_json: bool) -> None:
    """Programs get JSON, people get text."""
    assert lines("auto", stream)[0].startswith("{") == is_json
