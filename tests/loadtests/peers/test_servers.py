from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadtests.peers import servers
from loadtests.peers.servers import Server

LLAMA = servers.llama_server(Path("/x/llama-server"), Path("/x/m.gguf"), "Q8_0", 16, threads=2)
FOLDER = Path("/x/model")


@pytest.mark.parametrize(
    ("server", "wanted"),
    [
        (LLAMA, "/x/llama-server -m /x/m.gguf -np 16 -c 8192 -t 2 -tb 2 --host 127.0.0.1 --port 4321"),
        (
            servers.transformers_serve(Path("/x/bin/transformers"), FOLDER, batching=True),
            "/x/bin/transformers serve /x/model --device cpu --dtype bfloat16 --host 127.0.0.1 --port 4321 "
            "--continuous-batching",
        ),
        (
            servers.transformers_serve(Path("/x/bin/transformers"), FOLDER, batching=False),
            "/x/bin/transformers serve /x/model --device cpu --dtype bfloat16 --host 127.0.0.1 --port 4321",
        ),
        (
            servers.vllm(Path("/x/bin/vllm"), FOLDER),
            "/x/bin/vllm serve /x/model --dtype bfloat16 --max-model-len 512 --max-num-seqs 32 --host 127.0.0.1 "
            "--port 4321",
        ),
        (servers.warmstart(Path("/x/python")), "/x/python server.py"),
    ],
    ids=lambda value: value.key if isinstance(value, Server) else "",
)
def test_each_server_is_started_on_the_port_that_was_chosen(server: Server, wanted: str) -> None:
    """By its command line, or by its variables, and on the loopback only."""
    command, environment = server.started_on(4321)
    assert " ".join(command) == wanted
    assert "127.0.0.1" in wanted or environment["HOST"] == "127.0.0.1"
    assert "4321" in wanted or environment["PORT"] == "4321"


def test_a_server_without_batching_gets_no_stage_that_it_cannot_end() -> None:
    """It answers one request at a time; all others take every stage."""
    one, many = (servers.transformers_serve(Path("/x"), FOLDER, batching) for batching in (False, True))
    assert one.most_clients == 8
    assert many.most_clients > 1_000
    assert one.key != many.key


def test_a_version_is_the_line_that_says_so() -> None:
    """Of all that a program prints, on whichever stream; a program that prints nothing is of unknown version."""
    program = "import sys; print('warning: slow'); print('version: 7 (x)', file=sys.stderr)"
    assert Server("x", "X", (), "/", (sys.executable, "-c", program)).version() == "version: 7 (x)"
    assert Server("x", "X", (), "/", (sys.executable, "-c", "")).version() == "unknown"
    assert servers.warmstart(Path(sys.executable)).version().startswith("warmstart ")
