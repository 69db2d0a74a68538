"""An HTTP request's query or body as an operation's payload, and the response headers of the response cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.api.routes import Route
from runtime.errors import InvalidRequest, UnsupportedMediaType
from runtime.strict_json import loads


def query_payload(route: Route, named: Mapping[str, str], query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The payload of a request without a body.

    Args:
        route: of the request. OpenAI's have no fields in the query, and what its clients put there (``api-version``,
            ``limit``) is not looked at.
        named: fields that the path holds.
        query: values of each name; a field given more than once is a list, which no field takes.
    """
    if route.openai:
        return dict(named)
    return {name: list(found) if len(found) > 1 else found[0] for name, found in query.items()} | dict(named)


def body_payload(
    named: dict[str, str], body: bytes | None, content_type: str, charset: str | None, max_depth: int
) -> dict[str, Any]:
    """The payload of a request that has a body.

    Args:
        named: fields that the path holds; with these, there may be no body.
        body: None if there is none.
        content_type: without parameters.
        charset: its parameter.
        max_depth: see ``loads``.

    Raises:
        UnsupportedMediaType: it is not said to be JSON.
        InvalidRequest: it is no JSON object, or has a field that the path names already.
    """
    if named and body is None:
        return dict[str, Any](named)
    if content_type != "application/json":
        raise UnsupportedMediaType(f"send application/json, not {content_type[:100]!r}")
    if (charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("JSON is UTF-8 (RFC 8259 section 8.1)")
    payload = loads(body or b"", max_depth)
    if not isinstance(payload, dict):
        raise InvalidRequest("the body must be a JSON object")
    for field in named:
        if field in payload:
            raise InvalidRequest(f"{field}: the path names it already", param=field)
    return {**payload, **named}


def cache_headers(usage: Mapping[str, Any]) -> dict[str, str]:
    """What the response cache had to do with an answer (RFC 9111 section 5.1 for Age).

    Args:
        usage: what the context was told of it, see ``Context.observe``.
    """
    use = usage.get("cache")
    if use is None:
        return {}
    headers = {"X-Cache": use["status"].upper()}
    if use["key"] is not None:
        headers["X-Cache-Key"] = use["key"]
    if use["age_seconds"] is not None:
        headers["Age"] = str(int(use["age_seconds"]))
    return headers
