"""Chooses the adapter for a broker's URL, and names the package extra to install if its library is missing."""

from __future__ import annotations

from importlib import import_module
from typing import cast
from urllib.parse import urlsplit

from runtime.errors import SettingsError
from runtime.events.queues.base import BrokerAdapter, QueueOptions, Source, Submitter

# scheme -> (module, extra to install); imported on demand, because each needs a client library
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
    """Create the ``Source`` for the URL, without connecting.

    Raises:
        SettingsError: no adapter supports the URL's scheme, the URL is invalid, or a library is not installed.
    """
    return _adapter(options.url).source(options)


def open_submitter(options: QueueOptions) -> Submitter:
    """Create the ``Submitter`` for the URL, without connecting.

    Raises:
        SettingsError: see ``open_source``.
    """
    return _adapter(options.url).submitter(options)


def default_names(url: str) -> tuple[str, str, str]:
    """Return the broker's default names of the streams of requests, results and dead letters.

    Raises:
        SettingsError: see ``open_source``.
    """
    return _adapter(url).names


def default_reply_prefixes(url: str) -> tuple[str, ...]:
    """Return the broker's default prefixes that reply addresses must have.

    Raises:
        SettingsError: see ``open_source``.
    """
    return _adapter(url).reply_prefixes


def _adapter(url: str) -> BrokerAdapter:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in _ADAPTERS:
        raise SettingsError(f"EVENTS_URL: it must begin with one of {', '.join(f'{name}://' for name in _ADAPTERS)}")
    module, extra = _ADAPTERS[scheme]
    try:
        return cast(BrokerAdapter, import_module(module).ADAPTER)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").partition(".")[0] == "runtime":
            raise
        raise SettingsError(f"EVENTS_URL: {scheme}:// needs a library; run: pip install 'warmstart[{extra}]'") from None
