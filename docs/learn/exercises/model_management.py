"""Exercise: several models in one memory budget. See docs/learn/model_management.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager


class TooLarge(Exception):
    """The model does not fit into the budget even alone."""


class Pool:
    """Loads models when they are asked for.

    Args:
        sizes: the size of each model.
        load: loads a model by name, which takes a while.
        budget: the size of all loaded models together, also while one is being loaded.
    """

    def __init__(self, sizes: Mapping[str, int], load: Callable[[str], Awaitable[object]], budget: int) -> None:
        self._load = load
        self._models: dict[str, object] = {}

    @property
    def loaded(self) -> set[str]:
        """The names of the loaded models."""
        return set(self._models)

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[object]:
        """Lend a model; while it is lent it is not unloaded.

        A model that is not loaded is loaded once, however many ask for it. If there is no room, the least recently used
        models that are not lent are unloaded; if all are lent, the caller waits until one is returned. A failed load
        raises its error for those who wait for it, and the next lease tries again.

        Raises:
            KeyError: there is no such model.
            TooLarge: it is larger than the budget; nothing is unloaded for it.
        """
        if name not in self._models:
            self._models[name] = await self._load(name)
        yield self._models[name]
