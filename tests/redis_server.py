"""The real Redis of the tests: where it is, names of a test's own in it, and a skip that says how to start one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


@contextmanager
def real_redis(**options: Any) -> Iterator[redis.Redis]:
    """A client of it, with these options; skips the test where none answers."""
    server = redis.Redis.from_url(REDIS_URL, socket_connect_timeout=1, **options)
    try:
        try:
            server.ping()
        except redis.RedisError:
            pytest.skip("no Redis answers at REDIS_URL; start one: redis-server --port 6379 --save '' --appendonly no")
        yield server
    finally:
        server.close()


@contextmanager
def own_names(form: str = "{}") -> Iterator[str]:
    """How the names of one test begin; what is left under them goes with it.

    Args:
        form: with a pair of braces where what is the test's own stands.
    """
    with real_redis() as server:
        prefix = form.format(f"warmstart-test:{uuid4().hex}")
        yield prefix
        if left := list(server.scan_iter(f"{prefix}*")):
            server.delete(*left)
