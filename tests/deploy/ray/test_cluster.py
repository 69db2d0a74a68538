"""The Ray application on a real cluster of raylets on this machine (``make soak``)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from loadtests.ray_bench import FAST
from loadtests.ray_cluster import RayCluster, ray_python, running_cluster
from loadtests.ray_load import Load
from tests.support.soak import SOAK

pytestmark = [
    pytest.mark.skipif(not SOAK, reason="installs and starts Ray; run it with: SOAK=1 pytest tests/deploy/ray"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
ARGUMENTS: dict[str, Any] = {"replicas": 2, "context": FAST, "settings": {"MAX_BATCH": "8", "MAX_QUEUE": "16"}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two replicas on nodes of their own, a third node free, and the ingress on the head node."""
    with running_cluster(ARGUMENTS, nodes=(1, 1, 1), TRUSTED_PROXIES="127.0.0.1") as found:
        yield found


def _settled(cluster: RayCluster, replicas: int = 2) -> None:
    """Wait until so many replicas run, in processes that are there."""
    while cluster.do("status") != {"RUNNING": replicas} or len(cluster.engines()) != replicas:
        time.sleep(0.1)


def _load(cluster: RayCluster, work: Callable[[], Any], clients: int = 8, requests: int = 100) -> Load:
    _settled(cluster)
    load = Load(cluster.url, lambda number: {"prompt": f"{number} " * 40})

    def later() -> None:
        while not load.outcomes["ok"]:
            time.sleep(0.05)
        work()

    asyncio.run(load.run(clients, later, requests))
    _settled(cluster)
    return load


def test_headers_and_addresses(cluster: RayCluster) -> None:
    """Responses have the service's headers, one request id, and the client that a trusted peer names is the client."""
    with httpx.Client(base_url=cluster.url) as client:
        response = client.get("/health", headers={"x-request-id": "mine"})
        assert (response.status_code, response.headers.get_list("x-request-id")) == (200, ["mine"])
        assert response.headers["x-content-type-options"] == "nosniff"
        assert client.get("/nowhere").json()["code"] == "not_found"
        assert client.get("/livez", headers={"x-forwarded-for": "8.8.8.8"}).status_code == 403


def test_errors_and_streams(cluster: RayCluster) -> None:
    """Errors have the form of their route; a stream has its chunks and its end."""
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        wrong = client.post("/v1/completions", json={"prompt": "x", "temperature": -1})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
        stream = client.post("/v1/completions", json={"model": "fake", "prompt": "x", "stream": True}).text
        assert stream.count('"text":"word "') == 10
        assert stream.endswith("data: [DONE]\n\n")


def test_a_client_that_disconnects(cluster: RayCluster) -> None:
    """Its request ends on the replica."""
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        with client.stream("POST", "/complete", json={"prompt": "x", "stream": True, "max_new_tokens": 10}) as stream:
            next(stream.iter_lines())
        deadline = time.monotonic() + 30
        while client.get("/load").json()["server_load"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/load").json()["server_load"] == 0


def test_a_full_queue(cluster: RayCluster) -> None:
    """More requests than slots and queue are refused with 429 in the form of their route, and the others answered."""
    load = _load(cluster, lambda: None, clients=60, requests=300)
    assert load.outcomes["ok"] > 16
    assert set(load.outcomes) <= {"ok", "before"}
    assert [reason for reason in load.reasons if not reason.startswith("429") or "queue_full" not in reason] == []


def test_an_update(cluster: RayCluster) -> None:
    """No request fails while all replicas are replaced."""
    before = cluster.engines()
    arguments = ARGUMENTS | {"settings": ARGUMENTS["settings"] | {"LOG_LEVEL": "WARNING"}}
    load = _load(cluster, lambda: cluster.do("deploy", arguments=arguments))
    assert set(load.outcomes) == {"ok"}, load.reasons
    assert not set(before) & set(cluster.engines())


def test_a_replica_that_is_killed(cluster: RayCluster) -> None:
    """No request fails before its first event; those after it end with an error event."""
    load = _load(cluster, cluster.kill_engine)
    assert set(load.outcomes) <= {"ok", "after"}, load.reasons


def test_a_node_that_is_lost(cluster: RayCluster) -> None:
    """The same when a whole node ends; its replica starts on another one."""
    load = _load(cluster, cluster.kill_node)
    assert set(load.outcomes) <= {"ok", "after"}, load.reasons


def test_to_zero_and_back() -> None:
    """Without requests the last replica ends, and the next request starts one and is answered."""
    arguments = {"min_replicas": 0, "max_replicas": 1, "upscale_seconds": 0, "downscale_seconds": 1, "context": FAST}
    with running_cluster(arguments) as cluster:
        for _ in range(2):
            while cluster.engines():
                time.sleep(0.1)
            answer = httpx.post(f"{cluster.url}/complete", json={"prompt": "x"}, timeout=120)
            assert (answer.status_code, len(answer.json()["text"].split())) == (200, 10)


def test_ray_has_no_router_of_prefixes_without_its_llm_extra() -> None:
    """When this fails, ``deploy/ray/router.py`` may be no longer needed."""
    script = "from ray.serve.llm.request_router import PrefixCacheAffinityRouter"
    done = subprocess.run([ray_python(), "-c", script], capture_output=True, text=True)
    assert "ModuleNotFoundError" in done.stderr, json.dumps(done.stderr[-500:])
