"""Google Cloud Functions' entry point ``warmstart_event``, for the functions-framework.

To run it: ``functions-framework --source handlers/cloud_function.py --target warmstart_event``.

The function is an HTTP function whatever ``--signature-type`` says: all content modes of CloudEvents work, and the
answer is that of ``POST /events``, which the framework's CloudEvent functions cannot return.

The settings are read when the framework starts. The model is loaded at the first request, because the framework forks
its processes, and threads do not survive a fork.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import flask
import functions_framework
from prometheus_client import CollectorRegistry

from handlers.dispatch.events import Dispatcher
from handlers.functions.event_loop import run
from handlers.local import open_processor, reject_http_settings, shared_context
from handlers.operations import OPERATIONS
from runtime.error_response import error_response
from runtime.errors import MethodNotAllowed, PayloadTooLarge, ServiceError
from runtime.events.cloudevents.http import CloudEventsService, EventResponse
from runtime.events.delivery_report import DeliveryReporter
from runtime.settings import Settings
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.logging import setup_logging
from runtime.telemetry.request_scope import current_caller, observe_usage


def make_function() -> Any:
    """Create the function from the environment's settings.

    Raises:
        SettingsError: a setting is wrong, or needs the HTTP service's middlewares.
    """
    settings = Settings.load()
    reject_http_settings(
        settings, "leave that to the platform, or run the HTTP service there (docs/events-cloudevents.md)"
    )
    setup_logging(settings.log_format, settings.log_level)

    @cache  # called on the loop's thread only, so that it is created once
    def service() -> CloudEventsService:
        ctx = replace(shared_context(), observe=observe_usage, caller=current_caller)
        processor, _ = open_processor(settings, Dispatcher(ctx, settings.events_operations))
        reporter = DeliveryReporter("http", OPERATIONS, EventMetrics(CollectorRegistry()))
        return CloudEventsService(
            processor, reporter, concurrency=settings.events_concurrency, max_depth=settings.max_json_depth
        )

    async def answered(headers: list[tuple[str, str]], body: bytes) -> EventResponse:
        return await service().answer(headers, body)

    @functions_framework.http
    def warmstart_event(request: flask.Request) -> flask.Response:
        """Answer an HTTP request as ``POST /events`` does."""
        try:
            if request.method != "POST":
                raise MethodNotAllowed(f"{request.method} is not allowed on this path; allowed: POST")
            body = request.get_data()  # the framework reads the whole body anyway
            if len(body) > settings.max_body_bytes:
                raise PayloadTooLarge(f"the body is larger than {settings.max_body_bytes} bytes (MAX_BODY_BYTES)")
            answer = run(answered(list(request.headers.items()), body))
        except ServiceError as error:
            return _problem(error)
        return flask.Response(answer.body, answer.status, answer.headers)

    return warmstart_event


@cache
def _function() -> Any:
    return make_function()


def __getattr__(name: str) -> Any:
    """Create ``warmstart_event`` on first access; importing the module creates nothing."""
    if name == "warmstart_event":
        return _function()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _problem(error: ServiceError) -> flask.Response:
    response = error_response(error, "problem", allow=("POST",) if isinstance(error, MethodNotAllowed) else ())
    return flask.Response(response.body, response.status, response.headers)
