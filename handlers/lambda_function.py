"""AWS Lambda's entry point: ``handlers.lambda_function.handler``, for the runtime interface client.

``handler`` is created on first access, which Lambda does in a container's init phase: the settings are read and the
model is loaded then, once, and both are kept while the container lives, which is frozen and thawed between calls. All
calls run on one event loop, because the engine and the connections of the idempotency records belong to it.

To send answers to messages elsewhere, write a module with ``handler = make_handler(send)``.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry

from handlers.context import Context
from handlers.dispatch.events import Dispatcher
from handlers.functions.event_loop import run
from handlers.functions.lambda_http import LambdaHttpRequests
from handlers.local import open_processor, reject_http_settings, shared_context
from handlers.operations import OPERATIONS
from runtime.errors import ServiceError
from runtime.events.aws_lambda.kinds import function_error, kind_of
from runtime.events.aws_lambda.worker import LambdaWorker, Send
from runtime.events.delivery_report import DeliveryReporter
from runtime.settings import Settings
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.logging import setup_logging
from runtime.telemetry.request_scope import current_caller, observe_usage

_INIT_SECONDS = 8.0  # Lambda restarts an init phase that takes over 10 s, and then bills it
_MARGIN_SECONDS = 1.0  # before Lambda's own deadline: time to stop a generation, return messages and answer


class Function:
    """The Lambda handler, called with each event.

    Args:
        settings: the validated settings.
        ctx: the operations' context.
        send: called with answers to SQS, SNS and EventBridge messages, see ``LambdaWorker``; None to drop them.

    Raises:
        SettingsError: a setting needs the HTTP service's middlewares.
    """

    def __init__(self, settings: Settings, ctx: Context, send: Send | None = None) -> None:
        reject_http_settings(
            settings, "leave that to API Gateway and IAM, or serve with the Lambda Web Adapter (docs/events-lambda.md)"
        )
        self._models = ctx.models
        ctx = replace(ctx, observe=observe_usage, caller=current_caller)
        dispatch = Dispatcher(ctx, settings.events_operations)
        self._requests = LambdaHttpRequests(
            dispatch, max_body_bytes=settings.max_body_bytes, max_depth=settings.max_json_depth
        )
        processor, _ = open_processor(settings, dispatch)
        metrics = EventMetrics(CollectorRegistry())

        @cache
        def reporter(kind: str) -> DeliveryReporter:
            return DeliveryReporter(f"lambda:{kind}", OPERATIONS, metrics)

        self._worker = LambdaWorker(processor, reporter, max_concurrency=settings.events_concurrency, send=send)

    def __call__(self, event: Any, context: Any = None) -> Any:
        """Handle an event and return the answer for Lambda.

        Args:
            event: the event, decoded from JSON.
            context: the invocation's context from AWS's runtime client; None for no deadline.

        Raises:
            FunctionError: the event failed, and its kind has no other form for an error.
        """
        return run(self.answer(event, context))

    async def answer(self, event: Any, context: Any = None) -> Any:
        """Handle an event as ``__call__`` does, on the event loop."""
        loop = asyncio.get_running_loop()
        request_id, deadline = secrets.token_hex(16), None
        if context is not None:
            request_id = context.aws_request_id
            deadline = loop.time() + context.get_remaining_time_in_millis() / 1e3 - _MARGIN_SECONDS
        try:
            kind = kind_of(event)
            if kind == "v1" or kind == "v2" or kind == "alb":
                return await self._requests(event, kind, request_id, deadline)
            if kind == "sqs":
                return await self._worker.batch(event["Records"], deadline)
            return await self._worker.single(kind, event, request_id, deadline)
        except ServiceError as error:
            raise function_error(error) from None

    def load(self, seconds: float) -> None:
        """Load the default model and wait for the load to end.

        An error appears in the log and in later answers.

        Args:
            seconds: the longest wait; the load continues after it.
        """
        with suppress(TimeoutError):
            run(self._loaded(), seconds)

    async def _loaded(self) -> None:
        default = self._models.status()[0].id
        self._models.load(default)
        async for _ in self._models.watch(default):
            pass


def make_handler(send: Send | None = None) -> Function:
    """Create a handler from the environment's settings, and load the model unless ``PRELOAD`` is off.

    Args:
        send: called with answers to messages, see ``Function``.

    Raises:
        SettingsError: a setting is wrong.
        ModelUnavailable: ``MODEL_NAME`` or one of ``MODELS`` is not a valid model name.
    """
    settings = Settings.load()
    setup_logging(settings.log_format, settings.log_level)
    function = Function(settings, shared_context(), send)
    if settings.preload:
        function.load(_INIT_SECONDS)
    return function


@cache
def _handler() -> Function:
    return make_handler()


def __getattr__(name: str) -> Any:
    """Create ``handler`` on first access; importing the module for other names creates nothing."""
    if name == "handler":
        return _handler()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
