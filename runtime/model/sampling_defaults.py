"""Reads a model's own sampling parameters, in its ``generation_config.json`` or in a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The greatest values that a request may have; the least is 0.
_MOST: Mapping[str, float] = {
    "temperature": 2,
    "top_p": 1,
    "top_k": 1_000_000,
    "min_p": 1,
    "repetition_penalty": 10,
}
_GGUF_NAMES: Mapping[str, str] = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def sampling_defaults(configured: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the sampling parameters that a generation config sets, as (name, value).

    Args:
        configured: the generation config, with transformers' names. Values out of range are left out.
    """
    found = []
    for name, most in _MOST.items():
        value = configured.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:
            found.append((name, value))
    return tuple(pair for pair in found if pair != ("repetition_penalty", 0))


def gguf_generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GGUF file's ``general.sampling`` keys with transformers' names; files made before 2026 have none."""
    keys = {name: f"general.sampling.{gguf}" for name, gguf in _GGUF_NAMES.items()}
    found = {name: metadata[key] for name, key in keys.items() if key in metadata}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}  # float32
