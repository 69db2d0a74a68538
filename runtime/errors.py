"""All errors that are returned to callers, in one class hierarchy.

Every error has a stable ``code``, an HTTP ``status``, a public message that names no path, secret or internal detail,
whether a retry can help, and after how many seconds. Handlers raise them for every entry point; each adapter renders
them in one place (``middleware/errors.py`` for HTTP, the command line for a terminal).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class ServiceError(Exception):
    """Base class of all errors that are returned to a caller.

    Args:
        message: what is wrong and what to do, safe to show to anyone.
        param: the request field at fault in dotted form (``messages.0.role``), if there is one.
        retry_after: seconds after which a retry makes sense, if known.
        challenge: the ``WWW-Authenticate`` value (RFC 9110 section 11.6.1), where a credential would help; by default
            ``scheme``.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    scheme: ClassVar[str | None] = None
    """The default challenge's authentication scheme: a 401 must have a challenge (RFC 9110 section 15.5.2)."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        challenge: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.challenge = challenge or self.scheme

    @property
    def type(self) -> str:
        """OpenAI's ``error.type``, which says whether the request or the server is at fault."""
        return "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"

    def openai(self) -> dict[str, Any]:
        """Return the error in the shape of OpenAI's API."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @staticmethod
    def from_openai(body: Mapping[str, Any]) -> ServiceError:
        """Return the error that another process has rendered with ``openai``; one of unknown code is internal.

        Args:
            body: what ``openai`` returned.
        """
        error, classes = body["error"], [ServiceError]
        for found in classes:
            if found.code == error["code"] and found is not ServiceError:
                return found(error["message"], param=error["param"])
            classes += found.__subclasses__()
        return InternalError(error["message"])

    def problem(self) -> dict[str, Any]:
        """Return the error as RFC 9457 problem details; ``code`` and ``param`` are extension members (section 3.2)."""
        problem: dict[str, Any] = {
            "title": self.title,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
        }
        if self.param is not None:
            problem["param"] = self.param
        return problem


class InternalError(ServiceError):
    """A bug or a fault of the service. The cause is logged, never shown."""


class InvalidRequest(ServiceError):
    """The request is not valid; ``param`` names the field."""

    code, status, title = "invalid_request", 400, "Invalid request"


class ThreadUnsupported(InvalidRequest):
    """The request continues or creates a conversation that the server keeps, as Anthropic's clients' tool runner does.

    The clients know this code, and send the whole conversation with each request from then on.
    """

    code, title = "thread_unsupported_request", "Conversations are not kept"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt with the requested tokens, does not fit into the model's context."""

    code, title = "context_length_exceeded", "Context length exceeded"

    @classmethod
    def of(
        cls, limit: int, prompt: int, new: int, field: str = "prompt", *, because: str = ""
    ) -> ContextLengthExceeded:
        """Create the error with the wording that OpenAI's clients search messages for (LangChain, LiteLLM).

        Args:
            limit: the most tokens allowed.
            prompt: the number of tokens of the prompt.
            new: the number of tokens to generate.
            field: the request field that holds the prompt.
            because: the reason for the limit, if it is not the model's own.
        """
        return cls(
            f"This model's maximum context length is {limit} tokens{because}. However, you requested {prompt + new} "
            f"tokens ({prompt} in the {field}, {new} in the completion).",
            param=field,
        )

    @classmethod
    def of_input(cls, limit: int, tokens: int, field: str) -> ContextLengthExceeded:
        """Create the error of an input that an encoder must read as a whole.

        Args:
            limit: the most tokens allowed.
            tokens: the number of tokens of the input.
            field: the request field that holds the input.
        """
        return cls(
            f"This model's maximum context length is {limit} tokens. However, {field} has {tokens} tokens; shorten it, "
            "or set truncate",
            param=field,
        )


class ModelCannotGenerate(InvalidRequest):
    """The model is an encoder: it computes vectors or scores, and generates no text."""

    code, title = "model_cannot_generate", "Model cannot generate"


class ModelCannotEncode(InvalidRequest):
    """The model does not compute what was asked for: vectors, class scores or the relevance of a document."""

    code, title = "model_cannot_encode", "Model cannot encode"


class NotFound(ServiceError):
    """There is no such route, operation or object."""

    code, status, title = "not_found", 404, "Not found"


class ModelNotFound(NotFound):
    """The ``model`` field names a model that is not served."""

    code, title = "model_not_found", "Model not found"


class MethodNotAllowed(ServiceError):
    """The route exists but does not support the method."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class RequestTimeout(ServiceError):
    """The client did not send its request in time (RFC 9110 section 15.5.9)."""

    code, status, title, retryable = "request_timeout", 408, "Request timeout", True


class PayloadTooLarge(ServiceError):
    """The body is larger than the limit."""

    code, status, title = "payload_too_large", 413, "Payload too large"


class UriTooLong(ServiceError):
    """The request line is longer than the limit (RFC 9110 section 15.5.15)."""

    code, status, title = "uri_too_long", 414, "URI too long"


class UnsupportedMediaType(ServiceError):
    """The body is not JSON, or it is compressed."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class RequestHeaderFieldsTooLarge(ServiceError):
    """One header field, or all of them together, exceed the limit (RFC 6585 section 5)."""

    code, status, title = "header_fields_too_large", 431, "Request header fields too large"


class ClientAddressDenied(ServiceError):
    """The client's address is not allowed, or cannot be determined."""

    code, status, title = "client_address_denied", 403, "Forbidden"


class Unauthenticated(ServiceError):
    """The request needs a valid credential and has none (RFC 9110 section 15.5.2).

    The message is the same for an unknown key and for an expired one.
    """

    code, status, title, scheme = "invalid_api_key", 401, "Unauthorized", "Bearer"


class InvalidSignature(Unauthenticated):
    """The request's signature is missing, malformed, outside its time window, reused or wrong."""

    code, scheme = "invalid_signature", "Signature"


class InsufficientScope(ServiceError):
    """The credential is valid but does not allow this operation (RFC 6750 section 3.1)."""

    code, status, title, scheme = "insufficient_scope", 403, "Forbidden", "Bearer"


class TooManyRequests(ServiceError):
    """The queue is full; nothing was started."""

    code, status, title, retryable = "queue_full", 429, "Too many requests", True

    @classmethod
    def of_queue(cls, max_queue: int, seconds: float) -> TooManyRequests:
        """Create the error of a full queue.

        Args:
            max_queue: the most requests that may wait.
            seconds: estimated time until one of them starts.
        """
        return cls(
            f"the queue is full: {max_queue} requests are waiting (MAX_QUEUE); try again later",
            retry_after=max(1.0, seconds),
        )

    @property
    def type(self) -> str:
        """OpenAI's ``error.type`` for a 429."""
        return "rate_limit_error"


class RateLimited(TooManyRequests):
    """The caller has used up its limit per minute, or runs as many concurrent requests as it may."""

    code = "rate_limited"


class ExceedsRateLimit(InvalidRequest):
    """The request alone may use more tokens than its caller's limit ever allows at once; a retry cannot help."""

    code = "exceeds_rate_limit"


class RateLimitUnavailable(ServiceError):
    """The callers' usage cannot be looked up, and the settings say to reject requests in that case."""

    code, status, title, retryable = "rate_limit_unavailable", 503, "Rate limits unavailable", True


class NoncesUnavailable(ServiceError):
    """Whether a signature was used before cannot be looked up; all signed requests are rejected then."""

    code, status, title, retryable = "nonces_unavailable", 503, "Nonces unavailable", True


class AuditUnavailable(ServiceError):
    """The audit log cannot be written, and the settings require that every request is recorded."""

    code, status, title, retryable = "audit_unavailable", 503, "Audit log unavailable", True


class ModelLoading(ServiceError):
    """The model is still loading after the longest wait that the settings allow."""

    code, status, title, retryable = "model_loading", 503, "Model loading", True


class ModelUnavailable(ServiceError):
    """The model cannot be loaded; the message says what to do. The next request tries to load it again."""

    code, status, title, retryable = "model_unavailable", 503, "Model unavailable", True


class ModelTooLarge(ModelUnavailable):
    """The model does not fit into the memory budget of all models and was not loaded (RFC 4918 section 11.5).

    A retry cannot help before the budget, the data type or the set of pinned models changes.
    """

    code, status, title, retryable = "model_too_large", 507, "Model too large", False


class CacheUnavailable(ServiceError):
    """The cached responses cannot be reached, and the request is about them."""

    code, status, title, retryable = "cache_unavailable", 503, "Cache unavailable", True


class EngineRestarting(ServiceError):
    """The engine thread died during the request. A new one starts; the generated tokens are lost."""

    code, status, title, retryable = "engine_restarting", 503, "Engine restarting", True


class IdempotencyConflict(ServiceError):
    """The same work is in progress elsewhere (draft-ietf-httpapi-idempotency-key-header section 2.6)."""

    code, status, title, retryable = "idempotency_conflict", 409, "Idempotency conflict", True


class IdempotencyMismatch(InvalidRequest):
    """The same id came with another payload (the same draft; RFC 9110 section 15.5.21)."""

    code, status, title = "idempotency_mismatch", 422, "Idempotency mismatch"


class IdempotencyUnavailable(ServiceError):
    """Whether the work was done before cannot be looked up; it is not done then."""

    code, status, title, retryable = "idempotency_unavailable", 503, "Idempotency records unavailable", True


class FilesOff(NotFound):
    """The service keeps no files, so that it has no batches either."""

    code, title = "files_off", "Files are off"


class FileInUse(ServiceError):
    """The file cannot be deleted, because a batch that has not ended reads it."""

    code, status, title = "file_in_use", 409, "File in use"


class StorageFull(ServiceError):
    """Nothing more can be stored: the disk or the allowed space is full (RFC 4918 section 11.5)."""

    code, status, title, retryable = "storage_full", 507, "Storage full", True


class StorageUnavailable(ServiceError):
    """The stored files and batches cannot be read or written now."""

    code, status, title, retryable = "storage_unavailable", 503, "Storage unavailable", True


class DeliveryLimit(ServiceError):
    """The message was delivered too often and never acknowledged, so it is assumed to crash the workers."""

    code, status, title = "delivery_limit", 500, "Delivery limit reached"


class DeadlinePassed(ServiceError):
    """The sender's own deadline for the answer has passed."""

    code, status, title = "deadline_passed", 408, "Deadline passed"


class Draining(ServiceError):
    """The service is shutting down and accepts no new requests."""

    code, status, title, retryable = "draining", 503, "Shutting down", True


class DeadlineExceeded(ServiceError):
    """The request took longer than the settings allow."""

    code, status, title, retryable = "deadline_exceeded", 504, "Deadline exceeded", True


class SettingsError(Exception):
    """A setting is wrong; the message names it. Raised only at startup, never returned to a caller."""
