"""Ways to damage a database file."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest


def damages(table: str) -> list[Any]:
    """Return pytest parameters, each a function that damages the file in one way.

    Args:
        table: a table of the file, which one of the functions drops.
    """
    return [
        pytest.param(lambda path: path.write_bytes(b"no database at all, " * 500), id="another file"),
        pytest.param(lambda path: _overwrite(path, 0, 4096), id="header"),
        pytest.param(lambda path: _overwrite(path, 4096, 60_000), id="pages"),
        pytest.param(lambda path: os.truncate(path, 8192), id="cut"),
        pytest.param(lambda path: _execute(path, "PRAGMA user_version = 99"), id="format"),
        pytest.param(lambda path: _execute(path, f"DROP TABLE {table}"), id="table"),
    ]


def _overwrite(path: Path, start: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * count)


def _execute(path: Path, statement: str) -> None:
    sqlite3.connect(path).execute(statement).connection.close()
