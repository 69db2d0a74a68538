"""The operations: functions from a payload and a context to a dict, and the table that lists them by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from handlers.context import Context
from handlers.operations import cache, chat, compare, complete, completions, generate, health, model_info, models, stats
from handlers.schemas import base, reports, requests, responses

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the table of operations.

    Args:
        summary: one-line description for the OpenAPI document.
        request: the model that validates the payload.
        response: the model of the response.
        handle: computes the whole response from payload and context.
        stream: yields the response in chunks; None if the operation does not stream.
        chunk: the model of one chunk; None if the operation does not stream.
        admin: whether it changes the service for other callers, so that an API key needs the scope ``admin``.
    """

    summary: str
    request: type[BaseModel]
    response: type[BaseModel]
    handle: Callable[[Payload, Context], Awaitable[Payload]]
    stream: Callable[[Payload, Context], AsyncGenerator[Payload, None]] | None = None
    chunk: type[BaseModel] | None = None
    admin: bool = False


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "health": Operation("Report the state of the service.", base.Empty, reports.HealthResponse, health.handle),
        "model_info": Operation(
            "Return the metadata of a model.", base.ModelChoice, reports.ModelInfoResponse, model_info.handle
        ),
        "models": Operation("List the served models.", base.Empty, reports.ModelsResponse, models.handle),
        "get_model": Operation("Return one served model.", base.ModelName, reports.ModelEntry, models.get),
        "load_model": Operation(
            "Load a model in the background, or stream the progress.",
            requests.LoadRequest,
            reports.ModelEntry,
            models.load,
            models.load_stream,
            reports.ModelEntry,
            admin=True,
        ),
        "unload_model": Operation(
            "Unload a model after its running requests have ended.",
            base.ModelName,
            reports.ModelEntry,
            models.unload,
            admin=True,
        ),
        "default_model": Operation(
            "Change the default model without failing requests; the model is loaded first.",
            base.ModelName,
            reports.ModelEntry,
            models.set_default,
            admin=True,
        ),
        "cache_stats": Operation(
            "Return statistics of the response cache.", base.Empty, reports.CacheStatsResponse, cache.stats
        ),
        "clear_cache": Operation(
            "Remove responses from the response cache.",
            requests.ClearCacheRequest,
            reports.ClearCacheResponse,
            cache.clear,
            admin=True,
        ),
        "stats": Operation(
            "Return statistics of the service and its models.", base.Empty, reports.StatsResponse, stats.handle
        ),
        "generate": Operation(
            "Continue a prompt; the response contains the prompt.",
            requests.GenerateRequest,
            responses.TextResponse,
            generate.handle,
            generate.stream,
            responses.TextChunk,
        ),
        "complete": Operation(
            "Complete a prompt; the response contains only the completion.",
            requests.CompleteRequest,
            responses.TextResponse,
            complete.handle,
            complete.stream,
            responses.TextChunk,
        ),
        "chat": Operation(
            "Create a chat completion, compatible with OpenAI's.",
            requests.ChatRequest,
            responses.ChatResponse,
            chat.handle,
            chat.stream,
            responses.ChatChunk,
        ),
        "completions": Operation(
            "Create a completion, compatible with OpenAI's.",
            requests.CompletionsRequest,
            responses.CompletionsResponse,
            completions.handle,
            completions.stream,
            responses.CompletionsResponse,
        ),
        "compare": Operation(
            "Run a prompt or chat with several models or settings at the same time.",
            requests.CompareRequest,
            responses.CompareResponse,
            compare.handle,
            compare.stream,
            responses.CompareChunk,
        ),
    }
)

SCOPES = frozenset(name for name, operation in OPERATIONS.items() if not operation.admin) | {
    "metrics",
    "events",
    "*",
    "admin",
}
"""Scopes of API keys: the names of operations, ``metrics``, ``events`` for ``/events`` (which calls EVENTS_OPERATIONS),
``*`` for all of these, and ``admin`` for the admin operations."""
