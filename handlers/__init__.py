"""The operations: pure functions from a payload and a context to a dict, and the one table that names them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from handlers import chat, complete, generate, health, model_info, models, schemas
from handlers.context import Context

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Args:
        summary: one line for people.
        request: what its payload is validated with.
        response: what it answers.
        handle: payload and context to answer.
        stream: the same, piece by piece, for operations that can; ``chunk`` is then what a piece looks like.
    """

    summary: str
    request: type[BaseModel]
    response: type[BaseModel]
    handle: Callable[[Payload, Context], Awaitable[Payload]]
    stream: Callable[[Payload, Context], AsyncGenerator[Payload, None]] | None = None
    chunk: type[BaseModel] | None = None


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "health": Operation("How the service is.", schemas.Empty, schemas.HealthResponse, health.handle),
        "model_info": Operation(
            "What is known of a model.", schemas.ModelChoice, schemas.ModelInfoResponse, model_info.handle
        ),
        "models": Operation("The models served here.", schemas.Empty, schemas.ModelsResponse, models.handle),
        "generate": Operation(
            "Continue a prompt; the prompt is part of the answer.",
            schemas.GenerateRequest,
            schemas.TextResponse,
            generate.handle,
            generate.stream,
            schemas.TextChunk,
        ),
        "complete": Operation(
            "Complete a prompt; the answer is the completion only.",
            schemas.CompleteRequest,
            schemas.TextResponse,
            complete.handle,
            complete.stream,
            schemas.TextChunk,
        ),
        "chat": Operation(
            "Answer a chat, as OpenAI's chat completions do.",
            schemas.ChatRequest,
            schemas.ChatResponse,
            chat.handle,
            chat.stream,
            schemas.ChatChunk,
        ),
    }
)
