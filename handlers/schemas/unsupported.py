"""Unsupported fields of OpenAI's API and of other servers, and the neutral values of them that are accepted.

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
        code: the kind of the validation error, for which ``handlers/schemas/parsing.py`` may have an error of its own.
    """

    reason: str
    neutral: tuple[object, ...] = ()
    code: str = "unsupported"

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


_LLAMA_CPP: Mapping[str, Unsupported] = MappingProxyType(
    {
        "adaptive_target": Unsupported("adaptive sampling is not supported by this server", (-1,)),
        "dry_multiplier": Unsupported("sampling by DRY is not supported by this server", (0,)),
        "dynatemp_range": Unsupported("dynamic temperatures are not supported by this server", (0,)),
        "lora": Unsupported("adapters are models of their own on this server", ([],)),
        "mirostat": Unsupported("sampling by Mirostat is not supported by this server", (0,)),
        "n_discard": Unsupported("this server does not shift the context", (0,)),
        "n_indent": Unsupported("indentation is not enforced by this server", (0,)),
        "n_keep": Unsupported("this server does not shift the context", (0,)),
        "n_probs": Unsupported("logprobs is the name of this field here", (0,)),
        "post_sampling_probs": Unsupported("log-probabilities are the model's own on this server", (False,)),
        "repeat_last_n": Unsupported("penalties apply to all tokens on this server", (-1,)),
        "repeat_penalty": Unsupported("repetition_penalty is the name of this field here", (1,)),
        "return_progress": Unsupported("the progress of a prompt is not reported by this server", (False,)),
        "samplers": Unsupported("the order of samplers is fixed on this server"),
        "top_n_sigma": Unsupported("top n sigma sampling is not supported by this server", (-1, 0)),
        "typical_p": Unsupported("locally typical sampling is not supported by this server", (1,)),
        "xtc_probability": Unsupported("sampling by XTC is not supported by this server", (0,)),
    }
)


_TRANSFER = "prompts computed on another server are not supported by this server"

VLLM: Mapping[str, Unsupported] = MappingProxyType(
    {
        "use_beam_search": Unsupported("beam search is not supported by this server", (False,)),
        "length_penalty": Unsupported("it has a meaning for beam search only", (1,)),
        "priority": Unsupported("priorities are not supported by this server", (0,)),
        "stream_interval": Unsupported("every token is sent at once", (1,)),
        "logprob_token_ids": Unsupported("log-probabilities are those of the likeliest tokens"),
        "logits_processors": Unsupported("logits processors are not supported by this server", ([],)),
        "repetition_detection": Unsupported("the detection of repetitions is not supported by this server"),
        "watermarking": Unsupported("watermarks are not supported by this server", (False,)),
        "kv_transfer_params": Unsupported(_TRANSFER),
        "ec_transfer_params": Unsupported(_TRANSFER),
        "vllm_xargs": Unsupported("arguments of extensions are not supported by this server", ({},)),
    }
)
"""Unsupported fields of vLLM's chat completion and completion requests."""

CHAT: Mapping[str, Unsupported] = MappingProxyType(
    {
        **_LLAMA_CPP,
        "modalities": Unsupported("this server generates text only", (["text"],)),
        "audio": Unsupported("audio is not supported by this server"),
        "store": Unsupported("stored completions are not supported by this server", (False,)),
        "verbosity": Unsupported("verbosity is not supported by this server", ("medium",)),
        "prediction": Unsupported("predicted outputs are not supported by this server"),
        "web_search_options": Unsupported("web search is not supported by this server"),
        "moderation": Unsupported("moderation is not supported by this server"),
        "prompt_cache_options": Unsupported("options of the prompt cache are not supported by this server"),
        "prompt_cache_retention": Unsupported("the retention of cached prompts is not configurable"),
        "chat_template": Unsupported("the model's own chat template is always used"),
        "documents": Unsupported("documents are not supported by this server: send their texts in messages", ([],)),
        "media_io_kwargs": Unsupported("this server takes texts only", ({},)),
        "mm_processor_kwargs": Unsupported("this server takes texts only", ({},)),
        **VLLM,
    }
)
"""Unsupported fields of a chat completion request."""

COMPLETIONS: Mapping[str, Unsupported] = MappingProxyType(
    {
        **_LLAMA_CPP,
        "suffix": Unsupported("a text after the completion is not supported by this server", ("",)),
        "prompt_embeds": Unsupported("embeddings as prompts are not supported by this server", ([],)),
        **VLLM,
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
