"""runtime.model_pool.instance: the choice of instances to evict, as a truth table."""

from __future__ import annotations

import pytest

from runtime.errors import ModelTooLarge
from runtime.model.catalogue import ModelSpec
from runtime.model_pool.instance import ModelInstance, choose_evictions
from tests.support.fakes import FakeEngine


def instance(name: str, size: int, last_used: float, **fields: object) -> ModelInstance[FakeEngine]:
    fields = {"engine": FakeEngine()} | fields
    return ModelInstance(ModelSpec(name, "folder", "/"), bytes=size, last_used=last_used, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("need", "instances", "evicted"),
    [
        (4, [], ""),
        (10, [], ""),
        (4, [instance("a", 6, 1)], ""),
        (5, [instance("a", 6, 1)], "a"),
        (5, [instance("a", 3, 2), instance("b", 3, 1)], "b"),
        (9, [instance("a", 3, 2), instance("b", 3, 1)], "ba"),
        (5, [instance("a", 3, 1, leases=1), instance("b", 3, 2)], "b"),
        (9, [instance("a", 3, 1, leases=1), instance("b", 3, 2)], "ba"),
        (5, [instance("a", 3, 1, pinned=True), instance("b", 3, 2)], "b"),
        (5, [instance("a", 6, 1, draining=True)], ""),
        (5, [instance("a", 6, 1, draining=True), instance("b", 4, 2)], ""),
        (5, [instance("a", 6, 1, draining=True, pinned=True)], ""),
        (5, [instance("a", 6, 1, engine=None)], ""),
        (5, [instance("a", 4, 1, engine=None), instance("b", 2, 2)], "b"),
    ],
    ids=[
        "nothing loaded",
        "exactly the budget",
        "both fit",
        "one is evicted",
        "the least recently used is evicted",
        "several are evicted, in that order",
        "one without leases is evicted first",
        "leased ones too if necessary",
        "a pinned one is not evicted",
        "one is draining already",
        "which frees enough memory",
        "a draining pinned one does not count",
        "one that is loading cannot be evicted yet",
        "but a loaded one can",
    ],
)
def test_chosen_evictions(need: int, instances: list[ModelInstance[FakeEngine]], evicted: str) -> None:
    """The order of evictions within a budget of ten bytes."""
    assert "".join(one.spec.id for one in choose_evictions("new", need, 10, instances)) == evicted


@pytest.mark.parametrize(
    ("need", "instances", "message"),
    [
        (11, [], "new needs 11 bytes of memory, but all models together may use 10 (MEMORY_BUDGET_BYTES; DTYPE for"),
        (
            7,
            [instance("a", 4, 1, pinned=True)],
            "needs 7 bytes of memory, but all models together may use 10 beside the pinned",
        ),
        (7, [instance("a", 4, 1, pinned=True, engine=None)], "which use 4"),
    ],
)
def test_model_that_can_never_fit(need: int, instances: list[ModelInstance[FakeEngine]], message: str) -> None:
    """The error names both numbers, and nothing is evicted."""
    with pytest.raises(ModelTooLarge) as caught:
        choose_evictions("new", need, 10, instances)
    assert message in caught.value.message
