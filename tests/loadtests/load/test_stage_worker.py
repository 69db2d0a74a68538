from __future__ import annotations

import socket
from typing import Any

import pytest

from loadtests.load.arrivals import LoadStage, Segment, rate_stage
from loadtests.load.figures import most_at_once
from loadtests.load.http_client import ConnectionPool, Target
from loadtests.load.prompts import Prompts
from loadtests.load.record import HUNG_UP, OK, LoadRecord, unpacked
from loadtests.load.stage_worker import StageOrder, StageWorker
from loadtests.load.trace import TraceRow
from tests.loadtests.load.records import scenario
from tests.loadtests.load.stub import StubServer, stub_server

WORK = [{"kind": "chat", "prompt_tokens": 20, "output_tokens": 3}]
CLOSED = LoadStage(name="2 users", users=2, segments=[Segment(name="2 users", seconds=0.3)])


def carry_out(
    url: str, stage: LoadStage, worker: int = 0, workers: int = 1, **fields: Any
) -> tuple[list[LoadRecord], int]:
    """Carry a share out; return its records and how many requests were delayed."""
    records: list[LoadRecord] = []
    scenes = scenario(**({"work": WORK} | fields))
    order = StageOrder(scenes, stage, 0, Prompts(salt=1), "m", worker, workers)
    usage = StageWorker(order, ConnectionPool(Target(url)), None, records.extend).run()
    assert len(usage.cpu_cores) == 1
    return records, usage.delayed


def prompts(server: StubServer) -> list[str]:
    return sorted(body["messages"][-1]["content"] for _, body in server.asked)


def test_requests_of_an_open_loop_do_not_wait_for_each_other() -> None:
    """Twenty a second to a server that answers one at a time, seven a second: all are sent, and wait there."""
    with stub_server(delay=0.15, serial=True) as server:
        records, delayed = carry_out(server.url, rate_stage(20, 0.5, 0, "constant"))
    assert [record.outcome for record in records] == [OK] * 10
    assert delayed == 0
    assert sorted(record.due for record in records) == pytest.approx([number / 20 for number in range(10)])
    waits = sorted(record.ttft or 0.0 for record in records)
    assert waits[-1] > 1.0  # the last of ten behind nine of 0.15 s, though it came 0.45 s after the first
    assert {(record.prompt_tokens, record.completion_tokens) for record in records} == {(30, 3)}
    assert {len(record.times) for record in records} == {3}


def test_users_of_a_closed_loop_wait_for_their_answers() -> None:
    """Two at once, each again and again."""
    with stub_server(delay=0.05) as server:
        records, _ = carry_out(server.url, CLOSED)
    assert len(records) > 2
    assert most_at_once(records, 0, 99) == 2
    assert not any(record.scheduled for record in records)


def test_workers_share_a_stage() -> None:
    """Two of them send what one alone would: the same moments and the same prompts."""
    stage = rate_stage(40, 0.25, 0, "poisson")
    with stub_server() as alone, stub_server() as shared:
        whole, _ = carry_out(alone.url, stage)
        parts = [record for worker in (0, 1) for record in carry_out(shared.url, stage, worker, 2)[0]]
        assert prompts(alone) == prompts(shared)
    assert sorted(record.due for record in whole) == sorted(record.due for record in parts)
    assert len(whole) > 3


def test_prompts_repeat_only_if_asked_for() -> None:
    """Then they are as many as asked for."""
    stage = rate_stage(50, 0.2, 0, "constant")
    with stub_server() as server:
        carry_out(server.url, stage)
        assert len(set(prompts(server))) == 10
    with stub_server() as server:
        carry_out(server.url, stage, repeat_prompts=3)
        assert len(set(prompts(server))) == 3


def test_a_conversation_goes_on_with_the_answers() -> None:
    """A later turn is due when the answer before it has come."""
    work = [{"kind": "chat", "turns": 2, "output_tokens": 2}]
    with stub_server() as server:
        records, _ = carry_out(server.url, rate_stage(10, 0.1, 0, "constant"), work=work)
        assert [len(body["messages"]) for _, body in server.asked] == [1, 3]
        assert server.asked[1][1]["messages"][1] == {"role": "assistant", "content": "w w "}
    assert [record.scheduled for record in records] == [True, False]


def test_a_trace_is_replayed() -> None:
    """Each request at its moment, with its lengths."""
    rows = [TraceRow(at=0.0, prompt_tokens=9, output_tokens=2), TraceRow(at=0.1, prompt_tokens=12, output_tokens=4)]
    stage = LoadStage(name="trace", segments=[Segment(name="trace", seconds=0.2, rate=10)], trace=rows)
    with stub_server() as server:
        records, _ = carry_out(server.url, stage, work=[{"kind": "completion"}])
    found = sorted((record.due, record.prompt_tokens, record.completion_tokens) for record in records)
    assert found == [(0.0, 9, 2), (0.1, 12, 4)]


def test_all_kinds_of_work_are_recorded() -> None:
    """A client that hangs up is none of the errors; neither is an answer without tokens where none are made."""
    work = [
        {"kind": "chat", "name": "hangs", "hang_up_after": 2, "output_tokens": 500},
        {"kind": "chat", "stream": False, "name": "whole"},
        {"kind": "structured"},
        {"kind": "score"},
        {"kind": "embedding"},
        {"kind": "generate"},
        {"kind": "get", "path": "/health"},
    ]
    with stub_server(pause=0.001) as server:
        records, _ = carry_out(server.url, rate_stage(100, 0.6, 0, "constant"), work=work)
    found = {record.work: record for record in records}
    assert {name: record.outcome for name, record in found.items()} == {
        name: HUNG_UP if name == "hangs" else OK
        for name in ("hangs", "whole", "structured", "score", "embedding", "generate", "get")
    }
    assert found["hangs"].completion_tokens < 500
    assert found["whole"].ttft is None
    assert found["score"].completion_tokens == 0


def test_failures_are_recorded_by_kind() -> None:
    """A status, a broken answer, a time limit, no server."""
    stage = rate_stage(10, 0.1, 0, "constant")
    with stub_server(fails=("/v1/chat/completions",)) as server:
        ((failed,), _) = carry_out(server.url, stage)
        assert (failed.outcome, failed.detail, failed.failed) == ("HTTP 500", '{"error": "planted"}', True)
        ((broken,), _) = carry_out(server.url, stage, work=[{"kind": "chat", "path": "/v1/models"}])
        assert broken.outcome == OK  # the stub answers chats on every path
        ((wrong,), _) = carry_out(server.url, stage, work=[{"kind": "tools", "path": "/x"}])
        assert wrong.outcome == "invalid JSON"
    with stub_server(delay=0.5) as server:
        ((slow,), _) = carry_out(server.url, stage, timeout_seconds=0.1)
        assert slow.outcome == "timeout"
        ((undrained,), _) = carry_out(server.url, stage, drain_seconds=0.1)
        assert undrained.outcome == "timeout"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ((refused,), _) = carry_out(f"http://127.0.0.1:{port}", stage)
    assert refused.outcome == "connection"


def test_a_limit_of_requests_at_once_is_kept_and_told() -> None:
    """What is delayed by it is measured from when it was due."""
    with stub_server(delay=0.3) as server:
        records, delayed = carry_out(server.url, rate_stage(40, 0.1, 0, "constant"), max_in_flight=1)
    assert delayed == 3
    assert max(record.ttft or 0.0 for record in records) > 0.5


def test_a_record_survives_its_way_to_the_master() -> None:
    """Also one without times."""
    with stub_server() as server:
        records, _ = carry_out(server.url, rate_stage(20, 0.1, 0, "constant"), work=[{"kind": "score"}, *WORK])
    for record in records:
        assert unpacked(record.packed()) == record
