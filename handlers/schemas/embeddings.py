"""The request for embeddings: OpenAI's fields, and those with which other servers choose a prompt."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.encoder_fields import PRIORITY, SPECIAL_TOKENS, EncoderRequest
from handlers.schemas.fields import Prompts, Text
from handlers.schemas.unsupported import Unsupported


class EmbeddingsRequest(EncoderRequest):
    """OpenAI's request for embeddings, plus prompts by name, truncation and cache_control."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "How do bees find flowers?"},
                {"input": ["Bees see ultraviolet light.", "Rivers carry sand."], "encoding_format": "base64"},
            ],
            "not": {
                "required": ["prompt_name", "input_type"],
                "properties": {"prompt_name": {"type": "string"}, "input_type": {"type": "string"}},
            },
        }
    )
    unsupported = MappingProxyType(
        {
            "messages": Unsupported("chats have no vectors on this server: send their texts as input", ([],)),
            "add_special_tokens": SPECIAL_TOKENS,
            "embed_dtype": Unsupported("vectors are float32 on this server", ("float32",)),
            "endianness": Unsupported("base64 has little-endian numbers on this server", ("native", "little")),
            "priority": PRIORITY,
        }
    )

    input: Prompts = Field(description="The text to embed, its token ids, or a list of either.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float: a list of numbers; base64: the numbers' bytes, float32 in little-endian order."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        strict=False,
        description="Return the first dimensions of each vector only, again with length 1 if the model's have it; one "
        "of the numbers that the model was trained for (encoder.dimensions of GET /model-info).",
    )
    prompt_name: Text | None = Field(
        None,
        max_length=256,
        description="Name of the model's prompt to put before each text (encoder.prompts of GET /model-info).",
    )
    input_type: Text | None = Field(
        None,
        max_length=256,
        description="What the texts are, such as query, document or passage: chooses the model's prompt for it. "
        "Without a prompt for queries or documents, none is put before them.",
    )
    normalize: bool | None = Field(
        None, description="Whether vectors have the length 1; as the model's own if left out."
    )

    @field_validator("input_type")
    @classmethod
    def _one_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("prompt_name") is not None:
            raise PydanticCustomError("one_name", "give prompt_name or input_type, not both")
        return value
