"""Fields that say how a prompt becomes token ids, as vLLM names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from handlers.schemas.fields import TokensOrAll
from handlers.schemas.strict import Strict


class PromptFields(Strict):
    """A request whose prompt may be shortened."""

    add_special_tokens: bool | None = Field(
        None,
        description="Whether the tokenizer adds its own tokens, often a BOS token. By default it does around a prompt, "
        "and around a chat only if the model has no chat template.",
    )
    truncate_prompt_tokens: TokensOrAll | None = Field(
        None,
        description="Maximum number of tokens of the prompt, of which the others are dropped; -1 for those that leave "
        "space for max_tokens in the context.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="The side on which truncate_prompt_tokens drops tokens; left if left out."
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="Only requests with the same salt share cached prefixes and responses.",
    )

    @property
    def prompt_options(self) -> tuple[object, ...]:
        """What determines the prompt's tokens, and who shares them, besides the prompt; nothing by default."""
        given = self.add_special_tokens, self.truncate_prompt_tokens, self.truncation_side, self.cache_salt
        return () if given == (None,) * len(given) else given

    def truncated(self, ids: Sequence[int], context_length: int, new_tokens: int | None) -> tuple[int, ...]:
        """Return a prompt's token ids without those that ``truncate_prompt_tokens`` drops.

        Args:
            ids: the token ids.
            context_length: the model's context length.
            new_tokens: the maximum number of new tokens; None if the request sets none.
        """
        size = self.truncate_prompt_tokens
        if size is None:
            return tuple(ids)
        if size == -1:
            size = max(1, context_length - (new_tokens or 1))
        return tuple(ids[:size] if self.truncation_side == "right" else ids[-size:])
