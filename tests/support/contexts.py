"""Contexts of operations with real models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from handlers.context import Context
from handlers.local import build_context
from runtime.settings import Settings


@asynccontextmanager
async def real(**settings: Any) -> AsyncIterator[Context]:
    """A real context, closed in the end."""
    ctx = build_context(Settings.load(device="cpu", dtype="float32", preload=False, **settings))
    try:
        yield ctx
    finally:
        await asyncio.to_thread(ctx.models.close)  # type: ignore[attr-defined]
