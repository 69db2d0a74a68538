"""Which adapter a URL asks for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from runtime.errors import SettingsError
from runtime.events.queues import factory as sources
from runtime.events.queues.base import BrokerAdapter, QueueOptions


def options(url: str) -> QueueOptions:
    """A queue there."""
    return QueueOptions(url, "s", "g", "r", "d")


@pytest.mark.parametrize("scheme", sources._ADAPTERS)
def test_an_adapter_is_asked(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the options, and says how things are called on its broker; nothing is imported before that."""
    module: Any = ModuleType("adapter")
    opened: Any = lambda queue: (module, queue)  # noqa: E731
    module.ADAPTER = BrokerAdapter(opened, opened, names=("a", "b", "c"), reply_prefixes=("x.",))
    monkeypatch.setitem(sys.modules, sources._ADAPTERS[scheme][0], module)
    queue = options(f"{scheme}://host:1")
    assert sources.open_source(queue) == (module, queue)
    assert sources.open_submitter(queue) == (module, queue)
    assert sources.default_names(queue.url) == ("a", "b", "c")
    assert sources.default_reply_prefixes(queue.url) == ("x.",)


@pytest.mark.parametrize("url", ["", "nats", "http://host", "NATS//x", "nats://[", "sqs://queue", "://", "[::1"])
def test_other_urls(url: str) -> None:
    """The error says which there are; it shows nothing of the URL, which may hold a password."""
    with pytest.raises(SettingsError, match="EVENTS_URL: it must begin with one of nats://") as caught:
        sources.open_source(options(url))
    assert not url or url not in str(caught.value).partition("one of")[0]


@pytest.mark.parametrize(("scheme", "library", "extra"), [("nats", "nats", "nats"), ("amqps", "aio_pika", "rabbitmq")])
def test_a_library_that_is_missing(scheme: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the command that installs it."""
    monkeypatch.setattr(sources, "import_module", lambda name: _missing(library))
    with pytest.raises(SettingsError, match=rf"pip install 'warmstart\[{extra}\]'"):
        sources.default_names(f"{scheme}://host")


def _missing(library: str) -> ModuleType:
    raise ModuleNotFoundError(f"No module named {library!r}", name=library)


def test_a_bug_is_no_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of ours that is not there is not to be installed by anybody."""
    monkeypatch.setattr(sources, "import_module", lambda name: _missing("runtime.events.nothing"))
    with pytest.raises(ModuleNotFoundError):
        sources.default_names("nats://host")
