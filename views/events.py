"""``POST /events``: the aiohttp handler for CloudEvents over HTTP (``runtime.events.cloudevents.http``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aiohttp import web

from middleware.request_keys import PAYLOAD, REASON, REFUSALS
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import Envelope
from runtime.events.idempotency.records import Records
from runtime.events.processor import Processor
from runtime.settings import Settings
from views.operations import log_prompt
from views.paced_body import paced

if TYPE_CHECKING:
    from runtime.events.cloudevents.http import CloudEventsService


class Events:
    """The handler of ``POST /events``; opens the processor and the idempotency records on the first event.

    Args:
        settings: the application's settings.
        open_processor: creates the event processor, and its idempotency records or None.
        reporter: the reporter that logs and counts each event.
        caller: returns an id of the request's sender.
    """

    def __init__(
        self,
        settings: Settings,
        open_processor: Callable[[], tuple[Processor, Records | None]],
        reporter: DeliveryReporter,
        caller: Callable[[web.Request], str],
    ) -> None:
        self._settings = settings
        self._open_processor = open_processor
        self._reporter = reporter
        self._caller = caller
        self._records: Records | None = None

    async def handle(self, request: web.Request) -> web.Response:
        """Process the events in a request, and return their results.

        Raises:
            ServiceError: the request is not a valid event, or must be sent again later.
        """
        payloads: list[dict[str, Any]] = []

        def on_event(envelope: Envelope) -> None:
            payloads.append(envelope.data)
            request[PAYLOAD] = payloads[0] if len(payloads) == 1 else {"prompt": payloads}
            if self._settings.log_prompts:
                log_prompt(envelope.data)

        answer = await self._service.answer(
            request.headers.items(), await request.read(), caller=self._caller(request), on_event=on_event
        )
        for error in answer.rejected:
            request.app[REFUSALS].labels(error.code).inc()
        if answer.status >= 400:
            request[REASON] = answer.rejected[0].code
        return web.Response(status=answer.status, headers=answer.headers, body=paced(answer.body))

    async def close(self, app: web.Application) -> None:
        """``on_cleanup`` signal: close the idempotency records."""
        if self._records is not None:
            await self._records.close()

    @cached_property
    def _service(self) -> CloudEventsService:
        from runtime.events.cloudevents.http import (
            CloudEventsService,  # imported late: the import takes 50 ms, which would delay the start
        )

        processor, self._records = self._open_processor()
        settings = self._settings
        return CloudEventsService(
            processor, self._reporter, concurrency=settings.events_concurrency, max_depth=settings.max_json_depth
        )
