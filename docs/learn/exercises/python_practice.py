"""Exercise: structured concurrency. See docs/learn/python_practice.md."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_limited(function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], limit: int) -> list[Result]:
    """Call a function for each item, at most ``limit`` of them at once.

    Returns:
        The results in the order of the items.

    Raises:
        ValueError: limit is less than 1.
        Exception: what a call has raised first, after all others are cancelled and have ended.
    """
    return await asyncio.gather(*[function(item) for item in items])
