from __future__ import annotations

import sys

from loadtests.peers.load import prompt_numbers
from loadtests.peers.servers import Server
from loadtests.peers.session import determinism_turn, turn

# A server in the standard library: loading for its first two requests; dies on the prompt of stage two if told to.
STUB_SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
asked = 0
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send(503, b"{}")
    def do_POST(self):
        global asked
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked += 1
        if asked <= 2:
            return self.send(503, b"loading")
        if asked > int(sys.argv[2]):
            os._exit(9)
        delta = {"content": "Paris" + str(body.get("seed"))}
        usage = {"prompt_tokens": 84, "completion_tokens": 4}
        events = [{"choices": [{"delta": delta, "finish_reason": None}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}]
        self.send(200, b"".join(b"data: " + json.dumps(event).encode() + b"\\n\\n" for event in events))
    def send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def stub(dies_after: int = 10**9, most_clients: int = 10**9) -> Server:
    command = (sys.executable, "-c", STUB_SERVER, "{port}", str(dies_after))
    return Server("stub", "Stub", command, "/health", (), most_clients=most_clients, info="/info")


def test_a_turn_starts_asks_loads_and_ends_a_server() -> None:
    """Any answer is a sign of life; the model is waited for; stages above the server's limit are left out."""
    run = turn(stub(most_clients=2), (1, 2, 4), 0.5, 1)
    assert run.error is None
    assert [stage.clients for stage in run.stages] == [1, 2]
    assert all(stage.failures == 0 for stage in run.stages)
    assert run.livez is not None
    assert run.first_token is not None
    assert run.first_answer is not None
    assert run.livez <= run.first_token <= run.first_answer
    assert run.peak_rss is not None
    assert run.peak_rss > 4_000_000
    assert (run.answer, run.info) == ("Paris0", {})


def test_a_crash_is_told_and_what_was_measured_is_kept() -> None:
    """The stages before it stay; the session goes on with the next server."""
    run = turn(stub(dies_after=4), (1, 2), 0.5, 1)
    assert run.error is not None
    assert "crashed with 1 clients" in run.error
    assert run.first_answer is not None
    assert [stage.clients for stage in run.stages] == [1]
    missing = turn(Server("x", "X", ("/nowhere/server",), "/", ()), (1,), 0.1, 1)
    assert missing.error is not None
    assert "/nowhere/server" in missing.error


def test_the_determinism_turn_sends_a_seed_per_request() -> None:
    """The stub answers nothing but its seed, so all are the same."""
    run = determinism_turn(stub(), 8, prompt_numbers(1))
    assert (run.identical, run.error) == (8, None)
