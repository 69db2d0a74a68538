"""The connection to NATS: mended when it is used, never in the clear where TLS is asked for, and silent on secrets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from runtime.errors import SettingsError
from runtime.events.outcome import Ack
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.events.queues.nats.source import NAMES, NatsSource
from tests.attacks.fault_proxy import FaultProxy
from tests.support.nats_server import NATS_URL, NatsServer, own_nats_server, own_streams
from tests.support.nats_work import (
    envelope,
    eventually,
    opened,
    opens,
    publish,
    read_all,
    settle,
    settled,
    submitting,
    waiting,
    work,
)


async def test_a_connection_that_is_reset_mends_itself() -> None:
    """Reset between any two steps, the worker goes on as soon as it is used again."""
    host, _, port = NATS_URL.rpartition("/")[2].rpartition(":")
    async with own_streams() as options, FaultProxy(host, int(port)) as proxy:
        async with opened(replace(options, url=f"nats://127.0.0.1:{proxy.port}")) as source:
            await publish(options, {"prompt": "hi"}, Warmstart_Id="a")
            (delivery,) = await source.fetch(1, 5)
            proxy.cut()
            await eventually(lambda: settled(delivery))
            proxy.cut()

            async def told() -> bool:
                try:
                    return await source.lag() == 0
                except BrokerUnavailable:
                    return False

            await eventually(told)
            proxy.refuse = True
            proxy.cut()

            async def away() -> bool:
                try:
                    await source.fetch(1, 0.05)
                except BrokerUnavailable as error:
                    return "NATS" in str(error)
                return False

            await eventually(away)
        assert await waiting(options) == 0


async def test_nothing_is_kept_back_while_there_is_no_server(server: NatsServer) -> None:
    """Without a server every call fails, soon, and nothing is sent later that somebody was told had failed."""
    async with own_streams(server.url) as options, opened(options) as source, submitting(options) as submitter:
        await publish(options, {"prompt": "hi"})
        (delivery,) = await source.fetch(1, 5)
        found = replace(delivery.envelope(), reply_to="_INBOX.a", stream=True)
        server.kill()
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: delivery.settle(found, Ack({})),
            lambda: delivery.extend(),
            lambda: delivery.send_chunk(found, 0, {}),  # once it is known
            lambda: source.fetch(1, 1),
            lambda: source.lag(),
            lambda: source.open(),
            lambda: submitter.submit(envelope("late", "x"), wait=False),
        ]
        for call in calls:
            async with asyncio.timeout(20):
                with pytest.raises(BrokerUnavailable):
                    await call()
        server.start()
        await eventually(lambda: opens(source))
        assert await waiting(options) == 1
        assert await read_all(options, options.results) == []
        await delivery.settle(found, Ack({}))


async def test_a_closed_source_stays_closed_until_opened(options: QueueOptions) -> None:
    """Whoever still holds a delivery of a closed source opens no connection that nobody would close."""
    async with opened(options) as source:
        await publish(options, {"prompt": "hi"})
        (delivery,) = await source.fetch(1, 5)
        await source.close()
        with pytest.raises(BrokerUnavailable, match="is closed"):
            await delivery.extend()
        await source.open()
        await settle(delivery)
    assert await waiting(options) == 0


@pytest.mark.parametrize(
    ("config", "user"),
    [
        ("authorization { user: worker, password: 'p@ss:w/rd' }", "worker:p%40ss%3Aw%2Frd"),
        ("authorization { token: 's3cret-t' }", "s3cret-t"),
    ],
)
async def test_credentials_are_used_and_never_shown(
    tmp_path: Path, config: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Passwords (percent-encoded) and tokens open the door; wrong ones stop the start; neither is ever shown."""
    caplog.set_level(logging.DEBUG)
    secrets = ("p@ss:w/rd", "p%40ss", "s3cret-t", "wr0ng")
    with own_nats_server(tmp_path, config) as server:
        url = server.url.replace("nats://", f"nats://{user}@")
        source = NatsSource(QueueOptions(url, "A", "g", "B", "C"))
        await source.open()
        assert not any(secret in source.name for secret in secrets)
        server.kill()
        with pytest.raises(BrokerUnavailable) as away:
            await source.lag()
        await source.close()
        server.start()
        wrong = NatsSource(QueueOptions(server.url.replace("nats://", "nats://wr0ng:wr0ng@"), "A", "g", "B", "C"))
        with pytest.raises(SettingsError, match="refuses these credentials") as caught:
            await wrong.open()
        with pytest.raises(BrokerUnavailable):
            await wrong.fetch(1, 0.1)
        await wrong.close()
    shown = caplog.text + str(away.value) + str(caught.value)
    assert not any(secret in shown for secret in secrets)


async def test_tls_is_never_given_up(options: QueueOptions) -> None:
    """tls:// against a server that has none is refused before any credentials are sent."""
    address = NATS_URL.rpartition("/")[2]
    sent: list[bytes] = []

    def note(piece: bytes) -> bytes:
        sent.append(piece)
        return piece

    host, _, port = address.rpartition(":")
    async with FaultProxy(host, int(port)) as proxy:
        proxy.up.garble = note
        source = NatsSource(replace(options, url=f"tls://user:s3cret@127.0.0.1:{proxy.port}"))
        with pytest.raises(SettingsError, match="tls:// requires TLS"):
            await source.open()
        await source.close()
    assert b"s3cret" not in b"".join(sent)


async def test_tls_is_used_where_the_server_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with TLS is reached if its certificate is good, and not if nobody known has signed it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    config = f"tls {{ cert_file: '{tmp_path / 'cert.pem'}', key_file: '{tmp_path / 'key.pem'}' }}"
    with own_nats_server(tmp_path, config) as server:
        source = NatsSource(QueueOptions(f"tls://localhost:{server.port}", "A", "g", "B", "C"))
        with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await source.open()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        await eventually(lambda: opens(source))
        assert await source.lag() == 0
        await source.close()


@pytest.mark.parametrize(
    "url",
    [
        "nats://",
        "nats://:4222",
        "nats://host:port",
        "nats://host:0",
        "nats://host/stream",
        "nats://host?creds=file",
        "http://host",
        "nats://u:s3cr,t@host",
        "nats://host,",
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str) -> None:
    """A URL that is none stops the start; the message shows nothing of it, for it may hold a password."""
    with pytest.raises(SettingsError) as caught:
        NatsSource(QueueOptions(url, *NAMES[:1], "g", *NAMES[1:]))
    assert "EVENTS_URL" in str(caught.value)
    assert "s3cr" not in str(caught.value)


async def test_further_servers_are_tried(options: QueueOptions) -> None:
    """Of several servers in the URL, one that answers is enough."""
    address = NATS_URL.rpartition("/")[2]
    async with opened(replace(options, url=f"nats://127.0.0.1:1,nats://{address}")) as source:
        await publish(options, {"prompt": "hi"})
        assert await work(source) == 1
