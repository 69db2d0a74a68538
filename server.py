"""Entry point: ``python server.py`` runs the HTTP server, ``warmstart COMMAND`` a command on the same handlers."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

try:
    gc.disable()  # what is imported is not garbage, and looking for some takes a tenth of the time
    from aiohttp import web

    from app import create_app, create_worker
    from handlers.cli import consume as consume_command
    from handlers.cli.options import settings_of
    from handlers.cli.parser import build_parser
    from handlers.cli.queue_options import queue_of
    from loadtests.load import launch
    from middleware.connection.limits import raise_fd_limit
    from middleware.connection.runner import DeadlineRunner
    from middleware.connection.tls import tls_of
    from runtime.errors import ServiceError, SettingsError
    from runtime.events.queues.base import QueueOptions
    from runtime.model_pool.pool import LOAD_THREAD
    from runtime.model_pool.registry import Registry
    from runtime.settings import Settings
    from runtime.standard_output import until_reader_leaves
    from runtime.telemetry.logging import setup_logging
    from views.app_keys import BATCHES, CONTEXT
except KeyboardInterrupt:  # Ctrl-C while still importing, which takes half a second
    sys.exit(130)
finally:
    gc.enable()

_log = logging.getLogger("warmstart.server")

_UNIX = "unix:"
_PORT_ERRORS = {errno.EADDRINUSE, errno.EACCES}
# Thresholds of Python's garbage collector: fewer full collections. A full one visits every object with the GIL held,
# which takes 0.1 s with a large response in memory, and by default happens several times while that is built. Young
# objects are collected as often as by default.
_GC_THRESHOLDS = (700, 10, 1000)
_SWITCH_INTERVAL_SECONDS = 0.001  # of the GIL, instead of 5 ms: the event loop takes it several times for one answer
_CLOSING_SECONDS = 2  # for handlers to finish their responses after the engine has ended their requests


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain: ``/readyz`` reports it, running requests finish, new ones get 503.

    A second signal ends the process at once.

    Args:
        settings: validated settings.

    Raises:
        SettingsError: the certificate or key files are invalid, or listening on HOST and PORT is not possible.
    """
    app = create_app(settings)
    async with _listening(app, settings) as stop:
        await stop.wait()
        _log.info("draining for up to %g s", settings.drain_seconds)
        await _close_models(app, settings.drain_seconds)
    _log.info("stopped")


async def consume(settings: Settings, queue: QueueOptions, *, full_api: bool) -> None:
    """Consume a queue until SIGTERM or SIGINT, then drain: fetch no more, finish running events, then HTTP requests.

    Args:
        settings: validated settings.
        queue: the queue to consume.
        full_api: serve the whole API beside it; otherwise probes, health and metrics.

    Raises:
        SettingsError: as for ``serve``; or EVENTS_OPERATIONS or the broker's URL is invalid, or the broker refuses the
            queue's configuration.
    """
    worker = create_worker(settings, queue, full_api=full_api)
    loop = asyncio.get_running_loop()
    async with _listening(worker.app, settings) as stop:
        consuming, stopping = asyncio.create_task(worker.consumer.run()), asyncio.create_task(stop.wait())
        await asyncio.wait([consuming, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _log.info("draining for up to %g s", settings.drain_seconds)
        end = loop.time() + settings.drain_seconds
        worker.consumer.stop()
        try:
            await consuming
        finally:
            if worker.records is not None:
                await worker.records.close()
            await _close_models(worker.app, max(0.0, end - loop.time()))
    _log.info("stopped")


async def _close_models(app: web.Application, seconds: float) -> None:
    if (batches := app.get(BATCHES)) is not None:
        batches.stop()
    models = app[CONTEXT].models
    if isinstance(models, Registry):
        await asyncio.to_thread(models.close, seconds)


def tune_interpreter() -> None:
    """Set the garbage collector's thresholds and the switch interval of a process that serves."""
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)


@asynccontextmanager
async def _listening(app: web.Application, settings: Settings) -> AsyncIterator[asyncio.Event]:
    """Serve an application inside the block; yields an event that SIGTERM and SIGINT set. A second signal exits."""
    tune_interpreter()
    tls = tls_of(settings)
    runner = DeadlineRunner.of(
        app,
        settings,
        tls,
        handler_cancellation=True,  # a client that disconnects cancels its handler, which frees the engine
        lingering_time=_CLOSING_SECONDS,  # to discard what a refused client still sends
        access_log=None,  # middleware/access_log.py writes it
        shutdown_timeout=_CLOSING_SECONDS,
    )
    raise_fd_limit(settings.max_connections)
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
        await _listen(runner, settings)
        if settings.host.startswith(_UNIX):
            _log.info("listening on %s", settings.host)
        else:
            host, port = runner.addresses[0][:2]
            _log.info("listening on %s://%s", "http" if tls is None else "https", _address(host, port))
        yield stop
    finally:
        if watch is not None:
            watch.cancel()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    """Open the listening socket.

    Raises:
        SettingsError: the socket cannot be opened; the message names HOST or PORT, whichever is at fault.
    """
    host, port = settings.host, settings.port
    try:
        if host.startswith(_UNIX):
            await web.UnixSite(runner, host.removeprefix(_UNIX)).start()
        else:
            await web.TCPSite(runner, host, port).start()
    except (socket.gaierror, UnicodeError) as error:  # names that IDNA cannot encode raise UnicodeError
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise SettingsError(f"HOST: {host!r} cannot be resolved: {reason}") from None
    except OSError as error:
        name = "PORT" if error.errno in _PORT_ERRORS and not host.startswith(_UNIX) else "HOST"
        where = host if host.startswith(_UNIX) else _address(host, port)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(f"{name}: cannot listen on {where}: {reason}") from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Ctrl-C ends every command without a traceback.

    Args:
        arguments: the arguments without the program's name; the process's own if left out.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong usage or settings, 130 after Ctrl-C.
    """
    _accept_any_text()
    status = _run(build_parser(_serve, _consume, launch.add).parse_args(arguments))
    ends_process = threading.current_thread() is threading.main_thread()
    if ends_process and any(thread.name.startswith(LOAD_THREAD) for thread in threading.enumerate()):
        # An abandoned load still runs. Python cannot stop it, and torch aborts if the interpreter exits meanwhile.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status


def _accept_any_text() -> None:
    """Make stdin and stdout accept text outside the terminal's encoding (such as latin-1) without a UnicodeError.

    Undecodable input becomes surrogates, which requests refuse; unencodable output is written with backslash escapes.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _run(options: argparse.Namespace) -> int:
    try:
        return until_reader_leaves(lambda: int(options.run(options) or 0))
    except SettingsError as error:
        return _fail(str(error), 2)
    except ServiceError as error:
        return _fail(error.message, 1)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _fail(str(error), 1)


def _fail(message: str, status: int) -> int:
    print(f"warmstart: {message}", file=sys.stderr)
    return status


def _serve(options: argparse.Namespace) -> None:
    settings = settings_of(options, host=options.host, port=options.port)
    setup_logging(settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


def _consume(options: argparse.Namespace) -> None:
    settings = consume_command.worker_settings(options)
    queue = queue_of(options, settings, options.url, options.operation)
    setup_logging(settings.log_format, settings.log_level)
    asyncio.run(consume(settings, queue, full_api=options.serve))


if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
