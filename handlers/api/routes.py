"""Where the operations are reached over HTTP, and what is read from a request, whoever took it: aiohttp or a function
event.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from runtime.errors import MethodNotAllowed, NotFound

_FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@dataclass(frozen=True, slots=True)
class Route:
    """Where an operation is reached over HTTP.

    Args:
        method: GET and DELETE operations take their fields from the query, which OpenAI's do not look at; the others
            from a JSON body.
        path: the route, as aiohttp writes it; a ``{field:regex}`` in it is a field of the operation, and the body may
            then be left out.
        operation: a name in ``OPERATIONS``.
        openai: whether errors have OpenAI's shape.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    operation: str
    openai: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the path holds."""
        return tuple(field[1] for field in _FIELD.finditer(self.path))

    @property
    def plain_path(self) -> str:
        """The path with bare names in its braces, as OpenAPI writes it."""
        return _FIELD.sub(r"{\1}", self.path)


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
