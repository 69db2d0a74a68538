"""``warmstart submit``: put messages into a queue and print their answers."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import CancelledError
from contextlib import aclosing, asynccontextmanager
from hashlib import sha256
from typing import Any

from handlers.cli.generate import json_line
from handlers.cli.options import settings_of
from handlers.cli.queue_options import add_queue, queue_of
from handlers.operations import OPERATIONS
from runtime.errors import DeadlineExceeded, InvalidRequest, ServiceError
from runtime.events.envelope import TYPE_PREFIX, Envelope
from runtime.events.queues.base import BrokerUnavailable, Reply, Submitter
from runtime.events.queues.factory import open_submitter
from runtime.strict_json import loads
from runtime.telemetry.logging import setup_logging

_MAX_IN_FLIGHT = 64  # messages
_STREAMING = ("generate", "complete", "chat", "completions")  # operations that stream text


def add(commands: Any) -> None:
    """Add ``submit`` to the command line's subparsers."""
    text = "Send requests to a queue, and print the answers."
    usage = "warmstart submit [URL] OPERATION [PAYLOAD|-] [options]"
    sub: argparse.ArgumentParser = commands.add_parser("submit", usage=usage, help=text, description=text)
    sub.set_defaults(run=run, wrong=sub.error)
    sub.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help="the broker's URL instead of EVENTS_URL; the operation; a JSON object, or - (the default) for JSON lines",
    )
    add_queue(sub, "--stream-name")
    sub.add_argument(
        "--id",
        help="the message's id; a message sent again with the same id gets the same answer and is processed once",
    )
    sub.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="the time after which the message is not processed any more"
    )
    sub.add_argument("--timeout", type=float, metavar="SECONDS", help="the maximum time to wait for each answer")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--no-wait", action="store_true", help="print the messages' ids instead of waiting for answers")
    how.add_argument(
        "--stream", action="store_true", help="print the text as it is generated, one message after the other"
    )


def run(options: argparse.Namespace) -> int:
    """Run ``submit``: send payloads and print, in their order, the answers as JSON lines, the texts, or the ids.

    Returns:
        1 if a message failed, else 0.

    Raises:
        SystemExit: the arguments are wrong.
        SettingsError: there is no such queue.
        ServiceError: the broker is unavailable.
    """
    words: list[str] = list(options.words)
    url = words.pop(0) if "://" in words[0] else None
    if not 1 <= len(words) <= 2 or words[0] not in OPERATIONS:
        options.wrong(f"name one operation and at most one payload; the operations are {', '.join(OPERATIONS)}")
    operation, payload = words[0], words[1] if len(words) == 2 else "-"
    if options.stream and operation not in _STREAMING:
        options.wrong(f"--stream: only {', '.join(_STREAMING)} stream their text")
    settings = settings_of(options)
    setup_logging(settings.log_format, "WARNING" if sys.stderr.isatty() else settings.log_level)
    submitter = open_submitter(queue_of(options, settings, url))
    try:
        return asyncio.run(_submit(submitter, operation, payload, options))
    except BrokerUnavailable as error:
        raise ServiceError(f"the broker is unavailable: {error}") from None


async def _submit(submitter: Submitter, operation: str, payload: str, options: argparse.Namespace) -> int:
    try:
        await submitter.open()
        messages = _messages(operation, payload, options)
        return await (_print_streams if options.stream else _print_lines)(submitter, messages, options)
    finally:
        await submitter.close()


async def _print_lines(submitter: Submitter, messages: AsyncIterator[Envelope | ServiceError], options: Any) -> int:
    """Print a line per message in their order, with many in flight; return 1 if a message failed, else 0."""
    failed = 0
    tasks: asyncio.Queue[asyncio.Task[tuple[bool, str]] | None] = asyncio.Queue(_MAX_IN_FLIGHT)

    async def show() -> None:
        nonlocal failed
        while (task := await tasks.get()) is not None:
            good, line = await task
            failed |= not good
            print(line, flush=True)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(show())
            async for message in messages:
                await tasks.put(group.create_task(_line(submitter, message, options)))
            await tasks.put(None)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return failed


async def _line(submitter: Submitter, message: Envelope | ServiceError, options: Any) -> tuple[bool, str]:
    try:
        async with _replies(submitter, message, options) as replies:
            async for reply in replies:
                if reply.kind != "chunk":
                    return reply.kind == "result", json_line(reply.body)
        assert isinstance(message, Envelope)  # otherwise the error has been raised
        return True, message.id
    except ServiceError as error:
        return False, json_line(error.openai())


async def _print_streams(submitter: Submitter, messages: AsyncIterator[Envelope | ServiceError], options: Any) -> int:
    """Stream each answer's text, one message after the other; return 1 if a message failed, else 0."""
    failed = 0
    async for message in messages:
        printed = PrintedText()
        try:
            async with _replies(submitter, message, options) as replies:
                async for reply in replies:
                    if reply.kind == "error":
                        raise ServiceError(reply.body["error"]["message"])
                    print(printed.add(reply), end="", flush=True)
            print(flush=True)
        except ServiceError as error:
            failed = 1
            print("\n" * bool(printed.text), end="", flush=True)
            print(f"warmstart: {error.message}", file=sys.stderr)
    return failed


@asynccontextmanager
async def _replies(
    submitter: Submitter, message: Envelope | ServiceError, options: Any
) -> AsyncIterator[AsyncIterator[Reply]]:
    """Submit a message and yield its replies, within ``--timeout``.

    Raises:
        DeadlineExceeded: no answer came in time.
        ServiceError: ``message`` is an error, which is raised.
    """
    if isinstance(message, ServiceError):
        raise message
    try:
        async with asyncio.timeout(options.timeout):
            async with aclosing(await submitter.submit(message, wait=not options.no_wait)) as replies:
                yield replies
    except TimeoutError:
        text = f"no answer within {options.timeout:g} s (--timeout); submit the message again with --id {message.id}"
        raise DeadlineExceeded(text) from None


class PrintedText:
    """Tracks the printed text of one answer. Chunks may be missing, or be repeated when another worker takes over."""

    def __init__(self) -> None:
        self.text = ""
        self._attempt = self._next = 0
        self._pending = ""

    def add(self, reply: Reply) -> str:
        """Add a reply and return the text to print now."""
        if reply.kind == "result":
            return self._show(text_of(reply.body), last=True)
        if reply.attempt > self._attempt:
            self._attempt, self._next, self._pending = reply.attempt, 0, ""
        if reply.attempt < self._attempt or reply.chunk != self._next:
            return ""  # of an abandoned attempt, or after a missing chunk: the result has the whole text
        self._next += 1
        self._pending += piece_of(reply.body)
        return self._show(self._pending)

    def _show(self, text: str, *, last: bool = False) -> str:
        if text.startswith(self.text):
            more, self.text = text[len(self.text) :], text
            return more
        return f"\n{text}" if last else ""  # not a continuation of the printed text, so print it whole


def piece_of(chunk: Mapping[str, Any]) -> str:
    """Return the text that a chunk adds to the first sequence."""
    parts: list[dict[str, Any]] = [part for part in chunk.get("choices", [chunk]) if part.get("index") == 0]
    return "".join(part.get("text") or part.get("delta", {}).get("content") or "" for part in parts)


def text_of(answer: Mapping[str, Any]) -> str:
    """Return the text of an answer's first sequence."""
    first = answer["choices"][0] if "choices" in answer else answer
    return str(first["text"] if "text" in first else first["message"]["content"])


async def _messages(operation: str, payload: str, options: Any) -> AsyncIterator[Envelope | ServiceError]:
    """Yield a message for each line of payload; the error in place of an invalid one.

    Raises:
        InvalidRequest: ``--id`` is given for more than one message.
    """
    count = 0
    async for line in _stdin() if payload == "-" else _one(payload.encode("utf-8", "surrogateescape")):
        if not line.strip():
            continue
        count += 1
        if options.id is not None and count > 1:
            raise InvalidRequest("--id: it can be given for one message only, and there are several", param="id")
        try:
            yield _message(operation, line, options)
        except ServiceError as error:
            yield error


def _message(operation: str, line: bytes, options: Any) -> Envelope:
    data = loads(line)
    if not isinstance(data, dict):
        raise InvalidRequest("the payload must be a JSON object")
    name = options.id or secrets.token_hex(16)
    if "seed" in OPERATIONS[operation].request.model_fields and data.get("seed") is None:
        # Derived from the id: a worker that takes over generates the same text, and the same id gives the same work.
        data["seed"] = int.from_bytes(sha256(name.encode()).digest()[:4])
    return Envelope(
        id=name,
        source="",
        type=TYPE_PREFIX + operation,
        operation=operation,
        data=data,
        deadline=None if options.deadline is None else time.time() + options.deadline,
        stream=options.stream,
    )


async def _one(line: bytes) -> AsyncIterator[bytes]:
    yield line


async def _stdin() -> AsyncIterator[bytes]:
    """Yield the lines of standard input, read on a daemon thread so that Ctrl-C does not wait for a line."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_IN_FLIGHT)

    def put(line: bytes | None) -> None:
        putting = lines.put(line)
        try:
            asyncio.run_coroutine_threadsafe(putting, loop).result()
        finally:
            putting.close()  # if the loop is closed, it was never awaited

    def read() -> None:
        rest = b""
        try:
            while piece := os.read(sys.stdin.fileno(), 65_536):
                *lines_read, rest = (rest + piece).split(b"\n")
                for line in lines_read:
                    put(line)
            put(rest)
            put(None)
        except (RuntimeError, CancelledError):  # the loop is closed
            pass

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line
