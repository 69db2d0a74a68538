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


_TOOLS = "tools are not supported by this server"
_FUNCTIONS = "functions are not supported by this server"

CHAT: Mapping[str, Unsupported] = MappingProxyType(
    {
        "tools": Unsupported(_TOOLS, ([],)),
        "tool_choice": Unsupported(_TOOLS, ("none", "auto")),
        "parallel_tool_calls": Unsupported(_TOOLS, (True, False)),
        "functions": Unsupported(_FUNCTIONS, ([],)),
        "function_call": Unsupported(_FUNCTIONS, ("none", "auto")),
        "response_format": Unsupported("this server writes text only", ({"type": "text"},)),
        "modalities": Unsupported("this server writes text only", (["text"],)),
        "audio": Unsupported("audio is not supported by this server"),
        "store": Unsupported("this server stores no answers", (False,)),
        "service_tier": Unsupported("this server has one service tier", ("auto", "default")),
        "reasoning_effort": Unsupported("the effort of reasoning cannot be chosen"),
        "verbosity": Unsupported("verbosity cannot be chosen", ("medium",)),
        "prediction": Unsupported("predicted outputs are not supported by this server"),
        "web_search_options": Unsupported("web search is not supported by this server"),
        "moderation": Unsupported("moderation is not supported by this server"),
        "prompt_cache_options": Unsupported("the prompt cache has no options"),
        "prompt_cache_retention": Unsupported("how long prompts stay cached cannot be chosen"),
    }
)
"""Unsupported fields of a chat completion request."""

COMPLETIONS: Mapping[str, Unsupported] = MappingProxyType(
    {
        "best_of": Unsupported("a choice of the best completion is not supported by this server", (1,)),
        "suffix": Unsupported("a text behind the completion is not supported by this server", ("",)),
    }
)
"""Unsupported fields of a completion request."""

MESSAGE: Mapping[str, Unsupported] = MappingProxyType(
    {
        "tool_calls": Unsupported(_TOOLS, ([],)),
        "function_call": Unsupported(_FUNCTIONS),
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
