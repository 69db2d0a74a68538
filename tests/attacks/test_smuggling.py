"""Request smuggling: what two servers might read differently is refused, by the service and behind nginx."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loadtests.service import Service
from tests.attacks.conftest import Start, log_lines
from tests.attacks.corpus import AFTER, HIDDEN, HOSTS, REFUSED, SERVED
from tests.attacks.nginx import running_nginx
from tests.attacks.raw import exchange
from tests.support.nginx import needs_nginx

REFUSALS = {400, 411, 413, 414, 415, 431, 501, 505}
SETTINGS = {"HEADER_TIMEOUT_SECONDS": "1", "BODY_TIMEOUT_SECONDS": "1", "KEEPALIVE_SECONDS": "2"}


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """Unfinished bodies are soon given up."""
    return start(**SETTINGS)


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_requests_are_refused(service: Service, name: str) -> None:
    """At most one answer, a refusal; the connection is closed and nothing that follows is answered."""
    answered = exchange(service.port, REFUSED[name])
    assert answered.closed
    assert "smuggled" not in answered.ids
    assert len(answered.answers) <= 1
    assert set(answered.statuses) <= REFUSALS


@pytest.mark.parametrize("name", HOSTS)
def test_wrong_hosts_are_refused(service: Service, name: str) -> None:
    """RFC 9112 section 3.2: no Host, several, or one that is none, is 400."""
    assert exchange(service.port, HOSTS[name], answers=1).statuses[0] == 400


@pytest.mark.parametrize("name", SERVED)
def test_unusual_but_valid_requests_are_served(service: Service, name: str) -> None:
    """What RFC 9112 allows has its meaning, and so has the request behind it: refusing everything is no art."""
    raw, statuses = SERVED[name]
    answered = exchange(service.port, raw)
    assert answered.ids == ["first", "smuggled"]
    assert answered.statuses == statuses


@pytest.mark.parametrize("name", HIDDEN)
def test_a_request_in_a_body_stays_a_body(service: Service, name: str) -> None:
    """It is never answered, whether the body is read, left unread, or cut."""
    answered = exchange(service.port, HIDDEN[name] + AFTER)
    assert answered.closed
    assert answered.ids in (["first"], ["first", "after"])


@needs_nginx
def test_nginx_and_the_service_agree(start: Start, tmp_path: Path) -> None:
    """Over nginx's kept connections no request reaches the service that nginx did not send, and no answer goes astray.

    All of the corpus, one after the other, and after each a request of somebody else, which gets its own answer. At the
    end the service has served nothing that nginx does not know of, and nginx has answered nothing twice.
    """
    service = start(**SETTINGS, TRUSTED_PROXIES="127.0.0.1")
    # nginx speaks HTTP/0.9, whose answers have no head; the service does not, so nothing of it gets through.
    refused = {name: raw for name, raw in REFUSED.items() if name != "HTTP/0.9"}
    corpus = refused | HOSTS | HIDDEN | {name: raw for name, (raw, _) in SERVED.items()}
    answers = 0
    with running_nginx(tmp_path, service.port) as nginx:
        for number, (name, raw) in enumerate(corpus.items()):
            for kind in (b"first", b"smuggled"):
                raw = raw.replace(b"X-Request-Id: " + kind, b"X-Request-Id: %s-%d" % (kind, number))
            attack = exchange(nginx.port, raw + AFTER * (name in HIDDEN), source=f"127.0.1.{number}")
            answers += len(attack.answers) + 1
            if name in HIDDEN:
                assert f"smuggled-{number}" not in attack.ids, name
            marker = AFTER.replace(b"after", b"marker-%d" % number)
            honest = exchange(nginx.port, marker, source=f"127.0.2.{number}")
            assert (honest.statuses, honest.ids) == ([200], [f"marker-{number}"]), name
        sent = Counter(line["request_id"] for line in nginx.lines())
    served = Counter(line["request_id"] for line in log_lines(service, "warmstart.access"))
    assert served.total() > len(corpus)  # it was asked at all
    assert not served - sent
    assert answers <= sent.total()
