"""Pages of lists in order of creation, with the id of the last known entry as the cursor."""

from __future__ import annotations

import sqlite3
from typing import Any

from runtime.batch_types import PageRequest
from runtime.errors import InvalidRequest


def page_of(
    database: sqlite3.Connection, table: str, columns: str, where: dict[str, Any], page: PageRequest
) -> tuple[list[tuple[Any, ...]], bool]:
    """Return rows of a table in order of ``number``, and whether there are more behind them.

    Args:
        database: the database.
        table: the table's name, which has ``id``, ``owner`` and ``number``.
        columns: the columns to return.
        where: values that columns must have.
        page: the page.

    Raises:
        InvalidRequest: there is no entry with the id ``after``.
    """
    conditions, values = [f"{name} = ?" for name in where], list(where.values())
    if page.after is not None:
        found = database.execute(
            f"SELECT number FROM {table} WHERE id = ? AND owner = ?",  # noqa: S608 - names of ours
            (page.after, where["owner"]),
        ).fetchone()
        if found is None:
            raise InvalidRequest(f"after: there is no entry {page.after!r} in this list", param="after")
        conditions.append("number < ?" if page.descending else "number > ?")
        values.append(found[0])
    order = "DESC" if page.descending else "ASC"
    rows = database.execute(
        f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)} "  # noqa: S608 - names of ours
        f"ORDER BY number {order} LIMIT ?",
        (*values, page.limit + 1),
    ).fetchall()
    return rows[: page.limit], len(rows) > page.limit
