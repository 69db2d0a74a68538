"""``ollama_tags``, ``ollama_ps``, ``ollama_show``, ``ollama_version``: what Ollama's API says of the models."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from handlers.context import Context
from handlers.generation.ollama_output import utc
from handlers.operations.models import served_names, tasks
from handlers.protocols import Engine
from handlers.schemas.base import Empty
from handlers.schemas.ollama import OllamaShowRequest
from handlers.schemas.parsing import parse
from runtime.status import ModelStatus
from runtime.types import ModelInfo

VERSION = "0.13.0"
"""The version of Ollama whose API this server has: clients refuse servers that are older than what they need."""

_SCALES = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


async def tags(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """List the served models, the default first, and then their aliases, see ``OllamaModels``."""
    parse(Empty, payload)
    return {
        "models": [
            _named(name, status) | {"modified_at": utc(status.created), "size": status.memory_bytes}
            for name, status in served_names(ctx)
        ]
    }


async def running(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """List the loaded models, see ``OllamaRunningModels``."""
    parse(Empty, payload)
    return {
        "models": [
            _named(status.id, status)
            | {
                "size": status.memory_bytes,
                "expires_at": None,
                "size_vram": 0 if status.info.device == "cpu" else status.memory_bytes,
                "context_length": status.info.context_length,
            }
            for status in ctx.models.status()
            if status.info is not None and status.state in ("ready", "draining")
        ]
    }


async def show(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a model's metadata, see ``OllamaShowRequest`` and ``OllamaShowResponse``. Loads the model if necessary.

    Raises:
        ServiceError: the model is unknown, still loading, or unavailable.
    """
    request = parse(OllamaShowRequest, payload)
    async with ctx.models.lease(request.model or request.name) as engine:
        info = engine.info
        status = ctx.models.find(info.name)
        return {
            "modelfile": "",
            "parameters": "\n".join(f"{name} {value}" for name, value in info.sampling_defaults),
            "template": engine.chat_template or "",
            "details": _details(info, status.source),
            "model_info": _model_info(info),
            "capabilities": _capabilities(engine),
            "modified_at": utc(status.created),
        }


async def version(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the version of Ollama whose API this server has, see ``OllamaVersion``."""
    parse(Empty, payload)
    return {"version": VERSION}


def _named(name: str, status: ModelStatus) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "digest": _digest(status),
        "details": _details(status.info, status.source),
    }


def _digest(status: ModelStatus) -> str:
    """Return what identifies a model: clients show the first twelve characters."""
    known = "" if status.info is None else status.info.fingerprint
    return known or hashlib.sha256(status.id.encode()).hexdigest()


def _details(info: ModelInfo | None, source: str) -> dict[str, Any]:
    family = "" if info is None else _family(info.architecture)
    return {
        "parent_model": "",
        "format": source,
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "" if info is None else _short(info.parameters),
        "quantization_level": "" if info is None else (*info.weight_types, info.dtype)[0].upper(),
    }


def _family(architecture: str) -> str:
    """Return the family of an architecture: ``llama`` of ``LlamaForCausalLM``."""
    return re.sub(r"(For[A-Z]|LMHead|Model).*$", "", architecture).lower()


def _short(number: int) -> str:
    for scale, name in _SCALES:
        if number >= scale:
            return f"{number / scale:.2f}{name}"
    return str(number)


def _model_info(info: ModelInfo) -> dict[str, Any]:
    family = _family(info.architecture)
    width = {f"{family}.embedding_length": info.encoder.width} if info.encoder and info.encoder.width else {}
    return {
        "general.architecture": family,
        "general.parameter_count": info.parameters,
        f"{family}.context_length": info.context_length,
        f"{family}.vocab_size": info.vocabulary_size,
    } | width


def _capabilities(engine: Engine) -> list[str]:
    info = engine.info
    can = {
        "completion": info.generates,
        "tools": info.generates and info.chat_template,
        "thinking": info.generates and engine.answer_format.reasoning != "none",
        "embedding": "embed" in tasks(info),
    }
    return [name for name, able in can.items() if able]
