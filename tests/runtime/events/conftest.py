"""Fixtures of the tests of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runtime.events.queues.base import QueueOptions
from tests.support.nats_server import NatsServer, own_nats_server, own_streams


@pytest.fixture
async def options() -> AsyncIterator[QueueOptions]:
    """Streams of this test's own on the shared server."""
    async with own_streams() as found:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server of this test's own."""
    with own_nats_server(tmp_path) as found:
        yield found
