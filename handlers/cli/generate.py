"""The commands that generate in this process: ``warmstart invoke | generate | chat``.

Each ``run_`` function takes the parsed options and returns the exit status; None is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

from handlers.cli.options import sampled, settings_of
from handlers.context import Context
from handlers.local import build_context, invoke, invoke_stream
from runtime.errors import InvalidRequest, ServiceError
from runtime.strict_json import loads
from runtime.telemetry.logging import setup_logging


def json_line(value: object) -> str:
    """Return JSON for standard output; non-ASCII characters are escaped unless its encoding is UTF-8."""
    return json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() != "utf-8")


def run_invoke(options: argparse.Namespace) -> int:
    """Run ``invoke``: call an operation with each payload and print a JSON line per response or error.

    Returns:
        1 if a call failed, else 0.
    """
    ctx = context_of(options)
    given = [options.payload.encode("utf-8", "surrogateescape")]
    lines = (line for line in sys.stdin.buffer if line.strip()) if options.payload == "-" else given
    failed = False
    for line in lines:
        try:
            payload = loads(line)
            if not isinstance(payload, dict):
                raise InvalidRequest("the payload must be a JSON object")
            result = asyncio.run(invoke(options.operation, payload, ctx=ctx))
        except ServiceError as error:
            failed, result = True, error.openai()
        print(json_line(result), flush=True)
    return int(failed)


def run_generate(options: argparse.Namespace) -> None:
    """Run ``generate``: print the text when it is complete, or token by token with ``--stream``."""
    ctx = context_of(options)
    payload = {"prompt": options.prompt, "max_new_tokens": options.max_new_tokens, **sampled(options)}
    if not options.stream:
        print(asyncio.run(invoke("generate", payload, ctx=ctx))["text"])
        return

    async def stream() -> None:
        async with aclosing(invoke_stream("generate", payload, ctx=ctx)) as events:
            async for event in events:
                print(event.get("text") or "", end="", flush=True)

    asyncio.run(stream())
    print()


def run_chat(options: argparse.Namespace) -> None:
    """Run ``chat``: answer each line of input as a turn of one chat, until the end of the input."""
    ctx = context_of(options)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        payload = {"messages": messages, "max_tokens": options.max_new_tokens, **sampled(options)}

        async def answer(payload: dict[str, Any] = payload, pieces: list[str] = pieces) -> None:
            async with aclosing(invoke_stream("chat", payload, ctx=ctx)) as events:
                async for event in events:
                    piece = event["choices"][0]["delta"].get("content", "")
                    pieces.append(piece)
                    print(piece, end="", flush=True)

        try:
            asyncio.run(answer())
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except ServiceError as error:
            print("\n" * bool(pieces), end="", flush=True)
            print(f"warmstart: {error.message}", file=sys.stderr)
            messages.pop()  # a refused message would be refused again in each later turn
            continue
        print()
        messages.append({"role": "assistant", "content": "".join(pieces)})


def context_of(options: argparse.Namespace) -> Context:
    """Build a command's context, which waits up to an hour for the model; on a terminal only warnings are logged."""
    settings = settings_of(options, model_wait_seconds=3600)
    # A terminal shows the progress as a bar; otherwise log lines show it.
    setup_logging(settings.log_format, "WARNING" if sys.stderr.isatty() else settings.log_level)
    return build_context(settings)
