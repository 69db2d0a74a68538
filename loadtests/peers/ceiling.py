"""Measures the load client's own limit, in tokens per second of processor time, on a server that does no work.

    python3 -m loadtests.peers.ceiling

The client shares the cores with the server it measures, so this must be far above any server's throughput.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from loadtests.peers.client import Client
from loadtests.peers.load import NEW_TOKENS, PATH, payload
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


async def load(port: int, clients: int, seconds: float) -> tuple[int, float]:
    """Send requests to the stub server.

    Returns:
        The tokens received, and the processor seconds of this process.
    """
    taken, end, used = 0, time.perf_counter() + seconds, time.process_time()

    async def loop() -> None:
        nonlocal taken
        client = Client(port)
        number = 100_000
        while time.perf_counter() < end:
            answer = await client.ask(PATH, payload(number, None))
            taken += answer.completion_tokens
            number += 1
        client.close()

    await asyncio.gather(*(loop() for _ in range(clients)))
    return taken, time.process_time() - used


def main() -> None:
    """Measure and print the result."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-c", STUB, str(port), str(NEW_TOKENS))
        with running(command, {}, ROOT, Path(folder) / "log") as child:
            child.until(lambda: asyncio.run(_listens(port)), 10, "listening")
            began = time.perf_counter()
            tokens, used = asyncio.run(load(port, CLIENTS, SECONDS))
            since = time.perf_counter() - began
    print(f"{tokens / since:,.0f} tokens/s received with {CLIENTS} clients, {tokens / used:,.0f} per processor second")


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


if __name__ == "__main__":
    main()
