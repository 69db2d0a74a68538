"""Several models in one process: loaded once, within a budget, switched and unloaded beneath running requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest

from runtime.errors import (
    Draining,
    ModelLoading,
    ModelNotFound,
    ModelTooLarge,
    ModelUnavailable,
    SettingsError,
)
from runtime.model.catalogue import ModelSpec
from runtime.model.progress import Progress
from runtime.model_pool.registry import Registry
from tests.support.fakes import INFO, FakeEngine, fake_context, serving, until

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


@dataclass
class House:
    """Models a, b and so on, of as many bytes as ``sizes`` says, in a registry with room for ten.

    Args:
        sizes: bytes by model.
        estimates: what is thought before a load, where that differs.
        failures: what loads raise, by model.
        gates: what loads wait for, by model.
    """

    sizes: dict[str, int]
    estimates: dict[str, int] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    engines: list[FakeEngine] = field(default_factory=list)
    pause: float = 0

    def registry(
        self, *, budget: int | None = 10, pinned: Collection[str] = (), **options: Any
    ) -> Registry[FakeEngine]:
        return Registry(
            [ModelSpec(name, "folder", f"/{name}") for name in self.sizes],
            self.load,
            measure=lambda spec, progress: self.estimates.get(spec.id, self.sizes[spec.id]),
            budget=None if budget is None else lambda: budget,
            pinned=pinned,
            **options,
        )

    def load(self, spec: ModelSpec, progress: Progress) -> FakeEngine:
        progress("reading weights", 0.5)
        if spec.id in self.gates:
            assert self.gates[spec.id].wait(10)
        if spec.id in self.failures:
            raise self.failures[spec.id]
        info = replace(INFO, name=spec.id, weights_bytes=self.sizes[spec.id] - 1, kv_bytes=1)
        self.engines.append(FakeEngine(words=tuple(f" {spec.id}{i}" for i in range(6)), info=info, pause=self.pause))
        held = sum(engine.info.weights_bytes + engine.info.kv_bytes for engine in self.engines if engine.alive)
        assert held <= 10 or spec.id in self.estimates, "more is in memory than the budget allows"
        return self.engines[-1]

    def alive(self) -> str:
        return "".join(engine.info.name for engine in self.engines if engine.alive)


async def once(registry: Registry[FakeEngine], name: str | None = None) -> FakeEngine:
    """One request that ends at once; the engine that it had."""
    async with registry.lease(name) as engine:
        assert engine.alive
        return engine


@asynccontextmanager
async def closing(registry: Registry[FakeEngine]) -> AsyncIterator[Registry[FakeEngine]]:
    try:
        yield registry
    finally:
        await asyncio.to_thread(registry.close)


def states(registry: Registry[FakeEngine]) -> dict[str, str]:
    return {status.id: status.state for status in registry.status()}


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
    calls = [asyncio.create_task(once(registry)) for _ in range(50)]
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
    engines = [asyncio.run(once(registry)) for _ in range(3)]
    assert loads.count == 1
    assert engines[0] is engines[1] is engines[2]


async def test_a_caller_that_gives_up_does_not_stop_the_load() -> None:
    """One caller cancelled, one out of patience: the load goes on and the next call gets its engine."""
    loads = Loads(gated=True)
    registry = Registry([SPEC], loads, wait_seconds=0.05)
    gone = asyncio.create_task(once(registry))
    await asyncio.sleep(0.01)
    gone.cancel()
    with pytest.raises(ModelLoading, match="MODEL_WAIT_SECONDS") as caught:
        await once(registry)
    assert caught.value.retry_after is not None
    loads.gate.set()
    await until(lambda: registry.ready)
    assert isinstance(await once(registry), FakeEngine)
    assert loads.count == 1


async def test_a_failed_load_is_reported_and_tried_again() -> None:
    """Every waiting call gets the failure, the state shows it, and the next call loads anew and can succeed."""
    loads = Loads(ModelUnavailable("no such weights"), gated=True)
    registry = Registry([SPEC], loads)
    calls = [asyncio.create_task(once(registry)) for _ in range(3)]
    await until(lambda: loads.count == 1)
    loads.gate.set()
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(failure) for failure in failures] == ["no such weights"] * 3
    assert (registry.status()[0].state, registry.status()[0].error) == ("failed", "no such weights")
    assert not registry.ready
    loads.failure = None
    assert isinstance(await once(registry), FakeEngine)
    assert (registry.status()[0].state, registry.status()[0].error) == ("ready", None)
    assert loads.count == 2


async def test_an_unexpected_failure_shows_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a library raises, the model is unavailable to callers; where its files lie is in the log only."""
    registry = Registry([SPEC], Loads(OverflowError("/secret/path is too large")))
    with pytest.raises(ModelUnavailable, match=r"is too large \(OverflowError\)") as caught:
        await once(registry)
    assert "/secret" not in caught.value.message
    assert "/secret/path" in caplog.text


async def test_an_unknown_model_is_named_with_what_is_served() -> None:
    """The error names the field and lists the models."""
    with pytest.raises(ModelNotFound, match="served: fake") as caught:
        await once(Registry([SPEC], Loads()), "other")
    assert caught.value.param == "model"


async def test_unloading_closes_the_engine_and_the_next_call_loads_again() -> None:
    """Unload frees; calling again loads anew; unloading twice is harmless."""
    loads = Loads()
    registry = Registry([SPEC], loads)
    engine = await once(registry)
    assert (await registry.unload("fake")).state == "unloaded"
    assert not engine.alive
    assert (await registry.unload("fake")).state == "unloaded"
    assert await once(registry) is not engine
    assert loads.count == 2


async def test_a_closed_registry_admits_nothing() -> None:
    """After close, calls are refused as draining, also for a model that was loaded."""
    registry = Registry([SPEC], Loads())
    engine = await once(registry)
    await asyncio.to_thread(registry.close)
    assert not engine.alive
    with pytest.raises(Draining):
        await once(registry)
    assert not registry.ready


async def test_a_worker_that_hangs_is_not_ready_and_a_dead_one_not_alive() -> None:
    """Readiness follows the worker's beat; only its death needs a new process, and not while that ends anyway."""
    registry = Registry([SPEC], Loads())
    assert registry.alive
    engine = await once(registry)
    assert registry.alive
    engine.beating = False
    assert registry.alive
    assert not registry.ready
    engine.alive = False
    assert not registry.alive
    assert registry.status()[0].state == "failed"
    registry.close()
    assert registry.alive


async def test_the_event_loop_stays_free_while_a_model_loads() -> None:
    """A load that takes its time does not hold up the loop."""
    loads = Loads(gated=True)
    registry = Registry([SPEC], loads)
    registry.preload()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert registry.status()[0].state == "loading"  # else the loop was held up until the load gave up waiting
    loads.gate.set()


# Several models


async def test_the_default_is_shown_first_and_others_are_chosen_by_name() -> None:
    """No name is the default."""
    async with closing(House({"a": 3, "b": 3}).registry()) as registry:
        assert (await once(registry)).info.name == "a"
        assert (await once(registry, "b")).info.name == "b"
        await registry.set_default("b")
        assert [(status.id, status.default) for status in registry.status()] == [("b", True), ("a", False)]
        assert (await once(registry)).info.name == "b"


def test_a_pinned_model_must_be_served() -> None:
    """A wrong PINNED_MODELS stops the start, and names the setting."""
    with pytest.raises(SettingsError, match="PINNED_MODELS: 'c' is not served; served: a, b"):
        House({"a": 1, "b": 1}).registry(pinned=["c"])


async def test_the_least_recently_used_makes_room() -> None:
    """By the last use, not the first; the state tells memory, use and counts."""
    house = House({"a": 4, "b": 4, "c": 4})
    async with closing(house.registry()) as registry:
        for name in ("a", "b", "a", "c"):
            await once(registry, name)
        assert states(registry) == {"a": "ready", "b": "unloaded", "c": "ready"}
        assert house.alive() == "ac"
        a, b, _ = registry.status()
        assert (a.reserved_bytes, a.loads, a.running, b.loads, b.unloads, b.evictions) == (4, 1, 0, 1, 1, 1)
        assert a.last_used is not None
        assert registry.budget_bytes == 10


async def test_a_pinned_model_stays() -> None:
    """Though it is the least recently used one."""
    house = House({"a": 4, "b": 4, "c": 4})
    async with closing(house.registry(pinned=["a"])) as registry:
        for name in ("a", "b", "c"):
            await once(registry, name)
        assert house.alive() == "ac"
        assert registry.status()[0].pinned


async def test_a_model_that_cannot_fit_is_not_loaded_and_evicts_nobody() -> None:
    """The error has both numbers, the state tells it, and those that are loaded stay."""
    house = House({"a": 4, "b": 11})
    async with closing(house.registry()) as registry:
        await once(registry, "a")
        with pytest.raises(ModelTooLarge, match=r"b needs 11 bytes .* use 10") as caught:
            await once(registry, "b")
        assert (caught.value.status, caught.value.retryable) == (507, False)
        assert house.alive() == "a"
        status = registry.status()[1]
        assert (status.state, status.error, status.load_failures) == ("failed", caught.value.message, 1)


async def test_the_true_size_replaces_the_estimate() -> None:
    """What a model really takes decides who must go for the next one."""
    house = House({"a": 9, "b": 5}, estimates={"a": 1})
    async with closing(house.registry()) as registry:
        await once(registry, "a")
        assert registry.status()[0].reserved_bytes == 9
        await once(registry, "b")
        assert house.alive() == "b"


async def test_a_held_model_is_drained_before_the_other_is_loaded() -> None:
    """Its request ends on the engine it began with; new requests for it wait, and load it again afterwards."""
    house = House({"a": 6, "b": 6})
    async with closing(house.registry()) as registry:
        async with registry.lease("a") as held:
            other = asyncio.create_task(once(registry, "b"))
            await until(lambda: states(registry) == {"a": "draining", "b": "loading"})
            assert registry.status()[1].stage == "waiting for memory"
            again = asyncio.create_task(once(registry, "a"))
            await until(lambda: states(registry)["a"] == "loading")
            await asyncio.sleep(0.02)
            assert held.alive
            assert house.alive() == "a"
        assert (await other).info.name == "b"
        assert await again is not held
        assert not held.alive


async def test_many_models_take_turns_and_nobody_starves() -> None:
    """Sixty requests at once for five models of which two fit: all are answered, within the budget."""
    house = House(dict.fromkeys("abcde", 5))
    async with closing(house.registry(wait_seconds=30)) as registry:

        async def ask(name: str) -> str:
            async with registry.lease(name) as engine:
                await asyncio.sleep(0.001)
                assert engine.alive
                return engine.info.name

        assert await asyncio.gather(*map(ask, "abcde" * 12)) == list("abcde" * 12)


async def test_a_waiter_that_gives_up_lets_go() -> None:
    """A cancelled request holds nothing: the model can be unloaded."""
    house = House({"a": 6}, gates={"a": threading.Event()})
    async with closing(house.registry()) as registry:
        gone = asyncio.create_task(once(registry, "a"))
        await until(lambda: registry.status()[0].running == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert registry.status()[0].running == 0
        house.gates["a"].set()
        assert (await registry.unload("a")).state == "unloaded"


async def test_a_dead_engine_that_is_not_the_default_is_loaded_anew() -> None:
    """Its state says so, /livez does not mind, and the next request mends it. The default's death is for /livez."""
    async with closing(House({"a": 3, "b": 3}).registry()) as registry:
        default, other = await once(registry, "a"), await once(registry, "b")
        other.alive = False
        assert registry.alive
        assert states(registry) == {"a": "ready", "b": "failed"}
        assert await once(registry, "b") is not other
        default.alive = False
        async with registry.lease(None) as same:
            assert same is default
        assert not registry.alive


# Unloading


async def test_an_unload_waits_for_requests_and_then_goes_on_alone() -> None:
    """After MODEL_WAIT_SECONDS it answers draining; the model goes with its last request."""
    async with closing(House({"a": 6}).registry(wait_seconds=0.05)) as registry:
        async with registry.lease("a") as held:
            status = await registry.unload("a")
            assert (status.state, status.running) == ("draining", 1)
            assert held.alive
        await until(lambda: states(registry)["a"] == "unloaded")
        assert not held.alive


async def test_an_unload_while_it_loads() -> None:
    """Who waits for the load is answered first."""
    house = House({"a": 6}, gates={"a": threading.Event()})
    async with closing(house.registry()) as registry:
        waiting = asyncio.create_task(once(registry, "a"))
        await until(lambda: registry.status()[0].running == 1)
        unloading = asyncio.create_task(registry.unload("a"))
        await until(lambda: states(registry)["a"] == "draining")
        house.gates["a"].set()
        assert (await waiting).info.name == "a"
        assert (await unloading).state == "unloaded"


async def test_idle_models_are_unloaded() -> None:
    """The default too; neither a pinned one nor one that a request holds. The next call loads again."""
    house = House({"a": 2, "b": 2, "c": 2})
    async with closing(house.registry(pinned=["b"], idle_seconds=0.05)) as registry:
        async with registry.lease("c"):
            await once(registry, "a")
            await once(registry, "b")
            await until(lambda: states(registry) == {"a": "unloaded", "b": "ready", "c": "ready"})
            await asyncio.sleep(0.1)
            assert house.alive() == "cb"
        await until(lambda: states(registry)["c"] == "unloaded")
        assert (await once(registry)).info.name == "a"


async def test_closing_lets_running_requests_finish() -> None:
    """All engines are closed at once, each with the whole grace; what waits for room is told."""
    house = House({"a": 6, "b": 3, "c": 6})
    registry = house.registry()
    graces: list[float] = []
    async with registry.lease("a") as a, registry.lease("b") as b:
        for engine in (a, b):
            engine.close = graces.append  # type: ignore[method-assign]
        waiting = asyncio.create_task(once(registry, "c"))
        await until(lambda: states(registry)["a"] == "draining")
        await asyncio.to_thread(registry.close, 5)
        with pytest.raises(Draining):
            await waiting
    assert graces == [5, 5]
    with pytest.raises(Draining):
        registry.load("a")


# Watching


async def test_a_load_can_be_watched() -> None:
    """Every stage until it is ready; one that nobody has asked to load is told of once."""
    house = House({"a": 6, "b": 1}, gates={"a": threading.Event()})
    async with closing(house.registry()) as registry:
        assert registry.load("a").state == "loading"
        seen = []
        async for status in registry.watch("a"):
            seen.append((status.state, status.stage, status.progress))
            if status.stage:
                house.gates["a"].set()
        assert seen[-2:] == [("loading", "reading weights", 0.5), ("ready", None, None)]
        assert [status.state async for status in registry.watch("b")] == ["unloaded"]
        with pytest.raises(ModelNotFound):
            await anext(registry.watch("x"))


async def test_a_watcher_that_goes_leaves_the_load_alone() -> None:
    """The load goes on, and nothing of the watcher is kept."""
    house = House({"a": 6}, gates={"a": threading.Event()})
    async with closing(house.registry()) as registry:
        registry.load("a")
        async with contextlib.aclosing(registry.watch("a")) as watch:
            assert (await anext(watch)).state == "loading"
        assert not registry._slots["a"].watchers
        house.gates["a"].set()
        await until(lambda: states(registry)["a"] == "ready")


async def test_a_failure_can_be_watched() -> None:
    """The last word is why."""
    house = House({"a": 6}, failures={"a": ModelUnavailable("no such weights")})
    async with closing(house.registry()) as registry:
        registry.load("a")
        last = [status async for status in registry.watch("a")][-1]
        assert (last.state, last.error) == ("failed", "no such weights")


# Switching


async def test_a_switch_loads_first() -> None:
    """While the new default loads, the old one answers."""
    house = House({"a": 4, "b": 4}, gates={"b": threading.Event()})
    async with closing(house.registry()) as registry:
        await once(registry)
        switch = asyncio.create_task(registry.set_default("b"))
        await until(lambda: states(registry)["b"] == "loading")
        assert (await once(registry)).info.name == "a"
        house.gates["b"].set()
        assert (await switch).default
        assert (await once(registry)).info.name == "b"


async def test_a_switch_that_fails_leaves_the_default() -> None:
    """Also one that takes longer than the allowed wait."""
    house = House({"a": 4, "b": 4, "c": 1}, failures={"b": ModelUnavailable("gone")}, gates={"c": threading.Event()})
    async with closing(house.registry(wait_seconds=0.05)) as registry:
        await once(registry)
        with pytest.raises(ModelUnavailable):
            await registry.set_default("b")
        with pytest.raises(ModelLoading):
            await registry.set_default("c")
        with pytest.raises(ModelNotFound):
            await registry.set_default("x")
        house.gates["c"].set()
        assert (await once(registry)).info.name == "a"


async def test_where_both_do_not_fit_requests_wait_for_the_new_default() -> None:
    """The default is switched before the load, so that nobody loads the old one again meanwhile."""
    house = House({"a": 6, "b": 6}, gates={"b": threading.Event()})
    async with closing(house.registry()) as registry:
        await once(registry)
        switch = asyncio.create_task(registry.set_default("b"))
        await until(lambda: registry.status()[0].id == "b")
        waiting = asyncio.create_task(once(registry))
        house.gates["b"].set()
        assert (await waiting).info.name == "b"
        assert (await switch).default
        assert registry.status()[1].loads == 1


async def test_where_both_do_not_fit_a_failed_switch_is_taken_back() -> None:
    """Requests that waited for the new default are answered by the old one."""
    house = House({"a": 6, "b": 6}, failures={"b": ModelUnavailable("gone")}, gates={"b": threading.Event()})
    async with closing(house.registry()) as registry:
        await once(registry)
        switch = asyncio.create_task(registry.set_default("b"))
        await until(lambda: registry.status()[0].id == "b")
        waiting = asyncio.create_task(once(registry))
        named = asyncio.create_task(once(registry, "b"))
        await until(lambda: registry.status()[0].running == 3)
        house.gates["b"].set()
        for failing in (switch, named):
            with pytest.raises(ModelUnavailable):
                await failing
        assert (await waiting).info.name == "a"
        assert registry.status()[0].id == "a"


@pytest.mark.parametrize(("size", "switches"), [(5, 300), (6, 40)], ids=["both fit", "one fits"])
async def test_sixteen_streams_while_the_default_switches(size: int, switches: int) -> None:
    """Over HTTP: every stream is whole, is one model's from its first word to its last, and none fails."""
    house = House({"a": size, "b": size}, pause=0.001)
    done, whole = asyncio.Event(), []
    async with closing(house.registry()) as registry:
        ctx = replace(fake_context(), models=registry)
        async with serving(ctx, response_cache="off", preload=False) as url, aiohttp.ClientSession(url) as http:

            async def client() -> None:
                while not done.is_set():
                    async with http.post("/complete", json={"prompt": "x", "stream": True}) as response:
                        assert response.status == 200
                        whole.append(await response.text())

            clients = [asyncio.create_task(client()) for _ in range(16)]
            for number in range(switches):
                async with http.put("/models/default", json={"model": "ba"[number % 2]}) as response:
                    assert (response.status, (await response.json())["default"]) == (200, True)
            done.set()
            await asyncio.gather(*clients)
    for stream in whole:
        name = "a" if " a0" in stream else "b"
        assert all(f" {name}{i}" in stream for i in range(6))
        assert stream.endswith("data: [DONE]\n\n")
        assert "error" not in stream
    assert {" a0" in stream for stream in whole} == {True, False}


async def test_aliases() -> None:
    """A model answers to its aliases wherever it is named; its status lists them."""
    registry = Registry([SPEC, ModelSpec("b", "folder", "/b")], Loads(), aliases=["gpt-4o=fake", "o=fake"])
    async with registry.lease("gpt-4o") as engine, registry.lease("fake") as same:
        assert engine is same
    assert registry.find("o").aliases == ("gpt-4o", "o")
    assert [status.aliases for status in registry.status()] == [("gpt-4o", "o"), ()]
    with pytest.raises(ModelNotFound, match="served: fake, b, gpt-4o, o"):
        registry.find("x")
    registry.close()


@pytest.mark.parametrize("alias", ["x", "x=", "=fake", "x=other", "fake=fake"])
def test_wrong_aliases(alias: str) -> None:
    """An alias needs a name of its own and a served model."""
    with pytest.raises(SettingsError, match="MODEL_ALIASES"):
        Registry([SPEC], Loads(), aliases=[alias])
