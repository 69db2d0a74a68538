"""Answers AWS Lambda's HTTP events as the HTTP service answers such requests.

Two things are missing: the middlewares (API keys, signatures, address and rate limits, audit log), whose task is left
to API Gateway and IAM, and streams, which a function's answer cannot be. The Lambda Web Adapter in front of the HTTP
service has both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from handlers.api.payload import body_payload, cache_headers, query_payload
from handlers.api.routes import Route, allowed, error_form, match
from handlers.dispatch.events import Dispatcher
from handlers.operations import OPERATIONS
from runtime.error_response import error_response
from runtime.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from runtime.events.aws_lambda.http import Form, HttpRequest, read_request, write_response
from runtime.events.envelope import TYPE_PREFIX, Envelope, encode
from runtime.request_headers import check_content_encoding, credentials_hash
from runtime.telemetry.logging import log_facts
from runtime.telemetry.request_scope import (
    SAFE_REQUEST_ID,
    RequestScope,
    UsageCounter,
    request_facts,
    request_scope,
)
from runtime.telemetry.tracing import continue_trace

_log = logging.getLogger("warmstart.access")

_IDEMPOTENCY = (
    "Idempotency-Key: a function's HTTP events are not recorded; leave it out, or send an event with an id "
    "(docs/events-lambda.md)"
)
_STREAM = (
    "stream: a function cannot stream its answer; leave it out, or use the Lambda Web Adapter, which streams "
    "(docs/events-lambda.md)"
)


class LambdaHttpRequests:
    """Handles HTTP events of API Gateway, Function URLs and Application Load Balancers.

    Args:
        dispatch: calls the operations.
        max_body_bytes: the greatest size of a request's body in bytes.
        max_depth: the greatest nesting depth of a request's JSON.
    """

    def __init__(self, dispatch: Dispatcher, *, max_body_bytes: int, max_depth: int) -> None:
        self._dispatch = dispatch
        self._max_body_bytes = max_body_bytes
        self._max_depth = max_depth

    async def __call__(
        self, event: Mapping[str, Any], form: Form, request_id: str, deadline: float | None
    ) -> dict[str, Any]:
        """Run an HTTP event's request and return the response in the event's form.

        Args:
            event: the event, decoded from JSON.
            form: the event's form: ``v1``, ``v2`` or ``alb``.
            request_id: the request id if the request has no valid X-Request-Id.
            deadline: the deadline on the loop's clock; the work is then cancelled and answered with 504. None for no
                deadline.

        Raises:
            InvalidRequest: the event does not have the structure of its form.
        """
        started = time.perf_counter()
        try:
            request = read_request(event, form)
        except (LookupError, TypeError, AttributeError, ValueError):  # AWS builds the events: no schema needed
            raise InvalidRequest(
                f"the event does not have the structure of API Gateway or a load balancer ({form})"
            ) from None
        given = request.headers.get("x-request-id", "")
        request_id = given if SAFE_REQUEST_ID.fullmatch(given) else request_id
        usage = _begin(request, request_id)
        error: ServiceError | None = None
        try:
            async with asyncio.timeout_at(deadline) as limit:
                answer = await self._answer(request, request_id)
        except ServiceError as raised:
            error = raised
        except Exception as raised:
            if isinstance(raised, TimeoutError) and limit.expired():
                error = DeadlineExceeded("the request was not finished within the function's time limit")
            else:
                logging.getLogger("warmstart.errors").exception("unexpected error")
                error = InternalError("an unexpected error occurred; the log has the details under the request id")
        if error is None:
            status, headers, body = 200, {"Content-Type": "application/json; charset=utf-8"}, encode(answer)
            headers |= cache_headers(None if usage.total is None else usage.total.cache)
        else:
            status, headers, body = _render(request, error)
        facts = {
            "status": status,
            "duration_ms": round(1e3 * (time.perf_counter() - started), 2),
            **usage.tokens,
        }
        if _log.isEnabledFor(logging.INFO):
            log_facts(_log, logging.INFO, f"{request.method} {request.path}", facts)
        headers |= {"X-Request-Id": request_id, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return write_response(request, status, headers, body)

    async def _answer(self, request: HttpRequest, request_id: str) -> Mapping[str, Any]:
        body = self._body(request)
        route, path_fields = match(request.method, request.path)
        payload = self._payload(request, route, path_fields, body)
        operation = OPERATIONS[route.operation]
        if "cache_control" in operation.request.model_fields and payload.get("cache_control") is None:
            payload |= _cache_control(request)
        if operation.streams(payload):
            raise InvalidRequest(_STREAM, param="stream")
        if operation.stream is not None and not operation.admin and "idempotency-key" in request.headers:
            raise InvalidRequest(_IDEMPOTENCY, param="Idempotency-Key")
        envelope = Envelope(request_id, "http", TYPE_PREFIX + route.operation, route.operation, payload)
        return await self._dispatch(envelope)

    def _body(self, request: HttpRequest) -> bytes | None:
        body = request.body()
        if body is not None:
            check_content_encoding([request.headers.get("content-encoding", "")])
            if len(body) > self._max_body_bytes:
                raise PayloadTooLarge(f"The request body is larger than {self._max_body_bytes} bytes (MAX_BODY_BYTES).")
        return body

    def _payload(
        self, request: HttpRequest, route: Route, path_fields: dict[str, str], body: bytes | None
    ) -> dict[str, Any]:
        if route.method in ("GET", "DELETE"):
            return query_payload(route, path_fields, request.query)
        content_type, charset = request.content_type
        return body_payload(path_fields, body, content_type, charset, self._max_depth)


def _begin(request: HttpRequest, request_id: str) -> UsageCounter:
    """Set the request's context variables for logs, traces and the caller; return the counter of its usage."""
    trace = continue_trace(request.headers.get("traceparent"), request.headers.get("tracestate", ""))
    request_facts.set({"request_id": request_id} | trace)
    authorization, api_key = (
        [request.headers[name]] if request.headers.get(name) else [] for name in ("authorization", "x-api-key")
    )
    usage = UsageCounter()
    request_scope.set(RequestScope(credentials_hash(authorization, api_key), usage))
    return usage


def _cache_control(request: HttpRequest) -> dict[str, str]:
    line = request.headers.get("cache-control")
    return {} if line is None else {"cache_control": line.encode("ascii", "ignore").decode()}


def _render(request: HttpRequest, error: ServiceError) -> tuple[int, dict[str, str], bytes]:
    allow = allowed(request.path) if isinstance(error, MethodNotAllowed) else ()
    response = error_response(error, error_form(request.path), allow=allow)
    if isinstance(error, UnsupportedMediaType):
        response.headers["Accept-Encoding"] = "identity"
    return response.status, response.headers, response.body
