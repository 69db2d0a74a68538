"""Responses of OpenAI's Responses API that are kept, so that later requests can read and continue them.

Each caller has its own. They are lost when they are too old or the store is full, and with the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from handlers.context import Context
from handlers.schemas.responses_api import ResponsesRequest
from runtime.errors import NotFound


def is_kept(request: ResponsesRequest, ctx: Context) -> bool:
    """Whether the response to a request is kept."""
    return request.store and ctx.responses is not None


def continued(request: ResponsesRequest, payload: Mapping[str, Any], ctx: Context) -> Mapping[str, Any]:
    """Return a payload whose input begins with the conversation that the request continues.

    Args:
        request: the validated request.
        payload: the payload that it was read from.
        ctx: the operation's context.

    Raises:
        NotFound: the previous response is not kept.
    """
    if request.previous_response_id is None:
        return payload
    earlier = _load(request.previous_response_id, ctx, "previous_response_id")
    return {**payload, "input": [*earlier["items"], *earlier["response"]["output"], *_items(payload)]}


def save(payload: Mapping[str, Any], response: Mapping[str, Any], ctx: Context) -> None:
    """Keep a response and the conversation that led to it.

    Args:
        payload: the request's payload, from ``continued``.
        response: the finished response.
        ctx: the operation's context, which has a store.
    """
    assert ctx.responses is not None
    record = json.dumps({"items": _items(payload), "response": response}).encode()
    ctx.responses.put(_key(response["id"], ctx), response["model"], record)


def load(response_id: str, ctx: Context) -> dict[str, Any]:
    """Return a response that is kept.

    Raises:
        NotFound: it is not kept.
    """
    response: dict[str, Any] = _load(response_id, ctx, "response_id")["response"]
    return response


def remove(response_id: str, ctx: Context) -> None:
    """Forget a response.

    Raises:
        NotFound: it is not kept.
    """
    if ctx.responses is None or not ctx.responses.remove(prefix=_key(response_id, ctx)):
        raise _missing("response_id")


def _load(response_id: str, ctx: Context, field: str) -> dict[str, Any]:
    found = None if ctx.responses is None else ctx.responses.get(_key(response_id, ctx))
    if found is None:
        raise _missing(field)
    record: dict[str, Any] = json.loads(found)
    return record


def _missing(field: str) -> NotFound:
    return NotFound(
        f"{field}: there is no such response; the service keeps up to RESPONSES_STORE_BYTES of them, for "
        "RESPONSES_STORE_TTL_SECONDS",
        param=field,
    )


def _items(payload: Mapping[str, Any]) -> list[Any]:
    given = payload["input"]
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _key(response_id: str, ctx: Context) -> str:
    return sha256(f"{ctx.caller()}\n{response_id}".encode()).hexdigest()
