"""The table of HTTP routes of the operations, and the matching of paths, for aiohttp and Lambda events alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from runtime.error_response import ErrorForm
from runtime.errors import MethodNotAllowed, NotFound

_FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@dataclass(frozen=True, slots=True)
class Route:
    """The HTTP route of an operation.

    Args:
        method: the HTTP method. GET and DELETE take the fields from the query, which most routes of OpenAI's API ignore
            (``query``); the others take them from a JSON body.
        path: the path in aiohttp's syntax; ``{field:regex}`` in it is a field of the operation and makes the body
            optional.
        operation: the operation's name in ``OPERATIONS``.
        errors: the form of errors.
        query: whether a route of OpenAI's API reads its query; it ignores parameters that are no fields.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    operation: str
    errors: ErrorForm = "problem"
    query: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields in the path."""
        return tuple(field[1] for field in _FIELD.finditer(self.path))

    @property
    def plain_path(self) -> str:
        """The path in OpenAPI's syntax, with only names in the braces."""
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
    Route("POST", "/tokenize", "tokenize"),
    Route("POST", "/detokenize", "detokenize"),
    Route("POST", "/apply-template", "apply_template"),
    Route("GET", "/tokenizer_info", "tokenizer_info"),
    Route("POST", "/chat/completions", "chat", errors="openai"),
    Route("GET", "/v1/models", "models", errors="openai"),
    Route("GET", "/v1/models/{model:.+}", "get_model", errors="openai"),
    Route("POST", "/v1/completions", "completions", errors="openai"),
    Route("POST", "/v1/chat/completions", "chat", errors="openai"),
    Route("POST", "/v1/responses", "responses", errors="openai"),
    Route("POST", "/v1/chat/completions/input_tokens", "chat_input_tokens", errors="openai"),
    Route("POST", "/v1/responses/input_tokens", "response_input_tokens", errors="openai"),
    Route("POST", "/v1/decisions", "decisions", errors="openai"),
    Route("POST", "/v1/embeddings", "embeddings", errors="openai"),
    Route("POST", "/embeddings", "embeddings", errors="openai"),
    Route("POST", "/v1/rerank", "rerank", errors="openai"),
    Route("POST", "/v2/rerank", "rerank", errors="openai"),
    Route("POST", "/rerank", "rerank", errors="openai"),
    Route("POST", "/v1/score", "score", errors="openai"),
    Route("POST", "/score", "score", errors="openai"),
    Route("POST", "/classify", "classify", errors="openai"),
    Route("GET", "/v1/responses/{response_id:resp_[^/]+}", "get_response", errors="openai"),
    Route("DELETE", "/v1/responses/{response_id:resp_[^/]+}", "delete_response", errors="openai"),
    Route("POST", "/v1/files", "upload_file", errors="openai"),
    Route("GET", "/v1/files", "list_files", errors="openai", query=True),
    Route("GET", "/v1/files/{file_id:[^/]+}", "get_file", errors="openai"),
    Route("GET", "/v1/files/{file_id:[^/]+}/content", "file_content", errors="openai"),
    Route("DELETE", "/v1/files/{file_id:[^/]+}", "delete_file", errors="openai"),
    Route("POST", "/v1/batches", "create_batch", errors="openai"),
    Route("GET", "/v1/batches", "list_batches", errors="openai", query=True),
    Route("GET", "/v1/batches/{batch_id:[^/]+}", "get_batch", errors="openai"),
    Route("POST", "/v1/batches/{batch_id:[^/]+}/cancel", "cancel_batch", errors="openai"),
    Route("POST", "/v1/messages", "messages", errors="anthropic"),
    Route("POST", "/v1/messages/count_tokens", "count_tokens", errors="anthropic"),
    Route("POST", "/api/chat", "ollama_chat", errors="ollama"),
    Route("POST", "/api/generate", "ollama_generate", errors="ollama"),
    Route("POST", "/api/embed", "ollama_embed", errors="ollama"),
    Route("POST", "/api/embeddings", "ollama_embeddings", errors="ollama"),
    Route("GET", "/api/tags", "ollama_tags", errors="ollama"),
    Route("GET", "/api/ps", "ollama_ps", errors="ollama"),
    Route("POST", "/api/show", "ollama_show", errors="ollama"),
    Route("GET", "/api/version", "ollama_version", errors="ollama"),
)

_ANTHROPIC_PATH = "/v1/messages"
_OLLAMA_PREFIX = "/api/"
_OPENAI_PREFIX = "/v1/"
_OPENAI_PATHS = frozenset({"/v1", *(route.path for route in ROUTES if route.errors == "openai")})


def match(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """Return a request's route and the fields in its path.

    Args:
        method: the HTTP method in capitals; HEAD matches GET routes.
        path: the decoded path.

    Raises:
        NotFound: no route has this path.
        MethodNotAllowed: no route with this path has this method.
    """
    route_method = "GET" if method == "HEAD" else method
    found = _matching(path)
    for route, fields in found:
        if route.method == route_method:
            return route, fields
    if not found:
        raise NotFound("there is no route with this path; /docs lists all routes")
    raise MethodNotAllowed(f"{method} is not allowed on this path; allowed: {', '.join(allowed(path))}")


def allowed(path: str) -> list[str]:
    """Return the methods of a path's routes, sorted, for the ``Allow`` header."""
    methods = {route.method for route, _ in _matching(path)}
    return sorted({*methods, "HEAD"} if "GET" in methods else methods)


def error_form(path: str) -> ErrorForm:
    """Return the form of errors on a path: that of the API whose clients ask there."""
    if path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/"):
        return "anthropic"
    if path.startswith(_OLLAMA_PREFIX):
        return "ollama"
    return "openai" if path in _OPENAI_PATHS or path.startswith(_OPENAI_PREFIX) else "problem"


def _matching(path: str) -> list[tuple[Route, dict[str, str]]]:
    return [(route, found.groupdict()) for route in ROUTES if (found := _pattern(route.path).fullmatch(path))]


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """Compile a path in aiohttp's syntax to a regular expression; ``{field}`` matches up to the next slash."""
    pattern, end = "", 0
    for field in _FIELD.finditer(path):
        pattern += re.escape(path[end : field.start()]) + f"(?P<{field[1]}>{field[2] or '[^{}/]+'})"
        end = field.end()
    return re.compile(pattern + re.escape(path[end:]))
