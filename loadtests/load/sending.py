"""Sends one request and records what became of it."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from loadtests.load.answer import Streamed, read_complete, read_cut, read_streamed
from loadtests.load.http_answer import BadAnswer, HTTPAnswer, Piece
from loadtests.load.http_client import ConnectionPool
from loadtests.load.record import HUNG_UP, OK, LoadRecord
from loadtests.load.work import WorkRequest

_DETAIL_CHARACTERS = 500


class EventSender(Protocol):
    """Sends events through a broker."""

    def request(self, operation: str, body: dict[str, Any], seconds: float) -> tuple[Sequence[Piece], bytes]:
        """Send an event and wait for its result.

        Returns:
            The chunks of its stream that have text, and the result as JSON.

        Raises:
            BadAnswer: the result is an error.
            TimeoutError: it did not come in time.
            OSError: the broker cannot be reached.
        """


def send(
    request: WorkRequest,
    pool: ConnectionPool,
    events: EventSender | None,
    *,
    origin: float,
    due: float | None,
    seconds: float,
) -> tuple[LoadRecord, str]:
    """Send a request and wait for its end, whatever that is.

    Args:
        request: the request.
        pool: the server's connections.
        events: sends events; None if the scenario has none.
        origin: the stage's start in ``time.perf_counter`` seconds.
        due: when it had to be sent, in seconds from the start; None: now.
        seconds: the time limit.

    Returns:
        The record, and the answer's text.
    """
    began = time.perf_counter()
    outcome, detail, answer = OK, "", None
    try:
        if events is not None and request.method == "POST" and not request.path.startswith("/"):
            chunks, result = events.request(request.path, request.body, seconds)
            times = tuple(now for now, _ in chunks)
            answer = read_complete(result, began, time.perf_counter())._replace(times=times)
        else:
            body = json.dumps(request.body).encode() if request.method == "POST" else b""
            response, _, ended = pool.request(
                request.method, request.path, body, max(seconds, 0.001), request.hang_up_after
            )
            outcome, detail, answer = _read(request, response, began, ended)
    except TimeoutError as error:
        outcome, detail = "timeout", str(error) or "no answer in time"
    except BadAnswer as error:
        outcome, detail = "bad answer", str(error)
    except OSError as error:
        outcome, detail = "connection", str(error) or repr(error)
    ended = answer.ended if answer else time.perf_counter()
    record = LoadRecord(
        work=request.work,
        due=began - origin if due is None else due,
        sent=began - origin,
        ended=ended - origin,
        times=array("d", (moment - origin for moment in (answer.times if answer else ()))),
        prompt_tokens=answer.prompt_tokens if answer else 0,
        completion_tokens=answer.completion_tokens if answer else 0,
        outcome=outcome,
        detail=detail[:_DETAIL_CHARACTERS],
        scheduled=due is not None,
    )
    return record, answer.text if answer else ""


def _read(request: WorkRequest, response: HTTPAnswer, began: float, ended: float) -> tuple[str, str, Streamed | None]:
    """Return an HTTP answer's outcome, an error's message, and what could be read."""
    if response.status != 200:
        return f"HTTP {response.status}", response.body().decode(errors="replace"), None
    if request.method == "GET":
        return OK, "", Streamed(began, ended, (), 0, 0, "")
    if not response.done:
        return HUNG_UP, "", read_cut(response.pieces, began, ended)
    if request.stream:
        answer = read_streamed(response.pieces, began, ended)
    else:
        answer = read_complete(response.body(), began, ended, generates=request.generates)
    if request.json_answer and answer.reason != "length":
        try:
            json.loads(answer.text)
        except ValueError:
            return "invalid JSON", answer.text, answer
    return OK, "", answer
