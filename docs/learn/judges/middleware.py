"""Judges the rate limit with a clock of its own."""

from __future__ import annotations

from types import ModuleType

from aiohttp.test_utils import TestClient, TestServer

from docs.learn.service import ToyModel, create_app


class _Service:
    """The small service behind the middleware: ``ask`` returns the status and ``Retry-After``."""

    def __init__(self, exercise: ModuleType, **options: int) -> None:
        self.now = 1000.0
        self.model = ToyModel()
        limit = exercise.rate_limit(60, 3, clock=lambda: self.now, **options)
        self.client = TestClient(TestServer(create_app([limit], model=self.model)))

    async def __aenter__(self) -> _Service:
        await self.client.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, client: str = "a") -> tuple[int, str | None]:
        body = {"prompt": "little", "max_tokens": 1}
        async with self.client.post("/complete", json=body, headers={"X-Client": client}) as response:
            return response.status, response.headers.get("Retry-After")


async def check_burst(exercise: ModuleType) -> None:
    """As many requests as the burst allows are answered, the next one is a 429 that does not reach the model."""
    async with _Service(exercise) as service:
        assert [(await service.ask())[0] for _ in range(5)] == [200, 200, 200, 429, 429]
        assert service.model.calls == 3


async def check_retry_after(exercise: ModuleType) -> None:
    """Retry-After has whole seconds, rounded up, and after that time a request is answered."""
    async with _Service(exercise) as service:
        for _ in range(3):
            await service.ask()
        service.now += 0.25
        assert await service.ask() == (429, "1")
        service.now += 1
        assert (await service.ask())[0] == 200


async def check_rate(exercise: ModuleType) -> None:
    """In the long run it is one request a second, and a pause gives back no more than the burst."""
    async with _Service(exercise) as service:
        for _ in range(3):
            await service.ask()
        answered = 0
        for _ in range(40):
            service.now += 0.25
            answered += (await service.ask())[0] == 200
        assert answered == 10, f"{answered} in 10 seconds"
        service.now += 3600
        assert [(await service.ask())[0] for _ in range(4)] == [200, 200, 200, 429]


async def check_refused_free(exercise: ModuleType) -> None:
    """A refused request costs nothing, so a client that hammers is let in as soon as one that waits."""
    async with _Service(exercise) as service:
        for _ in range(50):
            await service.ask()
        service.now += 1
        assert (await service.ask())[0] == 200


async def check_apart(exercise: ModuleType) -> None:
    """One client's requests do not count for another."""
    async with _Service(exercise) as service:
        for _ in range(4):
            await service.ask("a")
        assert (await service.ask("b"))[0] == 200


async def check_memory(exercise: ModuleType) -> None:
    """Only so many clients are remembered, and the one that was seen last is among them."""
    async with _Service(exercise, clients=2) as service:
        for _ in range(4):
            await service.ask("a")
        await service.ask("b")
        await service.ask("a")
        await service.ask("c")  # b goes
        assert (await service.ask("a"))[0] == 429, "a was forgotten"
        await service.ask("d")  # c goes
        await service.ask("e")  # a goes
        assert (await service.ask("a"))[0] == 200, "a was not forgotten"
