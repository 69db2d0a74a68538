"""Where the operations are reached over HTTP, and what is read from a request, whoever took it: aiohttp or a function
event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from handlers.api.openapi import Route
from runtime.errors import InvalidRequest, MethodNotAllowed, NotFound, UnsupportedMediaType
from runtime.strict_json import loads

ROUTES: tuple[Route, ...] = (
    Route("GET", "/health", "health"),
    Route("GET", "/model-info", "model_info"),
    Route("GET", "/models", "models"),
    Route("POST", "/models/{model:.+}/load", "load_model"),
    Route("POST", "/models/{model:.+}/unload", "unload_model"),
    Route("PUT", "/models/default", "default_model"),
    Route("POST", "/models/compare", "compare"),
    Route("GET", "/cache/stats", "cache_stats"),
    Route("DELETE", "/cache", "clear_cache"),
    Route("GET", "/stats", "stats"),
    Route("POST", "/generate", "generate"),
    Route("POST", "/complete", "complete"),
    Route("POST", "/chat/completions", "chat", openai=True),
    Route("GET", "/v1/models", "models", openai=True),
    Route("GET", "/v1/models/{model:.+}", "get_model", openai=True),
    Route("POST", "/v1/completions", "completions", openai=True),
    Route("POST", "/v1/chat/completions", "chat", openai=True),
)

_OPENAI_PREFIX = "/v1/"
_OPENAI_PATHS = frozenset({"/v1", *(route.path for route in ROUTES if route.openai)})
_FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


def match(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a request, and the fields that its path holds.

    Args:
        method: in capitals; HEAD is answered as GET.
        path: decoded.

    Raises:
        NotFound: there is nothing at this path.
        MethodNotAllowed: see ``allowed``.
    """
    wanted = "GET" if method == "HEAD" else method
    found = _matching(path)
    for route, fields in found:
        if route.method == wanted:
            return route, fields
    if not found:
        raise NotFound("there is nothing at this path; /docs lists what there is")
    raise MethodNotAllowed(f"{method} is not possible here; allowed: {', '.join(allowed(path))}")


def allowed(path: str) -> list[str]:
    """The methods that a path knows, for ``Allow``."""
    methods = {route.method for route, _ in _matching(path)}
    return sorted({*methods, "HEAD"} if "GET" in methods else methods)


def speaks_openai(path: str) -> bool:
    """Whether errors on this path have OpenAI's shape."""
    return path in _OPENAI_PATHS or path.startswith(_OPENAI_PREFIX)


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


def _matching(path: str) -> list[tuple[Route, dict[str, str]]]:
    return [(route, found.groupdict()) for route in ROUTES if (found := _pattern(route.path).fullmatch(path))]


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """A path as aiohttp writes it, as a regular expression; ``{field}`` without one is all up to the next slash."""
    pattern, end = "", 0
    for field in _FIELD.finditer(path):
        pattern += re.escape(path[end : field.start()]) + f"(?P<{field[1]}>{field[2] or '[^{}/]+'})"
        end = field.end()
    return re.compile(pattern + re.escape(path[end:]))
