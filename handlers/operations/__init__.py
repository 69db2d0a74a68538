"""The operations: functions from a payload and a context to a dict, and the table that lists them by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel

from handlers.context import Context
from handlers.operations import (
    apply_template,
    batches,
    cache,
    chat,
    classify,
    compare,
    complete,
    completions,
    create_response,
    decisions,
    detokenize,
    embeddings,
    files,
    generate,
    health,
    messages,
    model_info,
    models,
    ollama,
    ollama_embed,
    ollama_models,
    rerank,
    score,
    stats,
    stored_responses,
    tokenize,
    tokenizer_info,
)
from handlers.schemas import (
    base,
    batches_objects,
    decisions_objects,
    encoder_objects,
    messages_api,
    messages_api_objects,
    ollama_objects,
    relevance,
    reports,
    requests,
    responses,
    responses_api,
    responses_api_objects,
    tokens,
)
from handlers.schemas import batches as batches_requests
from handlers.schemas import decisions as decisions_requests
from handlers.schemas import embeddings as embeddings_requests
from handlers.schemas import ollama as ollama_requests

Payload = dict[str, Any]

StreamForm = Literal["data", "named", "lines"]
"""How a stream's chunks are sent over HTTP: as server-sent events of data, with ``[DONE]`` at the end; as server-sent
events under each chunk's ``type`` as the name; or as lines of JSON, which Ollama's clients read."""


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
        stream_form: how the chunks are sent over HTTP.
        streams_by_default: whether HTTP answers with a stream if a request does not say ``stream``.
        part_of: another operation, whose scope allows an API key this one, too.
        admin: whether it changes the service for other callers, so that an API key needs the scope ``admin``.
        form: whether its fields may also be sent over HTTP as a form (multipart/form-data, RFC 7578).
        raw: whether HTTP answers with the content of a file instead of JSON.
    """

    summary: str
    request: type[BaseModel]
    response: type[BaseModel]
    handle: Callable[[Payload, Context], Awaitable[Payload]]
    stream: Callable[[Payload, Context], AsyncGenerator[Payload, None]] | None = None
    chunk: type[BaseModel] | None = None
    stream_form: StreamForm = "data"
    streams_by_default: bool = False
    part_of: str | None = None
    admin: bool = False
    form: bool = False
    raw: bool = False

    @property
    def generates(self) -> bool:
        """Whether it generates text, so that a request may have an idempotency key over HTTP."""
        return self.stream is not None and not self.admin

    def streams(self, payload: Payload) -> bool:
        """Return whether a request over HTTP is answered with a stream."""
        asked = payload.get("stream")
        return self.stream is not None and (asked is True or (asked is None and self.streams_by_default))


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
        "responses": Operation(
            "Create a response, compatible with OpenAI's Responses API.",
            responses_api.ResponsesRequest,
            responses_api_objects.Response,
            create_response.handle,
            create_response.stream,
            responses_api_objects.ResponseEvent,
            stream_form="named",
            part_of="chat",
        ),
        "get_response": Operation(
            "Return a response that is kept.",
            responses_api.ResponseId,
            responses_api_objects.Response,
            stored_responses.get,
            part_of="chat",
        ),
        "delete_response": Operation(
            "Forget a response that is kept.",
            responses_api.ResponseId,
            responses_api_objects.DeletedResponse,
            stored_responses.delete,
            part_of="chat",
        ),
        "messages": Operation(
            "Create a message, compatible with Anthropic's Messages API.",
            messages_api.MessagesRequest,
            messages_api_objects.MessageResponse,
            messages.handle,
            messages.stream,
            messages_api_objects.MessageEvent,
            stream_form="named",
            part_of="chat",
        ),
        "count_tokens": Operation(
            "Count the tokens of a conversation, compatible with Anthropic's Messages API.",
            messages_api.CountTokensRequest,
            messages_api_objects.TokenCount,
            messages.count,
            part_of="chat",
        ),
        "chat_input_tokens": Operation(
            "Count the tokens of a chat, as llama.cpp's server does.",
            requests.ChatRequest,
            messages_api_objects.TokenCount,
            chat.count,
            part_of="chat",
        ),
        "response_input_tokens": Operation(
            "Count the tokens of a response's input, compatible with OpenAI's Responses API.",
            responses_api.ResponsesRequest,
            responses_api_objects.InputTokenCount,
            create_response.count,
            part_of="chat",
        ),
        "completions": Operation(
            "Create a completion, compatible with OpenAI's.",
            requests.CompletionsRequest,
            responses.CompletionsResponse,
            completions.handle,
            completions.stream,
            responses.CompletionsResponse,
        ),
        "decisions": Operation(
            "Answer questions about an input with probabilities, compatible with OpenAI's Decisions API.",
            decisions_requests.DecisionsRequest,
            decisions_objects.DecisionsResponse,
            decisions.handle,
        ),
        "embeddings": Operation(
            "Return the vectors of texts, compatible with OpenAI's embeddings.",
            embeddings_requests.EmbeddingsRequest,
            encoder_objects.EmbeddingsResponse,
            embeddings.handle,
        ),
        "rerank": Operation(
            "Rank documents by their relevance to a query, compatible with Cohere's, Jina's and vLLM's APIs.",
            relevance.RerankRequest,
            encoder_objects.RerankResponse,
            rerank.handle,
        ),
        "score": Operation(
            "Return the relevance of pairs of texts, compatible with vLLM's score API.",
            relevance.ScoreRequest,
            encoder_objects.ScoreResponse,
            score.handle,
        ),
        "classify": Operation(
            "Return the classes of texts, compatible with vLLM's classification API.",
            relevance.ClassifyRequest,
            encoder_objects.ClassifyResponse,
            classify.handle,
        ),
        "ollama_chat": Operation(
            "Create the next message of a chat, compatible with Ollama's API.",
            ollama_requests.OllamaChatRequest,
            ollama_objects.OllamaChatResponse,
            ollama.handle_chat,
            ollama.stream_chat,
            ollama_objects.OllamaChatResponse,
            stream_form="lines",
            streams_by_default=True,
            part_of="chat",
        ),
        "ollama_generate": Operation(
            "Answer a prompt, compatible with Ollama's API.",
            ollama_requests.OllamaGenerateRequest,
            ollama_objects.OllamaGenerateResponse,
            ollama.handle_generate,
            ollama.stream_generate,
            ollama_objects.OllamaGenerateResponse,
            stream_form="lines",
            streams_by_default=True,
            part_of="chat",
        ),
        "ollama_embed": Operation(
            "Return the vectors of texts, compatible with Ollama's API.",
            ollama_requests.OllamaEmbedRequest,
            ollama_objects.OllamaEmbedResponse,
            ollama_embed.handle,
            part_of="embeddings",
        ),
        "ollama_embeddings": Operation(
            "Return the vector of a text, compatible with Ollama's older API.",
            ollama_requests.OllamaEmbeddingsRequest,
            ollama_objects.OllamaEmbeddingsResponse,
            ollama_embed.handle_one,
            part_of="embeddings",
        ),
        "ollama_tags": Operation(
            "List the served models, compatible with Ollama's API.",
            base.Empty,
            ollama_objects.OllamaModels,
            ollama_models.tags,
            part_of="models",
        ),
        "ollama_ps": Operation(
            "List the loaded models, compatible with Ollama's API.",
            base.Empty,
            ollama_objects.OllamaRunningModels,
            ollama_models.running,
            part_of="models",
        ),
        "ollama_show": Operation(
            "Return the metadata of a model, compatible with Ollama's API.",
            ollama_requests.OllamaShowRequest,
            ollama_objects.OllamaShowResponse,
            ollama_models.show,
            part_of="model_info",
        ),
        "ollama_version": Operation(
            "Return the version of Ollama whose API this server has.",
            base.Empty,
            ollama_objects.OllamaVersion,
            ollama_models.version,
            part_of="models",
        ),
        "tokenize": Operation(
            "Return the token ids of a text or chat.",
            tokens.TokenizeRequest,
            tokens.TokenizeResponse,
            tokenize.handle,
        ),
        "detokenize": Operation(
            "Return the text of token ids.",
            tokens.DetokenizeRequest,
            tokens.DetokenizeResponse,
            detokenize.handle,
        ),
        "tokenizer_info": Operation(
            "Return a tokenizer's special tokens and chat template.",
            base.ModelChoice,
            tokens.TokenizerInfoResponse,
            tokenizer_info.handle,
            part_of="tokenize",
        ),
        "apply_template": Operation(
            "Return a chat as the text that the model continues.",
            tokens.ApplyTemplateRequest,
            tokens.ApplyTemplateResponse,
            apply_template.handle,
        ),
        "compare": Operation(
            "Run a prompt or chat with several models or settings at the same time.",
            requests.CompareRequest,
            responses.CompareResponse,
            compare.handle,
            compare.stream,
            responses.CompareChunk,
        ),
        "upload_file": Operation(
            "Upload a file, compatible with OpenAI's Files API.",
            batches_requests.UploadFileRequest,
            batches_objects.FileObject,
            files.upload,
            part_of="create_batch",
            form=True,
        ),
        "list_files": Operation(
            "List the caller's files, compatible with OpenAI's Files API.",
            batches_requests.ListFilesRequest,
            batches_objects.FileList,
            files.list_files,
            part_of="create_batch",
        ),
        "get_file": Operation(
            "Return a file's metadata.",
            batches_requests.FileId,
            batches_objects.FileObject,
            files.get,
            part_of="create_batch",
        ),
        "file_content": Operation(
            "Return a file's content.",
            batches_requests.FileId,
            batches_objects.FileText,
            files.content,
            part_of="create_batch",
            raw=True,
        ),
        "delete_file": Operation(
            "Delete a file.",
            batches_requests.FileId,
            batches_objects.DeletedFile,
            files.delete,
            part_of="create_batch",
        ),
        "create_batch": Operation(
            "Create a batch of requests, compatible with OpenAI's Batch API.",
            batches_requests.CreateBatchRequest,
            batches_objects.BatchObject,
            batches.create,
        ),
        "list_batches": Operation(
            "List the caller's batches, compatible with OpenAI's Batch API.",
            batches_requests.ListBatchesRequest,
            batches_objects.BatchList,
            batches.list_batches,
            part_of="create_batch",
        ),
        "get_batch": Operation(
            "Return a batch.",
            batches_requests.BatchId,
            batches_objects.BatchObject,
            batches.get,
            part_of="create_batch",
        ),
        "cancel_batch": Operation(
            "Cancel a batch; its output files have the rows that are done.",
            batches_requests.BatchId,
            batches_objects.BatchObject,
            batches.cancel,
            part_of="create_batch",
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
