"""Loading: lazy, shared, off the loop, retried after failure, and released."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from runtime.catalogue import ModelSpec
from runtime.errors import Draining, InternalError, ModelLoading, ModelNotFound, ModelUnavailable
from runtime.progress import Progress
from runtime.registry import Registry
from tests.fakes import FakeEngine, until

SPEC = ModelSpec("fake", "folder", "/nowhere")


class Loads:
    """Counts loads; each waits for ``gate`` and then raises ``failure`` or gives an engine."""

    def __init__(self, failure: Exception | None = None, *, gated: bool = False) -> None:
        self.failure, self.count, self.threads = failure, 0, set[int]()
        self.gate = threading.Event()
        if not gated:
            self.gate.set()

    def __call__(self, spec: ModelSpec, progress: Progress) -> FakeEngine:
        self.count += 1
        self.threads.add(threading.get_ident())
        progress("reading weights", 0.5)
        self.gate.wait(10)
        if self.failure:
            raise self.failure
        return FakeEngine()


def test_nothing_is_loaded_before_it_is_wanted() -> None:
    """A registry that was only made and asked for its state has loaded nothing."""
    loads = Loads()
    registry = Registry([SPEC], loads)
    assert [status.state for status in registry.status()] == ["unloaded"]
    assert not registry.ready
    assert loads.count == 0


async def test_fifty_first_calls_load_once() -> None:
    """Concurrent first calls share one load, off the event loop's thread, and all get the same engine."""
    loads = Loads(gated=True)
    registry = Registry([SPEC], loads)
    calls = [asyncio.create_task(registry.engine(None)) for _ in range(50)]
    await until(lambda: loads.count == 1)
    status = registry.status()[0]
    assert (status.state, status.stage, status.progress) == ("loading", "reading weights", 0.5)
    loads.gate.set()
    engines = await asyncio.gather(*calls)
    assert loads.count == 1
    assert threading.get_ident() not in loads.threads
    assert len({id(engine) for engine in engines}) == 1
    assert registry.ready


def test_calls_from_many_event_loops_share_one_load() -> None:
    """A function runtime makes a new loop per call; the model is still loaded once."""
    loads = Loads()
    registry = Registry([SPEC], loads)
    engines = [asyncio.run(registry.engine(None)) for _ in range(3)]
    assert loads.count == 1
    assert engines[0] is engines[1] is engines[2]


async def test_a_caller_that_gives_up_does_not_stop_the_load() -> None:
    """One caller cancelled, one out of patience: the load goes on and the next call gets its engine."""
    loads = Loads(gated=True)
    registry = Registry([SPEC], loads, wait_seconds=0.05)
    gone = asyncio.create_task(registry.engine(None))
    await asyncio.sleep(0.01)
    gone.cancel()
    with pytest.raises(ModelLoading, match="MODEL_WAIT_SECONDS") as caught:
        await registry.engine(None)
    assert caught.value.retry_after is not None
    loads.gate.set()
    await until(lambda: registry.ready)
    assert isinstance(await registry.engine(None), FakeEngine)
    assert loads.count == 1


async def test_a_failed_load_is_reported_and_tried_again() -> None:
    """Every waiting call gets the failure, the state shows it, and the next call loads anew and can succeed."""
    loads = Loads(ModelUnavailable("no such weights"), gated=True)
    registry = Registry([SPEC], loads)
    calls = [asyncio.create_task(registry.engine(None)) for _ in range(3)]
    await until(lambda: loads.count == 1)
    loads.gate.set()
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(failure) for failure in failures] == ["no such weights"] * 3
    assert (registry.status()[0].state, registry.status()[0].error) == ("failed", "no such weights")
    assert not registry.ready
    loads.failure = None
    assert isinstance(await registry.engine(None), FakeEngine)
    assert (registry.status()[0].state, registry.status()[0].error) == ("ready", None)
    assert loads.count == 2


async def test_an_unexpected_failure_shows_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in loading is an internal error to callers and whole in the log."""
    registry = Registry([SPEC], Loads(ZeroDivisionError("/secret/path")))
    with pytest.raises(InternalError) as caught:
        await registry.engine(None)
    assert "/secret" not in caught.value.message
    assert "/secret/path" in caplog.text


async def test_an_unknown_model_is_named_with_what_is_served() -> None:
    """The error names the field and lists the models."""
    with pytest.raises(ModelNotFound, match="served: fake") as caught:
        await Registry([SPEC], Loads()).engine("other")
    assert caught.value.param == "model"


async def test_unloading_closes_the_engine_and_the_next_call_loads_again() -> None:
    """Unload frees; calling again loads anew; unloading twice is harmless."""
    loads = Loads()
    registry = Registry([SPEC], loads)
    engine = await registry.engine(None)
    assert await asyncio.to_thread(registry.unload)
    assert not engine.alive
    assert not registry.unload()
    assert registry.status()[0].state == "unloaded"
    assert await registry.engine(None) is not engine
    assert loads.count == 2


async def test_a_closed_registry_admits_nothing() -> None:
    """After close, calls are refused as draining, also for a model that was loaded."""
    registry = Registry([SPEC], Loads())
    engine = await registry.engine(None)
    await asyncio.to_thread(registry.close)
    assert not engine.alive
    with pytest.raises(Draining):
        await registry.engine(None)
    assert not registry.ready


async def test_a_worker_that_hangs_is_not_ready_and_a_dead_one_not_alive() -> None:
    """Readiness follows the worker's beat; only its death needs a new process, and not while that ends anyway."""
    registry = Registry([SPEC], Loads())
    assert registry.alive
    engine = await registry.engine(None)
    assert registry.alive
    engine.beating = False
    assert registry.alive
    assert not registry.ready
    engine.alive = False
    assert not registry.alive
    registry.draining = True
    assert registry.alive


async def test_the_event_loop_stays_free_while_a_model_loads() -> None:
    """A load that takes its time does not hold up the loop."""
    loads = Loads(gated=True)
    registry = Registry([SPEC], loads)
    registry.preload()
    started = time.monotonic()
    ticks = 0
    while ticks < 20:
        await asyncio.sleep(0.001)
        ticks += 1
    loads.gate.set()
    assert ticks == 20
    assert time.monotonic() - started < 9  # the gate was never waited for
