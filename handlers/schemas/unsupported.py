"""Unsupported fields of OpenAI's API, and the neutral values of them that are accepted.

Clients and frameworks send many of them with a value that requests nothing (``"tools": []``). Such a neutral value is
ignored; any other value would change the response, so it is refused with an error that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An unsupported field.

    Args:
        reason: the sentence for error messages and the OpenAPI document.
        neutral: the accepted JSON values besides null.
    """

    reason: str
    neutral: tuple[object, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether a value is neutral. Unlike in Python, true is not equal to 1 here."""
        return value is None or any(
            value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.neutral
        )

    @property
    def message(self) -> str:
        """The error message, with the accepted values."""
        return f"{self.reason}; leave it out or send {' or '.join(map(json.dumps, (None, *self.neutral)))}"

    @property
    def schema(self) -> dict[str, Any]:
        """The field's JSON schema."""
        return {"enum": [None, *self.neutral], "description": f"Not supported: {self.reason}."}


CHAT: Mapping[str, Unsupported] = MappingProxyType(
    {
        "modalities": Unsupported("this server generates text only", (["text"],)),
        "audio": Unsupported("audio is not supported by this server"),
        "store": Unsupported("stored completions are not supported by this server", (False,)),
        "verbosity": Unsupported("verbosity is not supported by this server", ("medium",)),
        "prediction": Unsupported("predicted outputs are not supported by this server"),
        "web_search_options": Unsupported("web search is not supported by this server"),
        "moderation": Unsupported("moderation is not supported by this server"),
        "prompt_cache_options": Unsupported("options of the prompt cache are not supported by this server"),
        "prompt_cache_retention": Unsupported("the retention of cached prompts is not configurable"),
    }
)
"""Unsupported fields of a chat completion request."""

COMPLETIONS: Mapping[str, Unsupported] = MappingProxyType(
    {
        "suffix": Unsupported("a text after the completion is not supported by this server", ("",)),
    }
)
"""Unsupported fields of a completion request."""

MESSAGE: Mapping[str, Unsupported] = MappingProxyType(
    {
        "audio": Unsupported("audio is not supported by this server"),
        "refusal": Unsupported("refusals are not supported by this server", ("",)),
        "annotations": Unsupported("annotations are not supported by this server", ([],)),
    }
)
"""Unsupported fields of a chat message; ``message.model_dump()`` of OpenAI's client gives all of them."""

STREAM_OPTIONS: Mapping[str, Unsupported] = MappingProxyType(
    {"include_obfuscation": Unsupported("streams are not padded by this server", (False,))}
)
"""Unsupported stream options."""
