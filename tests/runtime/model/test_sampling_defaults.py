"""runtime.model.sampling_defaults: a model's own sampling parameters."""

from __future__ import annotations

from runtime.model.sampling_defaults import gguf_generation_config, sampling_defaults


def test_a_generation_config() -> None:
    """Values that a request could have are kept, others and everything else are left out."""
    found = sampling_defaults(
        {"temperature": 0.6, "top_p": 1.5, "top_k": 20, "min_p": None, "repetition_penalty": 0, "do_sample": True}
    )
    assert found == (("temperature", 0.6), ("top_k", 20))


def test_a_gguf_file() -> None:
    """Its keys have transformers' names then; its numbers have 32 bits."""
    metadata = {"general.sampling.temp": 0.6000000238418579, "general.sampling.penalty_repeat": 1, "general.name": "x"}
    assert gguf_generation_config(metadata) == {"temperature": 0.6, "repetition_penalty": 1}
