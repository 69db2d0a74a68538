"""Structured logs: one JSON object or one console line per record, with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import Any, TextIO

from runtime.telemetry.request_scope import request_facts

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


def log_facts(log: logging.Logger, level: int, message: str, facts: dict[str, Any]) -> None:
    """Log one line as ``log.log`` does with ``extra``; twice as fast if ``setup_logging``'s handler is the only one.

    Args:
        log: the logger; the caller checks that it is enabled for the level.
        level: the line's level.
        message: the complete message; it is not formatted.
        facts: the fields that ``extra`` would have.
    """
    lines = _only_lines(log)
    if lines is None:  # other handlers or filters need log records
        log.log(level, "%s", message, extra=facts)
    else:
        lines.put(level, log.name, message, facts)


def _only_lines(log: logging.Logger) -> _Lines | None:
    """Return ``setup_logging``'s handler if it alone gets a logger's records and nothing filters them."""
    if log.filters:
        return None
    on_the_way: logging.Logger | None = log
    while on_the_way is not logging.root:
        if on_the_way is None or on_the_way.handlers or not on_the_way.propagate:
            return None
        on_the_way = on_the_way.parent
    handlers = logging.root.handlers
    if len(handlers) != 1 or not isinstance(only := handlers[0], _Lines) or only.filters or only.level:
        return None
    return only


class _Formatter(logging.Formatter, ABC):
    """Base class of the formatters: adds the request's facts to each line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as one line, with its ``extra`` fields and its exception."""
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        trace = self.formatException(record.exc_info) if record.exc_info else None
        return self.line(record.created, record.levelname, record.name, record.getMessage(), extra, trace)

    @abstractmethod
    def line(
        self, created: float, level: str, logger: str, message: str, extra: dict[str, Any], trace: str | None = None
    ) -> str:
        """Format one line, without its line break.

        Args:
            created: Unix time in seconds.
            level: the level's name.
            logger: the logger's name.
            message: the complete message.
            extra: the line's own facts, which follow those of the request.
            trace: an exception's formatted traceback.
        """


class JsonFormatter(_Formatter):
    """Formats one JSON object per line; control characters are escaped, so that lines cannot be forged."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(default=str).encode
        self._second, self._clock = -1, ""

    def line(
        self, created: float, level: str, logger: str, message: str, extra: dict[str, Any], trace: str | None = None
    ) -> str:
        """Format one line as a JSON object."""
        second = int(created)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        line = (
            f'{{"time": "{self._clock}.{int((created - second) * 1e3):03d}Z", "level": "{level}"'
            f', "logger": {encode_basestring_ascii(logger)}, "message": {encode_basestring_ascii(message)}'
        )
        for name, value in ((request_facts.get() or {}) | extra).items():
            # Nearly all facts are of these types; the encoder would take 4 us longer per line.
            if value is None:
                text = "null"
            elif isinstance(value, str):
                text = encode_basestring_ascii(value)
            elif type(value) is int or (type(value) is float and isfinite(value)):
                text = repr(value)
            else:
                text = self._encode(value)
            line += f", {encode_basestring_ascii(name)}: {text}"
        if trace is not None:
            line += f', "exception": {encode_basestring_ascii(trace)}'
        return line + "}"


class _Lines(logging.StreamHandler[TextIO]):
    """A StreamHandler that takes its lock once per line instead of three times, and can write without a record."""

    formatter: _Formatter

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and write its line to the stream."""
        try:
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except Exception:
            self.handleError(record)

    def put(self, level: int, logger: str, message: str, facts: dict[str, Any]) -> None:
        """Write a line without a log record; the arguments are those of ``log_facts``."""
        try:
            with self.lock or nullcontext():
                line = self.formatter.line(time.time(), logging.getLevelName(level), logger, message, facts)
                self.stream.write(line + self.terminator)
                self.stream.flush()
        except Exception:
            self.handleError(logging.LogRecord(logger, level, "", 0, message, None, sys.exc_info()))


class ConsoleFormatter(_Formatter):
    """Formats lines for people: time, level, message, then the facts. Control characters are escaped here too."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def line(
        self, created: float, level: str, logger: str, message: str, extra: dict[str, Any], trace: str | None = None
    ) -> str:
        """Format one line for a terminal; a traceback follows on indented lines."""
        start = _COLOURS.get(level, "") if self._colour else ""
        known = (request_facts.get() or {}) | extra
        facts = "".join(f" {key}={value}" for key, value in known.items() if value is not None)
        clock = time.strftime("%H:%M:%S", time.localtime(created))
        line = f"{clock} {level:<7} {message}{facts}"
        line = start + _printable(line) + ("\x1b[0m" if start else "")
        return "\n  ".join([line, *map(_printable, trace.splitlines() if trace else [])])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def setup_logging(style: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logs to one stream.

    Args:
        style: ``json``, ``console``, or ``auto`` (console on a terminal).
        level: the name of the least severe level to log.
        stream: the stream, by default standard error.
    """
    # No formatter shows these fields, so they are not collected for each record (logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = stream or sys.stderr
    tty = stream.isatty()
    handler = _Lines(stream)
    console = style == "console" or (style == "auto" and tty)
    handler.setFormatter(ConsoleFormatter(colour=tty) if console else JsonFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for chatty in ("asyncio", "httpx", "httpcore", "filelock", "urllib3", "huggingface_hub", "aio_pika", "aiormq"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs errors every second that it also raises once
