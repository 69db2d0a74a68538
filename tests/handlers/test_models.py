"""handlers.models: the models served here."""

from __future__ import annotations

import pytest

from handlers import models
from handlers.schemas.responses import ModelsResponse
from runtime.errors import InvalidRequest
from runtime.types import ModelState
from tests.fakes import fake_context


@pytest.mark.parametrize("state", ["unloaded", "loading", "ready", "failed"])
async def test_answer(state: ModelState) -> None:
    """OpenAI's list of models, with where each stands beside it; loads nothing."""
    ctx = fake_context(ready=state == "ready", state=state, failure=AssertionError("asked for the model"))
    answer = await models.handle({}, ctx)
    assert answer == {
        "object": "list",
        "data": [
            {
                "id": "fake",
                "object": "model",
                "created": 1,
                "owned_by": "warmstart",
                "state": state,
                "default": True,
                "source": "folder",
            }
        ],
    }
    ModelsResponse.model_validate(answer, extra="forbid", strict=True)


async def test_takes_nothing() -> None:
    """It has no fields."""
    with pytest.raises(InvalidRequest, match="limit: unknown field"):
        await models.handle({"limit": 5}, fake_context())
