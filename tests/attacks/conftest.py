"""Real server processes to attack: one for each configuration and module."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from loadtests.service import Service, running_service
from runtime.settings import Settings
from tests.attacks.raw import PATIENCE, connect

Start = Callable[..., Service]


def log_lines(service: Service, logger: str) -> list[dict[str, Any]]:
    """What a service has logged so far under a name."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in lines if line["logger"] == logger]


def _wait(service: Service) -> None:
    """Until it listens; whether it lets this address in is another matter."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and service.process.poll() is None:
        with suppress(OSError), connect(service.port):
            return
        time.sleep(0.02)
    pytest.fail(f"it does not listen: {service.log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts ``python server.py`` with settings, once for each set of them, and waits until it listens.

    No model is loaded. ``python server.py`` gets none of this shell's settings.
    """
    started: dict[frozenset[tuple[str, str]], Service] = {}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        for name in Settings.model_fields:
            if name.upper() in os.environ and name != "cache_dir":
                environment.delenv(name.upper())

        def start_(**settings: str) -> Service:
            key = frozenset(settings.items())
            if key not in started:
                service = stack.enter_context(
                    running_service(**({"PRELOAD": "false", "LOG_FORMAT": "json"} | settings))
                )
                _wait(service)
                started[key] = service
            return started[key]

        yield start_
        for service in started.values():
            assert service.process.poll() is None, f"it died: {service.log.read_text(errors='replace')[-2000:]}"
            assert "Traceback" not in service.log.read_text(errors="replace"), "an attack ran into a bug"
