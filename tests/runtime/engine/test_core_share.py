"""runtime.engine.core_share: the turns of models that generate and of encoders, in real threads on a virtual clock."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from runtime.engine.core_share import CoreShare


class Clock:
    """A clock that only the blocks advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_encoder_alone_has_the_cores() -> None:
    """Without a model that generates, slices follow each other and may be of any length."""
    clock = Clock()
    share = CoreShare(clock)
    for _ in range(50):
        assert share.slice_seconds is None
        with share.encoding():
            clock.now += 1
    with share.generating():  # waits for nothing
        clock.now += 0.02
    assert share.slice_seconds == pytest.approx(0.004)
    clock.now += 1  # idle
    assert share.slice_seconds is None


def test_encoders_get_their_share_between_steps() -> None:
    """Beside steps of 20 ms, slices of 4 ms run for a fifth of the steps' time, and never at the same time as one."""
    clock = Clock()
    share = CoreShare(clock)
    log: list[str] = []
    done = threading.Event()
    inside = threading.Lock()

    def run(kind: str, turn: Callable[[], object], seconds: float) -> None:
        with turn():  # type: ignore[attr-defined]
            assert inside.acquire(blocking=False)
            clock.now += seconds
            log.append(kind)
            inside.release()

    def encode() -> None:
        while not done.is_set():
            run("slice", share.encoding, 0.004)

    with share.generating():
        clock.now += 0.02
    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    for _ in range(200):
        run("step", share.generating, 0.02)
    counted = log[: len(log)]
    done.set()
    clock.now += 1
    thread.join()
    steps, slices = (counted.count(kind) for kind in ("step", "slice"))
    assert steps == 200
    assert 150 <= slices <= 205
    runs = "".join(kind[1] for kind in counted).split("t")  # slices between two steps
    assert max(map(len, runs)) <= 3


def test_a_long_slice_is_paid_back() -> None:
    """After a slice of several shares, an encoder waits for as many steps."""
    clock = Clock()
    share = CoreShare(clock)
    with share.generating():
        clock.now += 0.02
    with share.encoding():
        clock.now += 0.02  # five shares
    entered = threading.Event()

    def encode() -> None:
        with share.encoding():
            entered.set()

    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    waited = 0
    while not entered.is_set() and waited < 20:
        with share.generating():
            clock.now += 0.02
        waited += 1
        thread.join(0.05)
    thread.join()
    assert 4 <= waited <= 6
