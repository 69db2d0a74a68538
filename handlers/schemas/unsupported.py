"""Fields of OpenAI's API that this server does not support.

Clients and frameworks send many of them with a value that asks for nothing (``"tools": []``). Such a neutral value is
taken as if the field were left out; any other would change the answer, so it is refused by the field's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field that is not supported.

    Args:
        reason: what is not supported, for error messages and the documentation.
        neutral: JSON values that ask for nothing, beside null.
    """

    reason: str
    neutral: tuple[object, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether a value asks for nothing. In JSON true is not 1, as it is in Python."""
        return value is None or any(
            value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.neutral
        )

    @property
    def message(self) -> str:
        """What an error says, with the values that are allowed."""
        return f"{self.reason}; leave it out or send {' or '.join(map(json.dumps, (None, *self.neutral)))}"

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
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
"""Of a chat completion request."""

COMPLETIONS: Mapping[str, Unsupported] = MappingProxyType(
    {
        "best_of": Unsupported("a choice of the best completion is not supported by this server", (1,)),
        "suffix": Unsupported("a text behind the completion is not supported by this server", ("",)),
    }
)
"""Of a completion request."""

MESSAGE: Mapping[str, Unsupported] = MappingProxyType(
    {
        "tool_calls": Unsupported(_TOOLS, ([],)),
        "function_call": Unsupported(_FUNCTIONS),
        "audio": Unsupported("audio is not supported by this server"),
        "refusal": Unsupported("refusals are not supported by this server", ("",)),
        "annotations": Unsupported("annotations are not supported by this server", ([],)),
    }
)
"""Of a chat's message: the official client's ``message.model_dump()`` of an answer has all of these."""

STREAM_OPTIONS: Mapping[str, Unsupported] = MappingProxyType(
    {"include_obfuscation": Unsupported("streams are not padded by this server", (False,))}
)
"""Of the options of a stream."""
