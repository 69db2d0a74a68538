"""Clients that stream in a closed loop, and what became of their requests, for ``loadtests.ray_bench`` and tests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp


class Load:
    """A closed loop of clients that stream, and what became of their requests.

    Args:
        url: the service's base URL.
        payload: returns the payload of a request, given its number; streamed from ``/complete``.

    Attributes:
        outcomes: counts of ``ok``, ``before`` (failed before the first event), ``after`` (ended by an error event),
            ``broken`` (ended without one).
    """

    def __init__(self, url: str, payload: Callable[[int], dict[str, Any]]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._url, self._payload = url, payload
        self._begun = 0
        self._ending = False

    async def run(self, clients: int, work: Callable[[], Any], requests: int = 0) -> float:
        """Run the clients while ``work`` runs in a thread, and until there were so many requests; returns seconds."""
        start = time.perf_counter()
        connector = aiohttp.TCPConnector(limit=clients)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
            tasks = [asyncio.create_task(self._client(session)) for _ in range(clients)]
            await asyncio.to_thread(work)
            while self.outcomes.total() < requests:  # noqa: ASYNC110 - the clients count
                await asyncio.sleep(0.05)
            self._ending = True
            await asyncio.gather(*tasks)
        return time.perf_counter() - start

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._ending:
            self._begun += 1
            outcome, reason = await self._request(session, self._payload(self._begun))
            self.outcomes[outcome] += 1
            if reason:
                self.reasons[reason] += 1

    async def _request(self, session: aiohttp.ClientSession, payload: dict[str, Any]) -> tuple[str, str]:
        events = 0
        try:
            async with session.post(f"{self._url}/complete", json=payload | {"stream": True}) as response:
                if response.status != 200:
                    return "before", f"{response.status} {(await response.text())[:200]}"
                async for line in response.content:
                    if line.startswith(b'data: {"error"'):
                        return ("after" if events else "before"), line.decode()[:200]
                    if line.startswith(b"data: [DONE]"):
                        return "ok", ""
                    events += line.startswith(b"data:")
                return ("broken" if events else "before"), "the stream ended"
        except (aiohttp.ClientError, TimeoutError) as error:
            return ("broken" if events else "before"), type(error).__name__
