"""Fields that the requests for vectors, relevance and classes share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from handlers.schemas.base import CacheControlled, ModelChoice
from handlers.schemas.fields import MAX_PROMPTS, TokensOrAll
from handlers.schemas.unsupported import Unsupported
from runtime.encoder_types import Truncation

MAX_INPUTS = MAX_PROMPTS
"""Maximum number of texts of a request, as in OpenAI's embeddings."""

PRIORITY = Unsupported("priorities are not supported by this server", (0,))
SPECIAL_TOKENS = Unsupported("the tokenizer's own tokens are always added on this server", (True,))

_CUTS = ("none", "start", "end")


def _cut(value: object) -> object:
    if isinstance(value, bool):
        return "end" if value else "none"
    if isinstance(value, str) and value in map(str.upper, _CUTS):
        return value.lower()
    return value


Cut = Annotated[
    Literal["none", "start", "end"],
    BeforeValidator(_cut),
    WithJsonSchema({"anyOf": [{"enum": [*_CUTS, *map(str.upper, _CUTS)]}, {"type": "boolean"}]}),
]
"""Where a text that is too long is cut; true is ``end`` and false ``none``."""


class EncoderRequest(CacheControlled, ModelChoice):
    """A request with texts that a model reads as a whole, and does not continue."""

    truncate: Cut = Field(
        "none",
        description="What is done with a text that has too many tokens: none (or false): an error; end (or true): its "
        "end is cut off; start: its start.",
    )
    truncate_prompt_tokens: TokensOrAll | None = Field(
        None,
        description="vLLM's: cut texts to this number of tokens; -1 for the model's maximum.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="vLLM's: the side on which tokens are cut off; right if left out."
    )
    user: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")

    def cut(self, max_tokens: int) -> tuple[int, Truncation]:
        """Return the maximum number of tokens of a text, and what is done with a longer one.

        Args:
            max_tokens: the model's maximum.
        """
        size = self.truncate_prompt_tokens
        if size is None and self.truncate == "none":
            return max_tokens, "none"
        side: Truncation = "start" if self.truncate == "start" or self.truncation_side == "left" else "end"
        return max_tokens if size in (None, -1) else min(size, max_tokens), side
