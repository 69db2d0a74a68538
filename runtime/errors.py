"""The one tree of errors that a caller may see.

Every error carries a stable ``code``, the HTTP ``status`` it maps to, a public message that names no path, secret or
internal, whether trying again can help, and after how many seconds. Handlers raise them whatever the way in; each
adapter renders them once (``middleware/errors.py`` for HTTP, the command line for a terminal).
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of all errors that are answered to a caller.

    Args:
        message: what is wrong and what to do, safe to show to anyone.
        param: the request field at fault in dotted form (``messages.0.role``), if one is.
        retry_after: seconds after which trying again makes sense, if known.
        challenge: what ``WWW-Authenticate`` says (RFC 9110 section 11.6.1), where a credential would help.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    scheme: ClassVar[str | None] = None
    """Of the challenge, where none is given: 401 must have one (RFC 9110 section 15.5.2)."""

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
        """OpenAI's ``error.type``: whose fault it is."""
        return "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"

    def openai(self) -> dict[str, Any]:
        """The error as OpenAI's API shapes it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def problem(self) -> dict[str, Any]:
        """The error as RFC 9457 problem details; ``code`` and ``param`` are extension members (section 3.2)."""
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
    """A bug or a fault of ours. The cause is logged, never shown."""


class InvalidRequest(ServiceError):
    """The request breaks a rule; ``param`` names the field."""

    code, status, title = "invalid_request", 400, "Invalid request"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt and the tokens asked for, cannot fit the model's context."""

    code, title = "context_length_exceeded", "Context length exceeded"

    @classmethod
    def of(
        cls, limit: int, prompt: int, new: int, field: str = "prompt", *, because: str = ""
    ) -> ContextLengthExceeded:
        """The error in the words that OpenAI's clients look for in a message (LangChain, LiteLLM).

        Args:
            limit: most tokens.
            prompt: tokens of the prompt.
            new: tokens to generate.
            field: that holds the prompt.
            because: what sets the limit, if that is not the model.
        """
        return cls(
            f"This model's maximum context length is {limit} tokens{because}. However, you requested {prompt + new} "
            f"tokens ({prompt} in the {field}, {new} in the completion).",
            param=field,
        )


class NotFound(ServiceError):
    """No such route, operation or thing."""

    code, status, title = "not_found", 404, "Not found"


class ModelNotFound(NotFound):
    """The ``model`` field names a model that is not served here."""

    code, title = "model_not_found", "Model not found"


class MethodNotAllowed(ServiceError):
    """The route exists, the method does not."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class RequestTimeout(ServiceError):
    """The client did not deliver its request in time (RFC 9110 section 15.5.9)."""

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
    """A header field, or all of them together, are over the limit (RFC 6585 section 5)."""

    code, status, title = "header_fields_too_large", 431, "Request header fields too large"


class ClientAddressDenied(ServiceError):
    """The client's address is not allowed, or cannot be established."""

    code, status, title = "client_address_denied", 403, "Forbidden"


class Unauthenticated(ServiceError):
    """The request needs a credential, and has none that is good (RFC 9110 section 15.5.2).

    The message does not tell a key that never was from one that has ended.
    """

    code, status, title, scheme = "invalid_api_key", 401, "Unauthorized", "Bearer"


class InvalidSignature(Unauthenticated):
    """The request's signature is missing, malformed, out of its time, used before or wrong."""

    code, scheme = "invalid_signature", "Signature"


class InsufficientScope(ServiceError):
    """The credential is good and not for this operation (RFC 6750 section 3.1)."""

    code, status, title, scheme = "insufficient_scope", 403, "Forbidden", "Bearer"


class TooManyRequests(ServiceError):
    """The queue is full; nothing was started."""

    code, status, title, retryable = "queue_full", 429, "Too many requests", True

    @property
    def type(self) -> str:
        """See ``ServiceError.type``."""
        return "rate_limit_error"


class RateLimited(TooManyRequests):
    """The caller has used up what it may in a minute, or runs as many requests at once as it may."""

    code = "rate_limited"


class ExceedsRateLimit(InvalidRequest):
    """The request alone may cost more tokens than its caller may ever use at once; waiting is of no use."""

    code = "exceeds_rate_limit"


class RateLimitUnavailable(ServiceError):
    """What callers have used cannot be looked up, and the settings say to let nobody pass then."""

    code, status, title, retryable = "rate_limit_unavailable", 503, "Rate limits unavailable", True


class NoncesUnavailable(ServiceError):
    """Whether a signature was used before cannot be looked up; nobody passes then."""

    code, status, title, retryable = "nonces_unavailable", 503, "Nonces unavailable", True


class AuditUnavailable(ServiceError):
    """The audit log cannot be written, and the settings say to do nothing unrecorded."""

    code, status, title, retryable = "audit_unavailable", 503, "Audit log unavailable", True


class ModelLoading(ServiceError):
    """The model is still loading after the wait the settings allow."""

    code, status, title, retryable = "model_loading", 503, "Model loading", True


class ModelUnavailable(ServiceError):
    """The model cannot be loaded; the message says what to do. The next call tries again."""

    code, status, title, retryable = "model_unavailable", 503, "Model unavailable", True


class ModelTooLarge(ModelUnavailable):
    """The model does not fit the memory that models may hold, and so was not loaded (RFC 4918 section 11.5).

    Trying again is of no use before something is changed: the budget, the number type, or what is pinned.
    """

    code, status, title, retryable = "model_too_large", 507, "Model too large", False


class CacheUnavailable(ServiceError):
    """The kept answers cannot be reached, and the request is about them."""

    code, status, title, retryable = "cache_unavailable", 503, "Cache unavailable", True


class EngineRestarting(ServiceError):
    """The engine died beneath the request. A new one starts; what was generated is lost."""

    code, status, title, retryable = "engine_restarting", 503, "Engine restarting", True


class IdempotencyConflict(ServiceError):
    """The same work is being done by somebody else (draft-ietf-httpapi-idempotency-key-header section 2.6)."""

    code, status, title, retryable = "idempotency_conflict", 409, "Being done", True


class IdempotencyMismatch(InvalidRequest):
    """The same id came with another payload (the same draft; RFC 9110 section 15.5.21)."""

    code, status, title = "idempotency_mismatch", 422, "Same id, other payload"


class IdempotencyUnavailable(ServiceError):
    """Whether the work was done already cannot be looked up; nothing is done then."""

    code, status, title, retryable = "idempotency_unavailable", 503, "Idempotency records unavailable", True


class DeliveryLimit(ServiceError):
    """Nobody who took the message up ever said what came of it: it is taken for what brought them down."""

    code, status, title = "delivery_limit", 500, "Delivered too often"


class DeadlinePassed(ServiceError):
    """Nobody wants the answer any more: the sender's own deadline has passed."""

    code, status, title = "deadline_passed", 408, "Deadline passed"


class Draining(ServiceError):
    """The service is shutting down and admits nothing new."""

    code, status, title, retryable = "draining", 503, "Shutting down", True


class DeadlineExceeded(ServiceError):
    """The request took longer than the settings allow."""

    code, status, title, retryable = "deadline_exceeded", 504, "Deadline exceeded", True


class SettingsError(Exception):
    """A setting is wrong; the message names it. Raised at start only, never answered to a caller."""
