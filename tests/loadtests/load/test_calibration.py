from __future__ import annotations

import pytest

from loadtests.load.calibration import LoadError, calibrate, served_model
from loadtests.load.http_client import ConnectionPool, Target
from loadtests.load.prompts import Prompts
from tests.loadtests.load.records import scenario
from tests.loadtests.load.stub import TEMPLATE_TOKENS, stub_server


def test_a_server_tells_its_model_and_its_tokens() -> None:
    """A chat's template counts once; a completion has none."""
    with stub_server() as server:
        pool = ConnectionPool(Target(server.url))
        assert served_model(pool) == "stub"
        assert calibrate(scenario(), pool, "m", 5) == Prompts(5, 1.0, TEMPLATE_TOKENS)
        assert calibrate(scenario(work=[{"kind": "completion"}]), pool, "m", 5) == Prompts(5, 1.0, 0.0)
        assert server.asked[0][1]["max_tokens"] == 1


def test_nothing_is_asked_that_is_not_needed() -> None:
    """Prompts that are given have their lengths."""
    with stub_server() as server:
        pool = ConnectionPool(Target(server.url))
        given = scenario(work=[{"kind": "chat", "prompt": "x {unique}"}, {"kind": "get", "path": "/"}])
        assert calibrate(given, pool, None, 5) == Prompts(5)
        assert server.asked == []


def test_a_server_that_does_not_answer_ends_the_run() -> None:
    """With its reason, before any load."""
    with (
        stub_server(fails=("/v1/chat/completions",)) as server,
        pytest.raises(LoadError, match=r"HTTP 500.*planted"),
    ):
        calibrate(scenario(), ConnectionPool(Target(server.url)), None, 1)
