"""Batches in tests: a context with stored files, and input files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from handlers.context import Context
from handlers.dispatch.batches import open_files
from runtime.batch_types import StoredBatch, StoredFile
from runtime.batches.batches import BatchStore
from runtime.batches.database import BatchDatabase
from runtime.batches.files import FileStore
from runtime.settings import Settings
from tests.support.fakes import fake_context

CREATED = 1_700_000_000  # by the clock of ``fake_context``


def opened(folder: Path, ctx: Context, **settings: Any) -> tuple[BatchDatabase, FileStore]:
    """Open the files of a folder; arguments as for ``storing``."""
    found = open_files(Settings.load(files_dir=folder, **settings), ctx.clock.time)
    assert found is not None
    return found


def storing(folder: Path, ctx: Context | None = None, **settings: Any) -> Context:
    """Return a context with files and batches in a folder.

    Args:
        folder: the folder.
        ctx: the context; a fake one by default.
        settings: settings that differ from the defaults.
    """
    ctx = ctx or fake_context()
    database, files = opened(folder, ctx, **settings)
    return replace(ctx, files=files, batches=BatchStore(database, files, ctx.clock.time))


@cache
def _folders() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="warmstart-batches-")


@cache
def _prepared(owner: str) -> Path:
    """A folder with the file ``file-1`` and the batch ``batch_1``, which has not begun."""
    folder = Path(_folders().name) / f"prepared-{owner.replace(':', '-')}"
    database, files = opened(folder, fake_context())
    files.add_now(StoredFile("file-1", owner, "in.jsonl", "batch", 0, CREATED), input_text(chats(1)))
    BatchStore(database, files, lambda: CREATED).create_now(
        StoredBatch("batch_1", owner, "file-1", "/v1/chat/completions", "24h", CREATED, CREATED + 86_400)
    )
    files.add_now(StoredFile("file-2", owner, "unused.jsonl", "batch", 0, CREATED), "é\n")
    database.close()
    return folder


def with_batches(ctx: Context, owner: str = "") -> Context:
    """Return a context with the file ``file-1``, which the batch ``batch_1`` reads, and ``file-2``.

    Args:
        ctx: the context, with the clock of ``fake_context``.
        owner: the caller to whom they belong.
    """
    folder = tempfile.mkdtemp(dir=_folders().name)
    shutil.copytree(_prepared(owner), folder, dirs_exist_ok=True)
    return storing(Path(folder), ctx)


def input_text(bodies: Sequence[Mapping[str, Any]], url: str = "/v1/chat/completions") -> str:
    """Return an input file whose rows have the ids ``row-0``, ``row-1``, ..."""
    rows = (
        {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": body} for number, body in enumerate(bodies)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def chats(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Return bodies of chat completions, each with another message."""
    return [{"messages": [{"role": "user", "content": f"x{number}"}]} | fields for number in range(count)]
