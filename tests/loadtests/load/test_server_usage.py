from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from unittest import mock

from loadtests.load import server_usage
from loadtests.load.http_client import Target
from loadtests.load.server_usage import ServerUsage, listening_process, process_usage
from tests.loadtests.load.stub import stub_server


def test_a_server_on_this_machine_is_found_by_its_port() -> None:
    """Its processor time and memory are those of its process and the children."""
    with stub_server() as server:
        assert listening_process(server.server_port) == os.getpid()
        usage = ServerUsage(Target(server.url)).read()
        assert usage
        assert usage[0] > 0
        assert usage[1] > 10_000_000
    assert listening_process(server.server_port) is None
    assert process_usage(2**22 + 1) is None


def test_a_server_elsewhere_tells_its_metrics() -> None:
    """In Prometheus's form, with labels or without; one that has none is asked once."""
    asked = []

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b'# HELP x\nprocess_cpu_seconds_total 12.5\nprocess_resident_memory_bytes{a="b"} 1e+08\n'
            self.send_response(200 if len(asked) < 2 else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with (
        HTTPServer(("127.0.0.1", 0), Metrics) as server,
        mock.patch.object(server_usage, "_is_here", return_value=False),
    ):
        thread = Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
        thread.start()
        usage = ServerUsage(Target(f"http://127.0.0.1:{server.server_port}"))
        assert [usage.read() for _ in range(3)] == [(12.5, 1e8), None, None]
        server.shutdown()
        thread.join()
    assert asked == ["/metrics"] * 2
