"""Builds an operation's payload from an HTTP request's path, query or body, and the response cache's headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.api.routes import Route
from handlers.operations import OPERATIONS
from runtime.errors import InvalidRequest, UnsupportedMediaType
from runtime.strict_json import loads
from runtime.types import CacheUse


def query_payload(route: Route, path_fields: Mapping[str, str], query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Build the payload of a request without a body.

    Args:
        route: the request's route. On OpenAI's routes parameters that are no fields are ignored, because its clients
            send some (``api-version``), and on most of them the whole query.
        path_fields: the fields in the path.
        query: the values of each query parameter. A repeated parameter becomes a list, which every field refuses.
    """
    if route.errors == "openai":
        fields = OPERATIONS[route.operation].request.model_fields if route.query else {}
        query = {name: values for name, values in query.items() if name in fields}
    return {name: list(values) if len(values) > 1 else values[0] for name, values in query.items()} | dict(path_fields)


def body_payload(
    path_fields: dict[str, str], body: bytes | None, content_type: str, charset: str | None, max_depth: int
) -> dict[str, Any]:
    """Build the payload of a request with a body.

    Args:
        path_fields: the fields in the path; if there are any, the body is optional.
        body: the body; None if there is none.
        content_type: the media type without parameters.
        charset: the media type's ``charset`` parameter; None if there is none.
        max_depth: the greatest nesting depth of the JSON, see ``loads``.

    Raises:
        UnsupportedMediaType: the content type is not JSON in UTF-8.
        InvalidRequest: the body is not a JSON object, or has a field that is also in the path.
    """
    if path_fields and body is None:
        return dict[str, Any](path_fields)
    if content_type != "application/json":
        raise UnsupportedMediaType(f"send application/json, not {content_type[:100]!r}")
    if (charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("the charset of JSON must be UTF-8 (RFC 8259 section 8.1)")
    payload = loads(body or b"", max_depth)
    if not isinstance(payload, dict):
        raise InvalidRequest("the body must be a JSON object")
    for field in path_fields:
        if field in payload:
            raise InvalidRequest(f"{field}: remove this field, the path already has it", param=field)
    return {**payload, **path_fields}


def cache_headers(use: CacheUse | None) -> dict[str, str]:
    """Return the response headers X-Cache, X-Cache-Key and Age (RFC 9111 section 5.1).

    Args:
        use: how the response cache was used; None without a cache, which gives no headers.
    """
    if use is None:
        return {}
    headers = {"X-Cache": use.status.upper()}
    if use.key is not None:
        headers["X-Cache-Key"] = use.key
    if use.age_seconds is not None:
        headers["Age"] = str(int(use.age_seconds))
    return headers
