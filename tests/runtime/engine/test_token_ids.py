"""Token ids that a tokenizer knows and its model does not: refused on every way in, by every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.operations import chat, complete, completions, generate
from runtime.engine.token_ids import check_token_ids, known_ids
from runtime.errors import InvalidRequest
from runtime.loading import kernels
from runtime.types import Job, SamplingParams
from tests.support.engines import Load, needs_kernels
from tests.support.fakes import fake_context
from tests.support.models import CHATML, save_tiny_gpt2, save_tiny_llama

SIZE = 600  # tokens of the tiny models


def test_every_id_of_a_job_is_checked() -> None:
    """Prompt, forced tokens and logit bias may name any id from 0 to the last; the first that is wrong is named."""
    names = {3: b"abc", 7: b"[PAD]", 8: b"\n", 9: b"x" * 100}

    def check(prompt: tuple[int, ...] = (0,), field: str = "prompt", **params: Any) -> None:
        job = Job(prompt, SamplingParams(max_new_tokens=1, **params), field=field)
        check_token_ids(job, 7, lambda token: names.get(token, b""))

    check((0, 6), forced=(6, 0), logit_bias=((0, 1.0), (6, 1.0)))
    for wrong, param, message in (
        (
            {"prompt": (1, 7)},
            "prompt",
            "prompt: 7 ('[PAD]') is not a token id of this model; its vocabulary has 7 tokens",
        ),
        ({"prompt": (8,), "field": "messages"}, "messages", "messages: 8 is not a token id"),
        ({"prompt": (9,)}, "prompt", f"prompt: 9 ('{'x' * 40}') is not a token id"),
        ({"prompt": (-1,)}, "prompt", "prompt: -1 is not a token id"),
        ({"forced": (0, 2**40)}, "prompt", f"prompt: {2**40} is not a token id"),
        ({"allowed_token_ids": (1, 7)}, "allowed_token_ids", "allowed_token_ids: 7 ('[PAD]') is not a token id"),
        ({"logit_bias": ((2, 1.0), (7, -1.0))}, "logit_bias", "logit_bias: 7 ('[PAD]') is not a token id"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            check(**wrong)  # type: ignore[arg-type]
        assert caught.value.message.startswith(message)
        assert (caught.value.param, caught.value.status) == (param, 400)


def test_ids_that_are_known() -> None:
    """Those from 0 to the last, in their order."""
    assert known_ids([5, -1, 600, 0, 599], 600) == (5, 0, 599)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer got a padding token that the model was not resized for, and writes it into chats."""
    from transformers import AutoTokenizer

    folder = save_tiny_gpt2(tmp_path_factory.mktemp("models") / "padded")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == SIZE
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.chat_template = "[PAD]" + CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=[pytest.param("native", marks=needs_kernels), "torch", "reference"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What makes a load give each engine."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "host_kernels", lambda cache_dir: None)
    return {"engine": "reference"} if request.param == "reference" else {"num_threads": 1 + (request.param == "torch")}


@pytest.mark.parametrize(
    ("operation", "payload", "param"),
    [
        (complete, {"prompt": "You may [PAD] of the", "repetition_penalty": 1.3}, "prompt"),
        (generate, {"prompt": ["You may", "[PAD]"]}, "prompt"),
        (completions, {"prompt": "[PAD] You", "max_tokens": 0, "echo": True, "logprobs": 1}, "prompt"),
        (completions, {"prompt": "You [PAD]", "max_tokens": 0, "echo": True, "logprobs": 1}, "prompt"),
        (chat, {"messages": [{"role": "user", "content": "Hello"}]}, "messages"),
        (complete, {"prompt": "You", "logit_bias": {"600": 1}}, "logit_bias"),
    ],
)
async def test_a_token_that_the_model_lacks_is_refused(
    operation: Any, payload: dict[str, Any], param: str, settings: dict[str, Any], padded: Path, load: Load
) -> None:
    """A 400 names the field, the id, the token and the vocabulary; the next request is served as ever."""
    ctx = fake_context(load(padded, **settings))
    with pytest.raises(InvalidRequest) as caught:
        await operation.handle(payload, ctx)
    assert caught.value.message.startswith(
        f"{param}: 600 ('[PAD]') is not a token id of this model; its vocabulary has 600"
    )
    assert caught.value.param == param
    await complete.handle({"prompt": "You may", "repetition_penalty": 1.3, "max_new_tokens": 2}, ctx)


def test_the_warm_up_needs_no_token_that_the_model_lacks(
    settings: dict[str, Any], padded: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that puts such a token around every text does not keep the model from being loaded."""
    engine = load(padded, **settings)
    monkeypatch.setattr(engine._tokenizer, "encode", lambda text: [600, -1])
    engine.warm_up()


async def test_a_row_without_a_token_has_no_text(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, load: Load
) -> None:
    """Models pad their tables: an id that the model has and its tokenizer lacks can be chosen, and is no text."""
    folder = tmp_path_factory.getbasetemp() / "rows"
    if not folder.exists():
        save_tiny_llama(folder, vocab_size=640)
    ctx = fake_context(load(folder, **settings))
    payload = {"prompt": "You", "logit_bias": {"639": 100}, "max_new_tokens": 3, "temperature": 0, "logprobs": 1}
    answer = await complete.handle(payload, ctx)
    (sequence,) = answer["sequences"]
    assert (sequence["text"], sequence["finish_reason"]) == ("", "length")
    assert [entry["bytes"] for entry in sequence["logprobs"]] == [[]] * 3
    with pytest.raises(InvalidRequest, match="640 is not a token id"):
        await complete.handle(payload | {"logit_bias": {"640": 100}}, ctx)
