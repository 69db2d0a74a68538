"""Structured logs: one JSON object or one console line per record, each with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import Any, TextIO

# Facts about the request being served, copied into every record logged on its behalf: request_id, trace_id.
request_facts: ContextVar[dict[str, Any] | None] = ContextVar("request_facts", default=None)
# What the request has cost so far, for its access line; filled in by whoever generates.
request_usage: ContextVar[dict[str, Any] | None] = ContextVar("request_usage", default=None)
# Tells the request's caller from others; "" where callers need not be told apart.
request_caller: ContextVar[str] = ContextVar("request_caller", default="")

Charge = Callable[[int], Awaitable[Callable[[int], Awaitable[None]]]]
"""The most tokens that a generation can cost -> what is to be told, once, how many it did cost."""

# Charges the request's caller for tokens before they are computed; None where nobody is charged.
request_charge: ContextVar[Charge | None] = ContextVar("request_charge", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


class FactsRecord(logging.LogRecord):
    """A record whose facts stand together: ``extra`` of a logging call is copied one by one, and must be found again.

    Args:
        log: that is to handle it.
        level: of the record.
        message: as it is, nothing is put into it.
        facts: what ``extra`` would be.
    """

    def __init__(self, log: logging.Logger, level: int, message: str, facts: dict[str, Any]) -> None:
        super().__init__(log.name, level, "", 0, message, None, None)
        self.facts = facts


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    if isinstance(record, FactsRecord):
        extra = record.facts
    else:
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return (request_facts.get() or {}) | extra


class JsonFormatter(logging.Formatter):
    """One JSON object per line; control characters are escaped, so a line cannot be forged."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(default=str).encode
        self._second, self._clock = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        second = int(record.created)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        line = (
            f'{{"time": "{self._clock}.{int((record.created - second) * 1e3):03d}Z", "level": "{record.levelname}"'
            f', "logger": {encode_basestring_ascii(record.name)}'
            f', "message": {encode_basestring_ascii(record.getMessage())}'
        )
        for name, value in _facts(record).items():
            line += f", {encode_basestring_ascii(name)}: {self._json(value)}"
        if record.exc_info:
            line += f', "exception": {encode_basestring_ascii(self.formatException(record.exc_info))}'
        return line + "}"

    def _json(self, value: object) -> str:
        """Without the encoder, which takes 4 us longer for a line, for what nearly all facts are."""
        if isinstance(value, str):
            return encode_basestring_ascii(value)
        if value is None:
            return "null"
        if type(value) is int or (type(value) is float and isfinite(value)):
            return repr(value)
        return self._encode(value)


class _Lines(logging.StreamHandler[TextIO]):
    """A StreamHandler that takes its lock once for a line, not thrice."""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        try:
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except Exception:
            self.handleError(record)


class ConsoleFormatter(logging.Formatter):
    """For people: time, level, message, then the facts. Control characters are escaped here too."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        start = _COLOURS.get(record.levelname, "") if self._colour else ""
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items() if value is not None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname:<7} {record.getMessage()}{facts}"
        line = start + _printable(line) + ("\x1b[0m" if start else "")
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n  ".join([line, *map(_printable, trace)])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def setup_logging(style: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logs to one stream.

    Args:
        style: ``json``, ``console``, or ``auto`` (console on a terminal).
        level: least severe level to log.
        stream: standard error if left out.
    """
    # What nothing here shows need not be found out for each record (the logging HOWTO's "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = stream or sys.stderr
    tty = stream.isatty()
    handler = _Lines(stream)
    console = style == "console" or (style == "auto" and tty)
    handler.setFormatter(ConsoleFormatter(colour=tty) if console else JsonFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for chatty in ("asyncio", "httpx", "httpcore", "filelock", "urllib3", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
