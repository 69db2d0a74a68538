"""Which adapter a broker's URL asks for, and what is to be installed for it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast
from urllib.parse import urlsplit

from runtime.errors import SettingsError
from runtime.events.queues.base import QueueOptions, Source, Submitter

# scheme -> (module, extra to install); imported when wanted, because each brings a client library
_ADAPTERS = {
    "nats": ("runtime.events.queues.nats.source", "nats"),
    "tls": ("runtime.events.queues.nats.source", "nats"),
    "redis": ("runtime.events.queues.redis.source", None),
    "rediss": ("runtime.events.queues.redis.source", None),
    "amqp": ("runtime.events.queues.rabbitmq.source", "rabbitmq"),
    "amqps": ("runtime.events.queues.rabbitmq.source", "rabbitmq"),
    "kafka": ("runtime.events.queues.kafka.source", "kafka"),
}


def open_source(options: QueueOptions) -> Source:
    """The adapter's ``Source``; nothing is connected yet.

    Raises:
        SettingsError: no adapter takes such a URL, the URL is wrong, or a library is not installed.
    """
    return cast(Source, _adapter(options.url).QueueSource(options))


def open_submitter(options: QueueOptions) -> Submitter:
    """The adapter's ``Submitter``; nothing is connected yet.

    Raises:
        SettingsError: see ``open_source``.
    """
    return cast(Submitter, _adapter(options.url).QueueSubmitter(options))


def names(url: str) -> tuple[str, str, str]:
    """Stream, results and dead letters, where nobody names them; each broker has customs of its own.

    Raises:
        SettingsError: see ``open_source``.
    """
    return cast(tuple[str, str, str], _adapter(url).NAMES)


def reply_prefixes(url: str) -> tuple[str, ...]:
    """What a message's own reply address must begin with, where nobody says otherwise.

    Raises:
        SettingsError: see ``open_source``.
    """
    return cast(tuple[str, ...], _adapter(url).REPLY_PREFIXES)


def _adapter(url: str) -> Any:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in _ADAPTERS:
        raise SettingsError(f"EVENTS_URL: begin it with one of {', '.join(f'{name}://' for name in _ADAPTERS)}")
    module, extra = _ADAPTERS[scheme]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").partition(".")[0] == "runtime":
            raise
        raise SettingsError(f"EVENTS_URL: {scheme}:// needs a library: pip install 'warmstart[{extra}]'") from None
