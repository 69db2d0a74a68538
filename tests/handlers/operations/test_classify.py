"""handlers.operations.classify: vLLM's classification API."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.operations import classify
from handlers.schemas.encoder_objects import ClassifyResponse
from runtime.errors import ModelCannotEncode
from tests.support.fake_encoder import ENCODER, FakeEncoder
from tests.support.fakes import INFO, fake_context


async def test_answer() -> None:
    """Each text has the class with the highest score, and the scores of all."""
    answer = await classify.handle({"input": ["abc", "x"]}, fake_context())
    ClassifyResponse.model_validate(answer, strict=True)
    assert [(one["index"], one["label"], one["num_classes"]) for one in answer["data"]] == [
        (0, "good", 2),
        (1, "good", 2),
    ]
    assert all(0 <= share <= 1 for one in answer["data"] for share in one["probs"])
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert answer["id"] == "classify-id1"


async def test_logits_without_names() -> None:
    """Without the activation the scores are logits; classes without names are numbered."""
    engine = FakeEncoder(info=replace(INFO, encoder=replace(ENCODER, labels=(), activation="softmax")))
    answer = await classify.handle({"input": "abc", "use_activation": False}, fake_context(engine))
    assert answer["data"][0]["probs"][1] == -5
    assert answer["data"][0]["label"] == "LABEL_0"
    answer = await classify.handle({"input": "abc"}, fake_context(engine))
    assert sum(answer["data"][0]["probs"]) == pytest.approx(1)


async def test_model_without_classes() -> None:
    """A model for vectors has none."""
    engine = FakeEncoder(info=replace(INFO, encoder=replace(ENCODER, tasks=("embed",))))
    with pytest.raises(ModelCannotEncode, match="fake does not classify"):
        await classify.handle({"input": "x"}, fake_context(engine))
