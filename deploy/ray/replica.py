"""A replica: the service's aiohttp application in a process of Ray's, with one engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from aiohttp import web
from ray import serve

from app import create_app
from deploy.ray.asgi import ForwardedRequest
from deploy.ray.memory_connection import exchange
from middleware.connection.runner import DeadlineRunner
from runtime.errors import SettingsError
from runtime.model_pool.registry import Registry
from runtime.settings import Settings
from runtime.telemetry.logging import setup_logging
from server import tune_interpreter
from views.app_keys import CONTEXT, STATE

_POLL_SECONDS = 0.02
_CLOSING_SECONDS = 2


class EngineReplica:
    """Runs the application without a socket. Ray creates one in each replica's process.

    Args:
        settings: settings by name, which override this process's environment.
        secrets: names of settings that must be in this process's environment.
        context: ``module:function`` that returns the context of the operations, for tests; "" for the real one.

    Raises:
        SettingsError: a setting is wrong, or a secret is missing on this node.
        RuntimeError: the model cannot be loaded. Ray tries again, and reports the deployment as failed in the end.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: Mapping[str, str], secrets: Sequence[str] = (), context: str = ""
    ) -> None:
        missing = [name for name in secrets if not os.environ.get(name)]
        if missing:
            raise SettingsError(
                f"{', '.join(missing)}: set where the application was built, but not on this node; "
                "secrets are not sent to other nodes, so start Ray with them in its environment"
            )
        self._settings = Settings.load(**_of_replica(settings))
        setup_logging(self._settings.log_format, self._settings.log_level)
        tune_interpreter()
        self._app = create_app(self._settings, resolve_name(context)() if context else None)
        self._runner = DeadlineRunner.of(
            self._app,
            self._settings,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_CLOSING_SECONDS,
        )
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the application has not started")
        self._server = server
        await self._loaded()

    async def _loaded(self) -> None:
        """Wait until the model is loaded, so that a rolling update ends an old replica only for one that answers."""
        if not self._settings.preload:
            return
        while (state := self._app[STATE]()) != "ready":
            failed = [model for model in self._app[CONTEXT].models.status() if model.default and model.error]
            if failed:
                raise RuntimeError(f"{failed[0].id} cannot be loaded: {failed[0].error}")
            if state == "draining":
                raise RuntimeError("the replica was stopped while its model was loading")
            await asyncio.sleep(_POLL_SECONDS)

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a request's response; first b"", which says that the request has been accepted."""
        yield b""
        async for data in exchange(self._server(), request.data, request.peer, tls=request.tls):
            yield data

    async def check_health(self) -> None:
        """Raise RuntimeError when only a new process would help, as ``/livez`` does; Ray then replaces this replica."""
        if not self._app[CONTEXT].models.alive:
            raise RuntimeError("the engine has died too often to be restarted")

    async def __del__(self) -> None:
        """End the engine and the application, once Ray has waited for the running requests."""
        runner: web.AppRunner | None = getattr(self, "_runner", None)
        if runner is not None:
            models = self._app[CONTEXT].models
            if isinstance(models, Registry):
                await asyncio.to_thread(models.close, _CLOSING_SECONDS)
            await runner.cleanup()


def _of_replica(settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in lower case, with an audit log for this replica alone: each process needs its own file."""
    found = {name.lower(): value for name, value in settings.items()}
    audit_log = found.get("audit_log") or os.environ.get("AUDIT_LOG")
    if audit_log:
        path = Path(audit_log)
        replica = serve.get_replica_context().replica_id.unique_id
        found["audit_log"] = str(path.with_name(f"{path.stem}.{replica}{path.suffix}"))
    return found
