"""``warmstart models``: what is printed, over the real application on fake models."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

import server
from handlers.cli.models import variant
from handlers.cli.output import table
from runtime.errors import InvalidRequest, ModelUnavailable
from runtime.model.catalogue import ModelSpec
from runtime.model.progress import Progress
from runtime.model_pool.pool import LOAD_THREAD
from runtime.model_pool.registry import Registry
from tests.support.fakes import INFO, FakeEngine, fake_context, serving


def load(spec: ModelSpec, progress: Progress) -> FakeEngine:
    progress("reading weights", 0.5)
    if spec.id == "bad":
        raise ModelUnavailable("no such weights")
    return FakeEngine(info=replace(INFO, name=spec.id), memory_bytes=2_000_000)


class Run:
    """``warmstart models ...`` against a service: status, what it printed, what it complained of."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._capsys, self._url = capsys, url

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        status = await asyncio.to_thread(server.main, ["models", "--url", self._url, *arguments])
        printed = self._capsys.readouterr()
        return status, printed.out, printed.err


async def test_the_life_of_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, loaded, switched, unloaded; what cannot be done is told in the service's words, with status 1."""
    monkeypatch.setattr("handlers.cli.models.setup_logging", lambda *args: None)
    names = ("a", "owner/b", "bad")
    registry = Registry([ModelSpec(name, "folder", "/x") for name in names], load, pinned=["owner/b"])
    async with serving(replace(fake_context(), models=registry), preload=False) as url:
        run = Run(capsys, url)
        status, out, _ = await run()
        assert status == 0
        assert [line.split() for line in out.splitlines()[1:]] == [
            ["a", "unloaded", "-", "-", "0", "0.0", "-", "default"],
            ["owner/b", "unloaded", "-", "-", "0", "0.0", "-", "pinned"],
            ["bad", "unloaded", "-", "-", "0", "0.0", "-"],
        ]
        assert await run("load", "owner/b") == (0, "owner/b is ready, 2 MB\n", "")
        assert await run("default", "owner/b") == (0, "owner/b is the default\n", "")
        status, out, _ = await run("ls")
        assert out.splitlines()[1].split()[:3] == ["owner/b", "ready", "2"]
        assert out.splitlines()[1].endswith("default, pinned")
        assert await run("unload", "owner/b") == (0, "owner/b is unloaded\n", "")
        assert await run("load", "bad") == (1, "", "warmstart: bad is failed: no such weights\n")
        assert "failed (no such weights)" in (await run("ls"))[1]
        assert await run("load", "x") == (1, "", "warmstart: no model 'x' here; served: a, owner/b, bad\n")
        assert (await run("default", "bad"))[2] == "warmstart: no such weights\n"
        async with registry.lease("a"):
            registry._wait_seconds = 0.01
            assert (await run("unload", "a"))[1] == "a is draining; it is unloaded when its 1 requests have ended\n"


async def test_a_load_in_this_process_outlives_a_command_on_another_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Only where a command's end is the process's does it end with a load that still runs: without waiting for it."""
    done = threading.Event()
    loading = threading.Thread(target=done.wait, name=f"{LOAD_THREAD}model")
    loading.start()
    try:
        assert await asyncio.to_thread(server.main, ["config"]) == 0  # else this process has ended
    finally:
        done.set()
        loading.join()


async def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer as it ends, then the figures of all; a side that fails is told and sets the status."""
    async with serving(fake_context()) as url:
        run = Run(capsys, url)
        sides = ("--variant", "label=cold,temperature=0", "--variant", "model=other")
        status, out, err = await run("compare", "Hi", *sides, "--chat", "--max-new-tokens", "2")
        assert (status, err) == (1, "")
        assert "--- cold (fake)\nHello there" in out
        assert "no model 'other' here" in out
        figures = out[out.index("answer ") :].splitlines()
        assert figures[1].split()[:4] == ["cold", "fake", "length", "2"]
        assert "model_not_found" in figures[2]
        status, out, err = await run("compare", "Hi", "--variant", "temperature=9")
        assert (status, out) == (1, "")
        assert "temperature" in err


async def test_nobody_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The list falls back to the names that are known here; the others say which address does not answer."""
    async with serving() as url:
        pass
    run = Run(capsys, url)
    monkeypatch.setenv("MODELS", "distilgpt2 x/y")
    status, out, err = await run("ls")
    assert status == 0
    assert f"no service answers at {url}" in err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "smollm2-135m-instruct",
        "distilgpt2",
        "x/y",
        "all-minilm-l6-v2",
    ]
    assert lines[0].endswith("on disk, default")
    for command in (("load", "a"), ("unload", "a"), ("default", "a"), ("compare", "Hi", "--variant", "seed=1")):
        status, out, err = await run(*command)
        assert (status, out) == (1, "")
        assert f"no service answers at {url}" in err


def test_variants() -> None:
    """NAME=VALUE, separated by commas."""
    assert variant("model=a:b,temperature=0.5, label=x y") == {"model": "a:b", "temperature": "0.5", "label": "x y"}
    assert variant("seed=1") == {"label": "seed=1", "seed": "1"}
    assert variant("") == {}
    with pytest.raises(InvalidRequest, match="'seed' is not NAME=VALUE"):
        variant("model=a,seed")


def test_columns() -> None:
    """As wide as their widest cell."""
    assert table([("a", "b"), ("long", "1"), ("x", "")]) == "a     b\nlong  1\nx"
