"""Judges the new endpoint over HTTP."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from docs.learn.service import create_app


async def _ask(exercise: ModuleType, body: str) -> tuple[int, Any]:
    async with TestClient(TestServer(create_app(add=exercise.add))) as client:
        response = await client.post("/count", data=body, headers={"content-type": "application/json"})
        assert response.content_type == "application/json", f"{response.status} with {response.content_type}"
        return response.status, await response.json()


async def _refused(exercise: ModuleType, body: str, field: str | None) -> None:
    status, answer = await _ask(exercise, body)
    assert status == 400, f"{body} is answered with {status}"
    assert answer["error"]["param"] == field, f"{body}: param is {answer['error']['param']!r}"
    assert answer["error"]["message"], "no message"


async def check_count(exercise: ModuleType) -> None:
    """A text's words are counted."""
    assert await _ask(exercise, '{"text": "one two  three"}') == (200, {"words": 3})


async def check_missing(exercise: ModuleType) -> None:
    """A missing text is a 400 whose param is text."""
    await _refused(exercise, "{}", "text")


async def check_type(exercise: ModuleType) -> None:
    """A number is not taken for a text."""
    await _refused(exercise, '{"text": 5}', "text")


async def check_unknown(exercise: ModuleType) -> None:
    """An unknown field is refused by name, because a misspelled one would be ignored otherwise."""
    await _refused(exercise, '{"text": "a", "txet": "b"}', "txet")


async def check_limits(exercise: ModuleType) -> None:
    """An empty text and one of more than 1,000 characters are refused; one of 1,000 is not."""
    await _refused(exercise, '{"text": ""}', "text")
    await _refused(exercise, '{"text": "%s"}' % ("a" * 1001), "text")
    assert (await _ask(exercise, '{"text": "%s"}' % ("a" * 1000)))[0] == 200


async def check_json(exercise: ModuleType) -> None:
    """A body that is not a JSON object is a 400 without a field."""
    await _refused(exercise, "{", None)
    await _refused(exercise, "[]", None)
