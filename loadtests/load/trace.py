"""Reads recorded traces: the moments of requests and the lengths of their prompts and answers.

Two public forms are known: JSON lines with ``timestamp`` in milliseconds, ``input_length`` and ``output_length``
(Mooncake's), and CSV with ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens`` (Azure's LLM inference traces),
whose timestamp is a date or a number of seconds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, Field

_MOST_ROWS = 1_000_000


class TraceRow(BaseModel):
    """One request of a trace."""

    at: float = Field(ge=0)
    """Seconds from the first request."""
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)


def read_trace(folder: str, file: str, speed: float = 1.0, seconds: float | None = None) -> list[TraceRow]:
    """Read a trace, ordered by time from its first request on.

    Args:
        folder: the folder that ``file`` is relative to.
        file: the file's name, ending with ``.jsonl`` or ``.csv``.
        speed: how many times faster its time passes.
        seconds: leave out what comes later, after ``speed``.

    Raises:
        ValueError: it is missing, of another kind, empty, too long, or has a wrong row, which is named.
    """
    path = Path(folder) / file
    readers = {".jsonl": _mooncake, ".csv": _azure}
    if path.suffix not in readers:
        raise ValueError(f"trace {file}: its name must end with .jsonl or .csv")
    rows: list[tuple[float, int, int]] = []
    number = 0
    try:
        for number, row in enumerate(readers[path.suffix](path), 1):
            if number > _MOST_ROWS:
                raise ValueError(f"more than {_MOST_ROWS} requests")
            rows.append(row)
    except OSError as error:
        raise ValueError(f"trace {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"trace {file}: request {number + 1}: {error!r}") from None
    if not rows:
        raise ValueError(f"trace {file}: it has no request")
    rows.sort()
    moved = [(at - rows[0][0]) / speed for at, _, _ in rows]
    return [
        TraceRow(at=at, prompt_tokens=max(1, prompt), output_tokens=max(1, output))
        for at, (_, prompt, output) in zip(moved, rows, strict=True)
        if seconds is None or at < seconds
    ]


def _mooncake(path: Path) -> Iterator[tuple[float, int, int]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                row = json.loads(line)
                yield float(row["timestamp"]) / 1000, int(row["input_length"]), int(row["output_length"])


def _azure(path: Path) -> Iterator[tuple[float, int, int]]:
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield _seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text[:26])  # the trace has seven digits behind the point, Python knows six
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
