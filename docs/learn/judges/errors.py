"""Judges the rendering of errors over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from docs.learn.service import create_app


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _log() -> Iterator[list[logging.LogRecord]]:
    kept, logger = _Kept(), logging.getLogger("learn")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(kept)
    try:
        yield kept.records
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagate


async def _raised(exercise: ModuleType, error: Exception) -> tuple[int, Any, Any]:
    async def fail(request: web.Request) -> web.Response:
        raise error

    app = create_app([exercise.render_errors], lambda app: app.router.add_get("/fail", fail) and None)
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/fail")
        assert response.content_type == "application/json", f"{response.status} with {response.content_type}"
        return response.status, (await response.json())["error"], response.headers


async def check_service_error(exercise: ModuleType) -> None:
    """A ServiceError has its own status, code, message and param."""
    status, error, _ = await _raised(exercise, exercise.InvalidRequest("text is empty", "text"))
    assert (status, error) == (400, {"message": "text is empty", "param": "text", "code": "invalid_request"})


async def check_secret(exercise: ModuleType) -> None:
    """Any other exception is a 500 that shows nothing of it."""
    with _log():
        status, error, _ = await _raised(exercise, KeyError("/etc/password"))
    assert (status, error["code"]) == (500, "internal_error")
    assert "password" not in str(error), error


async def check_log(exercise: ModuleType) -> None:
    """The exception is logged once, with its traceback and the request's id, which the answer has, too."""
    with _log() as records:
        _, _, headers = await _raised(exercise, KeyError("/etc/password"))
    assert len(records) == 1, f"{len(records)} records"
    assert records[0].exc_info, "no traceback"
    assert headers.get("X-Request-Id"), "no X-Request-Id"
    assert headers["X-Request-Id"] in records[0].getMessage(), "the log does not name the request"


async def check_callers_mistake(exercise: ModuleType) -> None:
    """A caller's mistake is no incident: nothing is logged as an error."""
    with _log() as records:
        await _raised(exercise, exercise.InvalidRequest("text is empty"))
    assert not [record for record in records if record.levelno >= logging.ERROR]


async def check_not_found(exercise: ModuleType) -> None:
    """aiohttp's own 404 gets the same form, with the code not_found."""
    async with TestClient(TestServer(create_app([exercise.render_errors]))) as client:
        response = await client.get("/nowhere")
        assert response.content_type == "application/json", response.content_type
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")


async def check_cancellation(exercise: ModuleType) -> None:
    """A cancelled request stays cancelled: CancelledError is not an error to render."""

    async def cancelled(_: web.Request) -> web.Response:
        raise asyncio.CancelledError

    with _log() as records:
        try:
            await exercise.render_errors(make_mocked_request("GET", "/"), cancelled)
        except asyncio.CancelledError:
            assert not records, "it was logged"
            return
    raise AssertionError("it was swallowed")
