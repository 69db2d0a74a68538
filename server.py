"""Entry point: ``python server.py`` serves; ``warmstart COMMAND`` is the command line over the same handlers."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

try:
    from aiohttp import web

    from app import CONTEXT, create_app
    from handlers import OPERATIONS, audit_command, command_line, keys_command, models_command, sign_command
    from middleware.places import allow_files
    from middleware.receiving import DeadlineRunner
    from runtime.errors import ServiceError, SettingsError
    from runtime.logging import setup_logging
    from runtime.registry import Registry
    from runtime.residents import LOAD_THREAD
    from runtime.settings import Settings
    from runtime.tls import tls_of
except KeyboardInterrupt:  # Ctrl-C while still importing, which takes half a second
    sys.exit(130)

_log = logging.getLogger("warmstart.server")

_CLOSING_SECONDS = 2  # for handlers to write their last words once the engine has ended them


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain: probes say so, running requests finish, new ones get 503.

    A second signal ends at once.

    Args:
        settings: validated settings.

    Raises:
        SettingsError: the files of the certificate or of the keys are wrong.
        OSError: the address is taken or not ours.
    """
    tls = tls_of(settings)
    app = create_app(settings)
    runner = DeadlineRunner.of(
        app,
        settings,
        tls,
        handler_cancellation=True,  # a client that goes away cancels its handler, which frees the engine
        lingering_time=_CLOSING_SECONDS,  # for what a refused client still sends
        access_log=None,  # middleware/access_log.py writes it
        shutdown_timeout=_CLOSING_SECONDS,
    )
    allow_files(settings.max_connections)
    await runner.setup()
    watch = asyncio.create_task(tls.watch()) if tls is not None else None
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
            scheme = "http" if tls is None else "https"
            _log.info("listening on %s://%s:%s", scheme, f"[{host}]" if ":" in host else host, port)
        await stop.wait()
        _log.info("draining for up to %g s", settings.drain_seconds)
        models = app[CONTEXT].models
        if isinstance(models, Registry):
            await asyncio.to_thread(models.close, settings.drain_seconds)
    finally:
        if watch is not None:
            watch.cancel()
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
    sub = command(
        "invoke",
        command_line.run_invoke,
        "Call an operation with a JSON payload, or with one per line of standard input.",
    )
    sub.add_argument("operation", choices=OPERATIONS)
    sub.add_argument("payload", nargs="?", default="-", help="a JSON object; - reads JSON lines (the default)")
    sub = command("generate", command_line.run_generate, "Complete a text.")
    sub.add_argument("prompt")
    sub.add_argument("--stream", action="store_true", help="print tokens as they come")
    _sampling(sub)
    sub = command("chat", command_line.run_chat, "Chat in the terminal. Ctrl-C stops an answer, Ctrl-D ends.")
    sub.add_argument("--system", help="the system prompt")
    _sampling(sub)
    _models(command("models", models_command.run_ls, "See and steer the models of a running service.", model=False))
    keys_command.add(commands)
    sign_command.add(commands)
    audit_command.add(commands)
    sub = command("pull", command_line.run_pull, "Download or convert a model ahead of time.", model=False)
    sub.add_argument("name", help="catalogue name, hub id with optional @revision, folder, or .gguf file")
    sub = command(
        "bench", command_line.run_bench, "Measure the model on this machine: prefill, decode, bandwidth, cold start."
    )
    sub.add_argument("--json", action="store_true", help="as JSON instead of a table")
    sub.add_argument("--perplexity", metavar="FILE", help="compute the perplexity of this text too")
    sub = command("config", command_line.run_config, "Print all settings.", model=False)
    sub.add_argument("--markdown", action="store_true", help="as a table for the README")
    return parser


def _models(parser: argparse.ArgumentParser) -> None:
    """``warmstart models`` and what may stand behind it; alone it lists."""
    _service(parser, url=None, api_key=os.environ.get("API_KEY"))
    sign_command.add_key(parser)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        _service(added, url=argparse.SUPPRESS, api_key=argparse.SUPPRESS)  # what stands before the command holds too
        sign_command.add_key(added, default=argparse.SUPPRESS)
        return added

    command("ls", models_command.run_ls, "List the models: state, memory, last use, requests, speed (the default).")
    for name, run, text in (
        ("load", models_command.run_load, "Load a model, and show how far it is."),
        ("unload", models_command.run_unload, "Unload a model once its requests have ended."),
        ("default", models_command.run_default, "Answer with another model from now on; loads it first."),
    ):
        command(name, run, text).add_argument("id", help="as warmstart models ls shows it")
    sub = command("compare", models_command.run_compare, "One prompt through several models or settings.")
    sub.add_argument("prompt")
    sub.add_argument(
        "--variant", action="append", required=True, help="a side: model=ID,temperature=0.5,label=NAME; up to eight"
    )
    sub.add_argument("--chat", action="store_true", help="send the prompt as a chat's message")
    sub.add_argument("--no-score", action="store_true", help="leave out how likely each answer is to each model")
    _sampling(sub)


def _service(parser: argparse.ArgumentParser, *, url: str | None, api_key: str | None) -> None:
    parser.add_argument("--url", default=url, help="http://HOST:PORT or unix:PATH; by default as HOST and PORT say")
    parser.add_argument("--api-key", default=api_key, help="sent as a bearer token; or set API_KEY")


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--stop", action="append")
    parser.add_argument("--seed", type=int)


def _serve(options: argparse.Namespace) -> None:
    settings = command_line.settings_of(options, host=options.host, port=options.port)
    setup_logging(settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
