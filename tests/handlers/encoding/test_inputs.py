"""handlers.encoding.inputs: prompts by name, and the place of an input at fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.encoding.inputs import Inputs, Pair, chosen_prompt, encoder_info, prompt_for, tokenized
from runtime.errors import ContextLengthExceeded, InvalidRequest, ModelCannotEncode
from tests.support.fake_encoder import ENCODER, FakeEncoder
from tests.support.fakes import INFO, fake_context

QWEN = replace(ENCODER, prompts={"query": "Q: ", "document": "", "sts": "S: "}, default_prompt="sts")
NOMIC = replace(ENCODER, prompts={"search_query": "q: ", "search_document": "d: "})


@pytest.mark.parametrize(
    ("info", "prompt_name", "input_type", "prompt"),
    [
        (QWEN, None, None, "S: "),
        (ENCODER, None, None, ""),
        (QWEN, "query", None, "Q: "),
        (QWEN, None, "query", "Q: "),
        (QWEN, None, "passage", ""),
        (QWEN, None, "sts", "S: "),
        (NOMIC, None, "query", "q: "),
        (NOMIC, None, "SEARCH_DOCUMENT", "d: "),
        (replace(ENCODER, prompts={}), None, "document", ""),
    ],
)
def test_prompt(info: object, prompt_name: str | None, input_type: str | None, prompt: str) -> None:
    """A use is the model's name of it, or any server's; without a name the model's default applies."""
    assert chosen_prompt(prompt_name, input_type, info) == prompt  # type: ignore[arg-type]


def test_prompts_of_a_search() -> None:
    """A model without a prompt for a use has none before it."""
    assert [prompt_for("query", NOMIC), prompt_for("document", NOMIC)] == ["q: ", "d: "]
    assert prompt_for("document", ENCODER) == ""


@pytest.mark.parametrize(("prompt_name", "input_type"), [("x", None), (None, "clustering"), ("passage", None)])
def test_unknown_prompt(prompt_name: str | None, input_type: str | None) -> None:
    """The error names the field and the prompts that there are."""
    with pytest.raises(InvalidRequest, match=r"it has .*query, sts") as caught:
        chosen_prompt(prompt_name, input_type, QWEN)
    assert caught.value.param == ("prompt_name" if prompt_name else "input_type")


def test_task() -> None:
    """A model that does something else says what it does."""
    assert encoder_info(replace(INFO, encoder=ENCODER), "embed") is ENCODER
    with pytest.raises(ModelCannotEncode, match="fake does not embed; it does: generate "):
        encoder_info(INFO, "embed")
    only = replace(INFO, generates=False, encoder=replace(ENCODER, tasks=("embed",)))
    with pytest.raises(ModelCannotEncode, match="fake does not rerank; it does: embed "):
        encoder_info(only, "rerank")


@pytest.mark.parametrize(
    ("listed", "numbers", "param"), [(True, (0, 2), "input.2"), (True, (2,), "input.2"), (False, (0,), "input")]
)
async def test_place_of_an_input(listed: bool, numbers: tuple[int, ...], param: str) -> None:
    """The error about an input names its place in the request, whichever inputs are computed, and both numbers."""
    items = ("a", (5, 6), "b" * 99) if listed else ("b" * 99,)
    with pytest.raises(ContextLengthExceeded) as caught:
        await tokenized(FakeEncoder(), Inputs(items, "input", listed, "", 100, "none"), numbers, fake_context())
    assert caught.value.param == param
    assert "100 tokens" in caught.value.message
    assert f"{param} has 101 tokens" in caught.value.message


@pytest.mark.parametrize(("truncate", "ids"), [("end", (1, 2)), ("start", (2, 3))])
async def test_token_ids_are_cut(truncate: str, ids: tuple[int, ...]) -> None:
    """Token ids are cut as texts are, and too many of them are an error without it."""
    inputs = Inputs([(1, 2, 3)], "input", False, "", 2, truncate)  # type: ignore[arg-type]
    (found,) = await tokenized(FakeEncoder(), inputs, [0], fake_context())
    assert found.ids == ids
    with pytest.raises(ContextLengthExceeded, match=r"2 tokens.*input has 3 tokens"):
        await tokenized(FakeEncoder(), replace(inputs, truncate="none"), [0], fake_context())


async def test_pairs_and_ids_among_texts() -> None:
    """Each input is in its place; token ids need no tokenizer."""
    engine = FakeEncoder()
    inputs = Inputs(["a", (7,), Pair("a", "b")], "input", True, "", 100, "none")
    found = await tokenized(engine, inputs, [0, 1, 2], fake_context())
    assert [given.ids for given in found] == [(1, 97, 2), (7,), (1, 97, 2, 98, 2)]
    assert engine.tokenized == [["a", ("a", "b")]]
