"""Switching the default model beneath sixteen streaming clients, with real models over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from handlers.local import build_context
from runtime.settings import Settings
from tests.support.fakes import serving
from tests.support.soak import soak

CLIENTS = 16
TEXT = {"prompt": "You may not use this file", "max_new_tokens": 24, "temperature": 0, "stream": True}


def text_of(stream: str) -> tuple[str, str]:
    """The model and the text of a whole stream."""
    *events, last = [event.removeprefix("data: ") for event in stream.strip().split("\n\n")]
    assert last == "[DONE]", stream[-300:]
    pieces = [json.loads(event) for event in events]
    return pieces[-1]["model"], "".join(piece.get("text") or "" for piece in pieces)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "switches"), [(2, soak(200, 40)), (1, soak(20, 4))], ids=["both fit", "one fits"])
async def test_no_stream_fails_and_none_is_mixed(
    tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path, room: int, switches: int
) -> None:
    """Every stream is whole and says what its model says when nobody switches, to the letter."""
    settings = {
        "model_name": str(tiny_gpt2),
        "models": [str(tiny_llama)],
        "cache_dir": tmp_path,
        "kv_cache_bytes": 4 << 20,
    }
    first = build_context(Settings.load(**settings))
    ctx = build_context(Settings.load(**settings, memory_budget_bytes=room * (5 << 20)))
    done, streams = asyncio.Event(), []
    try:
        async with (
            serving(first, preload=False, response_cache="off") as plain,
            serving(ctx, preload=False, response_cache="off") as url,
            aiohttp.ClientSession() as http,
        ):

            async def ask(service: str, **fields: str) -> str:
                async with http.post(f"{service}/complete", json=TEXT | fields) as response:
                    assert response.status == 200, await response.text()
                    return await response.text()

            async def client() -> None:
                while not done.is_set():
                    streams.append(await ask(url))

            names = ["tiny-llama", "tiny-gpt2"]
            expected = dict([text_of(await ask(plain, model=name)) for name in names])
            clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
            for number in range(switches):
                async with http.put(f"{url}/models/default", json={"model": names[number % 2]}) as response:
                    assert response.status == 200, await response.text()
            done.set()
            await asyncio.gather(*clients)
        found = [text_of(stream) for stream in streams]
        assert {model for model, _ in found} == set(names)
        assert all(text == expected[model] for model, text in found)
        assert any(status.evictions for status in ctx.models.status()) == (room == 1)
    finally:
        for context in (first, ctx):
            await asyncio.to_thread(context.models.close)  # type: ignore[attr-defined]
