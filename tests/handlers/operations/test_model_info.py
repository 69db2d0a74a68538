"""handlers.operations.model_info: what is known of a model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from handlers.operations import model_info
from handlers.schemas.reports import ModelInfoResponse
from runtime.errors import InvalidRequest, ModelLoading, ModelNotFound, ModelUnavailable
from tests.support.fakes import FakeEngine, fake_context


@pytest.mark.parametrize("payload", [{}, {"model": None}, {"model": "fake"}])
async def test_answer(payload: dict[str, Any]) -> None:
    """All that the engine knows of itself, its memory now, and what the service can do with it; plain JSON."""
    engine = FakeEngine(memory_bytes=77)
    engine.info = replace(engine.info, optimizations=("packed", "int8"), sampling_defaults=(("top_k", 20),))
    answer = await model_info.handle(payload, fake_context(engine))
    ModelInfoResponse.model_validate(answer, extra="forbid", strict=True)
    assert json.loads(json.dumps(answer)) == answer
    assert answer["memory_bytes"] == 77
    assert answer["optimizations"] == ["packed", "int8"]
    assert {"generate", "complete", "chat", "streaming"} <= set(answer["capabilities"])
    facts = asdict(engine.info) | {"optimizations": ["packed", "int8"], "weight_types": ["float32"]}
    facts["sampling_defaults"] = {"top_k": 20}
    assert {name: answer[name] for name in facts} == facts


@pytest.mark.parametrize("error", [ModelLoading("wait"), ModelUnavailable("pull it")])
async def test_model_that_is_not_there(error: Exception) -> None:
    """A model that cannot answer says why."""
    with pytest.raises(type(error), match=str(error)):
        await model_info.handle({}, fake_context(failure=error))


async def test_unknown_model() -> None:
    """A model that is not served is not found."""
    with pytest.raises(ModelNotFound) as caught:
        await model_info.handle({"model": "gpt-5"}, fake_context())
    assert caught.value.param == "model"


@pytest.mark.parametrize(("payload", "param"), [({"model": ""}, "model"), ({"model": 5}, "model"), ({"x": "y"}, "x")])
async def test_wrong_request(payload: dict[str, Any], param: str) -> None:
    """Only a model's name may be given."""
    with pytest.raises(InvalidRequest) as caught:
        await model_info.handle(payload, fake_context())
    assert caught.value.param == param
