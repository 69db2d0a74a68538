"""handlers.operations.ollama_models: what Ollama's API says of the models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.operations import ollama_models
from handlers.schemas.ollama_objects import OllamaModels, OllamaRunningModels, OllamaShowResponse, OllamaVersion
from runtime.answer_format import AnswerFormat
from runtime.errors import ModelNotFound
from runtime.types import ModelInfo
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import INFO, FakeEngine, fake_context

LLAMA = replace(
    INFO,
    architecture="LlamaForCausalLM",
    parameters=134_515_008,
    weight_types=("q4_k", "q6_k"),
    fingerprint="ab" * 32,
    sampling_defaults=(("temperature", 0.6),),
    chat_template=True,
)


async def _show(engine: FakeEngine, **payload: Any) -> dict[str, Any]:
    shown = await ollama_models.show(payload, fake_context(engine))
    OllamaShowResponse.model_validate(shown, extra="forbid", strict=True)
    return shown


async def test_tags() -> None:
    """Each model with its kind, size, and what identifies it."""
    listed = await ollama_models.tags({}, fake_context(FakeEngine(info=LLAMA)))
    OllamaModels.model_validate(listed, extra="forbid", strict=True)
    (model,) = listed["models"]
    assert (model["name"], model["model"], model["digest"]) == ("fake", "fake", "ab" * 32)
    assert (
        model["details"].items()
        >= {
            "family": "llama",
            "parameter_size": "134.52M",
            "quantization_level": "Q4_K",
        }.items()
    )


async def test_ps() -> None:
    """The loaded models; on a CPU no memory of a GPU is used."""
    running = await ollama_models.running({}, fake_context(FakeEngine(info=LLAMA)))
    OllamaRunningModels.model_validate(running, extra="forbid", strict=True)
    (model,) = running["models"]
    assert (model["name"], model["size_vram"], model["context_length"]) == ("fake", 0, LLAMA.context_length)


async def test_show() -> None:
    """The metadata by the names that GGUF has for them, by the model's name in either field."""
    shown = await _show(FakeEngine(info=LLAMA))
    assert (
        shown["model_info"].items()
        >= {
            "general.architecture": "llama",
            "general.parameter_count": 134_515_008,
            "llama.context_length": LLAMA.context_length,
        }.items()
    )
    assert shown["parameters"] == "temperature 0.6"
    assert await _show(FakeEngine(info=LLAMA), name="fake:latest") == shown
    with pytest.raises(ModelNotFound):
        await _show(FakeEngine(), model="other")
    assert await _show(FakeEngine(info=LLAMA), model="fake", name="other") == shown


@pytest.mark.parametrize(
    ("engine", "capabilities"),
    [
        (FakeEngine(info=LLAMA), ["completion", "tools"]),
        (FakeEngine(info=replace(LLAMA, chat_template=False)), ["completion"]),
        (
            FakeEngine(info=LLAMA, answer_format=AnswerFormat(reasoning="optional")),
            ["completion", "tools", "thinking"],
        ),
    ],
)
async def test_capabilities(engine: FakeEngine, capabilities: list[str]) -> None:
    """What clients ask before they offer tools or reasoning."""
    assert (await _show(engine))["capabilities"] == capabilities


async def test_an_embedding_model() -> None:
    """A model that is only an encoder embeds, and says how wide its vectors are."""
    shown = await _show(FakeEncoder())
    assert "embedding" in shown["capabilities"]
    assert any(name.endswith(".embedding_length") for name in shown["model_info"])


@pytest.mark.parametrize(
    ("architecture", "family"),
    [("GPT2LMHeadModel", "gpt2"), ("Gemma3ForCausalLM", "gemma3"), ("BertModel", "bert"), ("BertForMaskedLM", "bert")],
)
async def test_families(architecture: str, family: str) -> None:
    """The family of an architecture's name."""
    info: ModelInfo = replace(LLAMA, architecture=architecture)
    assert (await _show(FakeEngine(info=info)))["details"]["family"] == family


async def test_version() -> None:
    """Clients compare it with what they need."""
    version = await ollama_models.version({}, fake_context())
    OllamaVersion.model_validate(version, extra="forbid", strict=True)
    assert [int(part) for part in version["version"].split(".")] >= [0, 6, 4]
