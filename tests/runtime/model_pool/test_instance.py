"""Which stays must end so that another model fits: a truth table."""

from __future__ import annotations

import pytest

from runtime.errors import ModelTooLarge
from runtime.model.catalogue import ModelSpec
from runtime.model_pool.instance import ModelInstance, to_unload
from tests.support.fakes import FakeEngine


def stay(name: str, size: int, used: float, **fields: object) -> ModelInstance[FakeEngine]:
    fields = {"engine": FakeEngine()} | fields
    return ModelInstance(ModelSpec(name, "folder", "/"), bytes=size, used=used, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("need", "residents", "leave"),
    [
        (4, [], ""),
        (10, [], ""),
        (4, [stay("a", 6, 1)], ""),
        (5, [stay("a", 6, 1)], "a"),
        (5, [stay("a", 3, 2), stay("b", 3, 1)], "b"),
        (9, [stay("a", 3, 2), stay("b", 3, 1)], "ba"),
        (5, [stay("a", 3, 1, holders=1), stay("b", 3, 2)], "b"),
        (9, [stay("a", 3, 1, holders=1), stay("b", 3, 2)], "ba"),
        (5, [stay("a", 3, 1, pinned=True), stay("b", 3, 2)], "b"),
        (5, [stay("a", 6, 1, leaving=True)], ""),
        (5, [stay("a", 6, 1, leaving=True), stay("b", 4, 2)], ""),
        (5, [stay("a", 6, 1, leaving=True, pinned=True)], ""),
        (5, [stay("a", 6, 1, engine=None)], ""),
        (5, [stay("a", 4, 1, engine=None), stay("b", 2, 2)], "b"),
    ],
    ids=[
        "an empty house",
        "to the last byte",
        "both fit",
        "one must go",
        "the least recently used goes",
        "as many as it takes, in that order",
        "one that nobody holds goes first",
        "held ones too if need be",
        "a pinned one stays",
        "one leaves already",
        "and will leave room enough",
        "unloaded by hand, a pinned one counts no more",
        "one that loads cannot be asked yet",
        "but another can",
    ],
)
def test_who_leaves(need: int, residents: list[ModelInstance[FakeEngine]], leave: str) -> None:
    """A budget of ten."""
    assert "".join(resident.spec.id for resident in to_unload("new", need, 10, residents)) == leave


@pytest.mark.parametrize(
    ("need", "residents", "said"),
    [
        (11, [], "new needs 11 bytes of memory and the models may hold 10 (MEMORY_BUDGET_BYTES)"),
        (7, [stay("a", 4, 1, pinned=True)], "needs 7 bytes of memory and the models may hold 10 beside the pinned"),
        (7, [stay("a", 4, 1, pinned=True, engine=None)], "which hold 4"),
    ],
)
def test_what_can_never_fit_is_refused(need: int, residents: list[ModelInstance[FakeEngine]], said: str) -> None:
    """With both numbers, and before anybody is unloaded for it."""
    with pytest.raises(ModelTooLarge) as caught:
        to_unload("new", need, 10, residents)
    assert said in caught.value.message
