"""Structured logs: one JSON object or one console line per record, each with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

# Facts about the request being served, copied into every record logged on its behalf: request_id, trace_id.
request_facts: ContextVar[dict[str, Any] | None] = ContextVar("request_facts", default=None)
# What the request has cost so far, for its access line; filled in by whoever generates.
request_usage: ContextVar[dict[str, Any] | None] = ContextVar("request_usage", default=None)
# Tells the request's caller from others; "" where callers need not be told apart.
request_caller: ContextVar[str] = ContextVar("request_caller", default="")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return (request_facts.get() or {}) | extra


class JsonFormatter(logging.Formatter):
    """One JSON object per line; control characters are escaped, so a line cannot be forged."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        seconds, fraction = divmod(record.created, 1)
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1e3):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


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
    stream = stream or sys.stderr
    tty = stream.isatty()
    handler = logging.StreamHandler(stream)
    console = style == "console" or (style == "auto" and tty)
    handler.setFormatter(ConsoleFormatter(colour=tty) if console else JsonFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for chatty in ("asyncio", "httpx", "httpcore", "filelock", "urllib3", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
