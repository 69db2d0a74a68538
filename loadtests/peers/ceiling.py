"""Measures the load client's own limit, in tokens per second of processor time, on a server that does no work.

    python3 -m loadtests.peers.ceiling

The client shares the cores with the server it measures, so this must be far above any server's throughput.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from loadtests.peers.load import NEW_TOKENS, run_stage
from loadtests.peers.process import running
from loadtests.service import ROOT, free_port

CLIENTS = 16
SECONDS = 5.0

# It runs in its own process and writes each token separately, as a server does that streams token by token.
STUB = """
import asyncio, json, sys
tokens = int(sys.argv[2])
def chunk(event):
    data = b"data: " + json.dumps({"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk",
        "created": 1700000000, "model": "stub", **event}).encode() + b"\\n\\n"
    return b"%x\\r\\n%s\\r\\n" % (len(data), data)
def choice(**more):
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": None, **more}]}
head = b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
token = chunk(choice(delta={"content": " token"}))
usage = {"prompt_tokens": 84, "completion_tokens": tokens, "total_tokens": 84 + tokens}
last = chunk(choice(finish_reason="length")) + chunk({"choices": [], "usage": usage}) + b"0\\r\\n\\r\\n"
async def serve(reader, writer):
    try:
        while True:
            asked = await reader.readuntil(b"\\r\\n\\r\\n")
            await reader.readexactly(int(asked.lower().partition(b"content-length:")[2].split(b"\\r\\n")[0]))
            writer.write(head)
            for _ in range(tokens):
                writer.write(token)
                await asyncio.sleep(0)
            writer.write(last)
    except asyncio.IncompleteReadError:
        writer.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def main() -> None:
    """Measure and print the result."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-c", STUB, str(port), str(NEW_TOKENS))
        with running(command, {}, ROOT, Path(folder) / "log") as child:
            child.until(lambda: listens(port), 10, "listening")
            stage = run_stage(port, CLIENTS, SECONDS, 0, None, child)
    per_core = stage.tokens_per_second / stage.client_cpu if stage.client_cpu else 0.0
    print(f"{stage.tokens_per_second:,.0f} tokens/s with {CLIENTS} clients, {per_core:,.0f} per processor second")


def listens(port: int) -> bool:
    """Return whether something listens on a port of the loopback."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


if __name__ == "__main__":
    main()
