"""handlers.operations.embeddings: OpenAI's embeddings."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from handlers.context import RequestLimits
from handlers.operations import embeddings
from handlers.schemas.encoder_objects import EmbeddingsResponse
from runtime.errors import ContextLengthExceeded, InvalidRequest, ModelCannotEncode
from tests.support.fake_encoder import ENCODER, FakeEncoder
from tests.support.fakes import INFO, FakeEngine, fake_context

TEXT = {"input": "abc"}


async def _vectors(payload: dict[str, Any], engine: FakeEncoder | None = None) -> list[Any]:
    answer = await embeddings.handle(payload, fake_context(engine or FakeEncoder()))
    EmbeddingsResponse.model_validate(answer, strict=True)
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return [one["embedding"] for one in answer["data"]]


async def test_answer() -> None:
    """OpenAI's list, with the tokens of all inputs."""
    answer = await embeddings.handle({"input": ["abc", "a", [5, 6]], "user": "u"}, fake_context())
    EmbeddingsResponse.model_validate(answer, strict=True)
    assert answer["usage"] == {"prompt_tokens": 5 + 3 + 2, "total_tokens": 10}
    assert (answer["object"], answer["model"], len(answer["data"])) == ("list", "fake", 3)
    assert np.linalg.norm(answer["data"][0]["embedding"]) == pytest.approx(1)


async def test_one_input() -> None:
    """A text, a list with it, and its token ids are the same input."""
    alone = await _vectors(TEXT)
    assert alone == await _vectors({"input": ["abc"]}) == await _vectors({"input": [1, 97, 98, 99, 2]})
    assert alone == await _vectors({"input": [[1, 97, 98, 99, 2]]})


async def test_base64() -> None:
    """The same numbers."""
    (numbers,), (text,) = await _vectors(TEXT), await _vectors(TEXT | {"encoding_format": "base64"})
    assert np.array_equal(np.frombuffer(b64decode(text), "<f4"), np.array(numbers, np.float32))


async def test_dimensions() -> None:
    """The first ones, with the length 1 again; all are allowed, too."""
    (whole,), (short,) = await _vectors(TEXT), await _vectors(TEXT | {"dimensions": 2})
    assert short == pytest.approx((np.array(whole[:2]) / np.linalg.norm(whole[:2])).tolist())
    assert await _vectors(TEXT | {"dimensions": 4}) == [whole]


async def test_vectors_of_any_length() -> None:
    """Vectors of a model that does not normalize keep their length unless the request wants 1, cut or not."""
    engine = FakeEncoder(info=replace(INFO, encoder=replace(ENCODER, normalized=False)))
    (short,) = await _vectors(TEXT | {"dimensions": 2, "normalize": False}, engine)
    assert np.linalg.norm(short) < 0.99
    assert await _vectors(TEXT | {"dimensions": 2}, engine) == [short]
    (unit,) = await _vectors(TEXT | {"dimensions": 2, "normalize": True}, engine)
    assert np.linalg.norm(unit) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"input_type": "query"}, (1, 81, 58, 32, 97, 98, 99, 2)),
        ({"prompt_name": "title"}, (1, 84, 58, 32, 97, 98, 99, 2)),
        ({"input_type": "document"}, (1, 97, 98, 99, 2)),
        ({"truncate_prompt_tokens": 4}, (1, 97, 98, 2)),
        ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, (1, 98, 99, 2)),
        ({"truncate_prompt_tokens": -1}, (1, 97, 98, 99, 2)),
        ({"input": "abc" * 100, "truncate": True, "truncate_prompt_tokens": 3}, (1, 97, 2)),
        ({"input": "abc" * 100, "truncate": "START", "truncate_prompt_tokens": 3}, (1, 99, 2)),
    ],
)
async def test_what_is_read(fields: dict[str, Any], ids: tuple[int, ...]) -> None:
    """Prompts stand before the text, and too long a text is cut as the request says."""
    engine = FakeEncoder()
    await _vectors(TEXT | fields, engine)
    assert engine.embedded[0][0].ids == ids


async def test_cut_to_the_model() -> None:
    """``truncate`` cuts to what the model can read."""
    engine = FakeEncoder()
    await _vectors({"input": ["a" * 300], "truncate": "end"}, engine)
    assert len(engine.embedded[0][0].ids) == 100


@pytest.mark.parametrize(
    ("payload", "error", "param"),
    [
        ({"input": "a" * 99}, ContextLengthExceeded, "input"),
        ({"input": ["a", "a" * 99]}, ContextLengthExceeded, "input.1"),
        ({"input": ["a", [1] * 101]}, ContextLengthExceeded, "input.1"),
        ({"input": []}, InvalidRequest, "input"),
        ({"input": ["a"] * 2049}, InvalidRequest, "input"),
        ({"input": ["a", 5]}, InvalidRequest, "input.1"),
        ({"input": [[1], [1, 300]]}, InvalidRequest, "input.1"),
        ({"dimensions": 3}, InvalidRequest, "dimensions"),
        ({"dimensions": 0}, InvalidRequest, "dimensions"),
        ({"encoding_format": "int8"}, InvalidRequest, "encoding_format"),
        ({"prompt_name": "x"}, InvalidRequest, "prompt_name"),
        ({"prompt_name": "query", "input_type": "query"}, InvalidRequest, "input_type"),
        ({"prompt_name": "query", "input": [5]}, InvalidRequest, "prompt_name"),
        ({"normalize": False}, InvalidRequest, "normalize"),
        ({"truncate": "middle"}, InvalidRequest, "truncate"),
        ({"truncate_prompt_tokens": 0}, InvalidRequest, "truncate_prompt_tokens"),
        ({"embed_dtype": "float16"}, InvalidRequest, "embed_dtype"),
        ({"model": "gpt-5"}, Exception, "model"),
        ({"input": "a" * 5001}, InvalidRequest, "input"),
    ],
)
async def test_wrong_requests(payload: dict[str, Any], error: type[InvalidRequest], param: str) -> None:
    """Each is refused by name."""
    with pytest.raises(error) as caught:
        await embeddings.handle(TEXT | payload, fake_context(limits=RequestLimits(max_prompt_chars=5000)))
    assert caught.value.param == param


async def test_model_without_vectors() -> None:
    """A model that only generates says so."""
    with pytest.raises(ModelCannotEncode, match="fake does not embed; it does: generate"):
        await embeddings.handle(TEXT, fake_context(FakeEngine()))
