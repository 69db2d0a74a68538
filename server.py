"""Entry point: ``python server.py`` serves; ``warmstart COMMAND`` is the command line over the same handlers."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

try:
    from aiohttp import web

    from app import CONTEXT, create_app
    from handlers import OPERATIONS
    from handlers.context import Context
    from handlers.local import build_context, invoke, invoke_stream
    from middleware.receiving import DeadlineRunner
    from runtime.catalogue import CATALOGUE, on_disk, parse_model_name
    from runtime.errors import InvalidRequest, ServiceError, SettingsError
    from runtime.logging import setup_logging
    from runtime.registry import LOAD_THREAD, Registry
    from runtime.settings import Settings
    from runtime.strict_json import loads
except KeyboardInterrupt:  # Ctrl-C while still importing, which takes half a second
    sys.exit(130)

_log = logging.getLogger("warmstart.server")

_KEEPALIVE_SECONDS = 75  # longer than the 60 s after which nginx drops an idle upstream connection: it must be first
_CLOSING_SECONDS = 2  # for handlers to write their last words once the engine has ended them


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain: probes say so, running requests finish, new ones get 503.

    A second signal ends at once.

    Args:
        settings: validated settings.

    Raises:
        OSError: the address is taken or not ours.
    """
    app = create_app(settings)
    runner = DeadlineRunner(
        app,
        header_timeout=settings.header_timeout_seconds,
        handler_cancellation=True,  # a client that goes away cancels its handler, which frees the engine
        keepalive_timeout=_KEEPALIVE_SECONDS,
        lingering_time=_CLOSING_SECONDS,  # for what a refused client still sends
        access_log=None,  # middleware/access_log.py writes it
        shutdown_timeout=_CLOSING_SECONDS,
    )
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            _log.warning("second signal: ending at once")
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        path = settings.host.removeprefix("unix:")
        if path != settings.host:
            await web.UnixSite(runner, path).start()
            _log.info("listening on %s", settings.host)
        else:
            await web.TCPSite(runner, settings.host, settings.port).start()
            host, port = runner.addresses[0][:2]
            _log.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, port)
        await stop.wait()
        _log.info("draining for up to %g s", settings.drain_seconds)
        models = app[CONTEXT].models
        if isinstance(models, Registry):
            await asyncio.to_thread(models.close, settings.drain_seconds)
    finally:
        await runner.cleanup()
    _log.info("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Ctrl-C ends every command without a traceback.

    Args:
        arguments: without the program's name; those of the process if left out.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong usage or settings, 130 after Ctrl-C.
    """
    status = _run(_parser().parse_args(arguments))
    if any(thread.name.startswith(LOAD_THREAD) for thread in threading.enumerate()):
        # A load nobody waits for any more. Python cannot stop it, and torch aborts if the interpreter ends beneath it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options) or 0)
    except SettingsError as error:
        return _fail(str(error), 2)
    except ServiceError as error:
        return _fail(error.message, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)


def _fail(message: str, status: int) -> int:
    print(f"warmstart: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="warmstart", description="Serve small language models from plain Python.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *, model: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        if model:
            added.add_argument("--model", help="instead of MODEL_NAME")
        return added

    sub = command("serve", _serve, "Run the HTTP service.")
    sub.add_argument("--host", help="instead of HOST")
    sub.add_argument("--port", type=int, help="instead of PORT")
    sub = command("invoke", _invoke, "Call an operation with a JSON payload, or with one per line of standard input.")
    sub.add_argument("operation", choices=OPERATIONS)
    sub.add_argument("payload", nargs="?", default="-", help="a JSON object; - reads JSON lines (the default)")
    sub = command("generate", _generate, "Complete a text.")
    sub.add_argument("prompt")
    sub.add_argument("--stream", action="store_true", help="print tokens as they come")
    _sampling(sub)
    sub = command("chat", _chat, "Chat in the terminal. Ctrl-C stops an answer, Ctrl-D ends.")
    sub.add_argument("--system", help="the system prompt")
    _sampling(sub)
    command("models", _models, "List the models that have a short name, and MODEL_NAME.")
    sub = command("pull", _pull, "Download or convert a model ahead of time.", model=False)
    sub.add_argument("name", help="catalogue name, hub id with optional @revision, folder, or .gguf file")
    sub = command("bench", _bench, "Measure the model on this machine: prefill, decode, bandwidth, cold start.")
    sub.add_argument("--json", action="store_true", help="as JSON instead of a table")
    sub.add_argument("--perplexity", metavar="FILE", help="compute the perplexity of this text too")
    sub = command("config", _config, "Print all settings.", model=False)
    sub.add_argument("--markdown", action="store_true", help="as a table for the README")
    return parser


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--stop", action="append")
    parser.add_argument("--seed", type=int)


def _sampled(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling fields that were given."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _settings(options: argparse.Namespace, **overrides: Any) -> Settings:
    given = {"model_name": getattr(options, "model", None), **overrides}
    return Settings.load(**{name: value for name, value in given.items() if value is not None})


def _context(options: argparse.Namespace) -> Context:
    """For one command: it waits for its model as long as that takes, and only tells of trouble."""
    settings = _settings(options, model_wait_seconds=3600)
    # On a terminal a bar shows the progress; elsewhere log lines do.
    setup_logging(settings.log_format, "WARNING" if sys.stderr.isatty() else settings.log_level)
    return build_context(settings)


def _serve(options: argparse.Namespace) -> None:
    settings = _settings(options, host=options.host, port=options.port)
    setup_logging(settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


def _invoke(options: argparse.Namespace) -> int:
    ctx = _context(options)
    lines = (line for line in sys.stdin if line.strip()) if options.payload == "-" else [options.payload]
    failed = False
    for line in lines:
        try:
            payload = loads(line)
            if not isinstance(payload, dict):
                raise InvalidRequest("the payload must be a JSON object")
            result = asyncio.run(invoke(options.operation, payload, ctx=ctx))
        except ServiceError as error:
            failed, result = True, error.openai()
        print(json.dumps(result, ensure_ascii=False), flush=True)
    return int(failed)


def _generate(options: argparse.Namespace) -> None:
    ctx = _context(options)
    payload = {"prompt": options.prompt, "max_new_tokens": options.max_new_tokens, **_sampled(options)}
    if not options.stream:
        print(asyncio.run(invoke("generate", payload, ctx=ctx))["text"])
        return

    async def stream() -> None:
        async with aclosing(invoke_stream("generate", payload, ctx=ctx)) as events:
            async for event in events:
                print(event.get("text") or "", end="", flush=True)

    asyncio.run(stream())
    print()


def _chat(options: argparse.Namespace) -> None:
    ctx = _context(options)
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
        payload = {"messages": messages, "max_tokens": options.max_new_tokens, **_sampled(options)}

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
            print(f"warmstart: {error.message}", end="", file=sys.stderr)
        print()
        messages.append({"role": "assistant", "content": "".join(pieces)})


def _models(options: argparse.Namespace) -> None:
    default = parse_model_name(_settings(options).model_name)
    for spec in {default.id: default, **CATALOGUE}.values():
        marks = ["on disk" if on_disk(spec) else "not on disk"] + (["default"] if spec == default else [])
        print(f"{spec.id:<32} {spec.kind:<7} {', '.join(marks)}")


def _pull(options: argparse.Namespace) -> None:
    settings = Settings.load(model_name=options.name)
    setup_logging(settings.log_format, settings.log_level)
    from runtime.load_engine import pull  # numpy and the tokenizers come with it

    pull(parse_model_name(options.name), settings)


def _bench(options: argparse.Namespace) -> None:
    settings = _settings(options)
    setup_logging(settings.log_format, "WARNING")
    from runtime.bench import bench, table  # numpy and the tokenizers come with it

    text = Path(options.perplexity).read_text() if options.perplexity else None
    found = bench(parse_model_name(settings.model_name), settings, text=text)
    print(json.dumps(found) if options.json else table(found))


def _config(options: argparse.Namespace) -> None:
    rows = Settings.load().describe()
    if options.markdown:
        print("| setting | default | meaning |\n|---|---|---|")
        for name, _, default, text in rows:
            print(f"| `{name}` | {f'`{default}`' if default else ''} | {text} |")
        return
    width = max(len(name) for name, *_ in rows)
    for name, value, default, text in rows:
        print(
            f"{name:<{width}} = {value}{'' if value == default else f'  (default {default})'}\n{'':<{width}}   {text}"
        )


if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
