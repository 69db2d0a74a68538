"""AWS Lambda's way in: ``handlers.lambda_function.handler``, for the runtime interface client.

``handler`` is made when it is asked for, which Lambda does in a container's init phase: settings are read and the model
is loaded then, once, and kept for as long as the container lives, frozen and thawed between its calls. All calls run on
one event loop, because that is where the model's engine and the records' connections are at home.

For answers that go somewhere, a module of your own with ``handler = make_handler(send)``.
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
from handlers.local import open_processor, refuse_edge, shared_context
from handlers.operations import OPERATIONS
from runtime.errors import ServiceError
from runtime.events.aws_lambda.kinds import function_error, kind_of
from runtime.events.aws_lambda.worker import LambdaWorker, Send
from runtime.events.delivery_report import DeliveryReporter
from runtime.settings import Settings
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.logging import setup_logging
from runtime.telemetry.request_scope import note_usage, request_caller

_INIT_SECONDS = 8.0  # Lambda starts anew what is not through its init phase in 10, and then charges for it
_MARGIN_SECONDS = 1.0  # before Lambda's own deadline: to stop a generation, give work back and answer


class Function:
    """What Lambda calls with each event.

    Args:
        settings: validated settings.
        ctx: what the operations get.
        send: see ``LambdaWorker``.

    Raises:
        SettingsError: they ask for what is not there without the HTTP service.
    """

    def __init__(self, settings: Settings, ctx: Context, send: Send | None = None) -> None:
        refuse_edge(
            settings, "leave that to API Gateway and IAM, or serve with the Lambda Web Adapter (docs/events-lambda.md)"
        )
        self._models = ctx.models
        ctx = replace(ctx, observe=note_usage, caller=request_caller.get)
        dispatch = Dispatcher(ctx, settings.events_operations)
        self._requests = LambdaHttpRequests(
            dispatch, max_body_bytes=settings.max_body_bytes, max_depth=settings.max_json_depth
        )
        processor, _ = open_processor(settings, dispatch)
        metrics = EventMetrics(CollectorRegistry())

        @cache
        def reporter(kind: str) -> DeliveryReporter:
            return DeliveryReporter(f"lambda:{kind}", OPERATIONS, metrics)

        self._worker = LambdaWorker(processor, reporter, most=settings.events_concurrency, send=send)

    def __call__(self, event: Any, context: Any = None) -> Any:
        """Answer an event.

        Args:
            event: decoded from JSON.
            context: of the invocation, as AWS's client makes it; None where there is no deadline.

        Raises:
            FunctionError: there is no answer, and the event's kind has no other way to say so.
        """
        return run(self.answer(event, context))

    async def answer(self, event: Any, context: Any = None) -> Any:
        """The same, on the loop."""
        loop = asyncio.get_running_loop()
        request_id, until = secrets.token_hex(16), None
        if context is not None:
            request_id = context.aws_request_id
            until = loop.time() + context.get_remaining_time_in_millis() / 1e3 - _MARGIN_SECONDS
        try:
            kind = kind_of(event)
            if kind == "v1" or kind == "v2" or kind == "alb":
                return await self._requests(event, kind, request_id, until)
            if kind == "sqs":
                return await self._worker.batch(event["Records"], until)
            return await self._worker.single(kind, event, request_id, until)
        except ServiceError as error:
            raise function_error(error) from None

    def load(self, seconds: float) -> None:
        """Load the default model, and wait for it so long at most; the load goes on. That it failed shows in the log,
        and in the answers.
        """
        with suppress(TimeoutError):
            run(self._loaded(), seconds)

    async def _loaded(self) -> None:
        default = self._models.status()[0].id
        self._models.load(default)
        async for _ in self._models.watch(default):
            pass


def make_handler(send: Send | None = None) -> Function:
    """A handler on the environment's settings, with the model loaded unless ``PRELOAD`` is off.

    Args:
        send: see ``LambdaWorker``.

    Raises:
        SettingsError: a setting is wrong.
        ModelUnavailable: ``MODEL_NAME`` or one of ``MODELS`` is not a name of any kind.
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
    """``handler``: see the module. Importing it for anything else does nothing."""
    if name == "handler":
        return _handler()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
