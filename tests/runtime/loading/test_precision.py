"""Fingerprints: two models, or two numerics, never share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.engine.native import build
from runtime.errors import ModelUnavailable
from runtime.loading.load_engine import load_engine
from runtime.loading.precision import fast_fingerprint, reference_fingerprint, serving_dtype, weight_kind
from runtime.model.catalogue import parse_model_name
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings
from tests.support.engines import without_kernels


def printed(model: Path, cache: Path, **settings: Any) -> str:
    chosen = Settings.load(cache_dir=cache, **settings)
    engine = load_engine(parse_model_name(str(model)), chosen, lambda stage, share: None)
    engine.close()
    return engine.info.fingerprint


def test_models_and_numerics_have_their_own(tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """By model, number type and engine; and the same again for the same."""
    variants: list[tuple[Path, dict[str, str]]] = [
        (tiny_gpt2, {"dtype": "float32"}),
        (tiny_gpt2, {"dtype": "bfloat16"}),
        (tiny_gpt2, {"dtype": "float32", "engine": "reference"}),
        (tiny_llama, {"dtype": "float32"}),
        (tiny_llama, {"dtype": "float32", "engine": "reference"}),
    ]
    prints = [printed(model, tmp_path, **settings) for model, settings in variants]
    assert len(set(prints)) == len(prints)
    assert printed(tiny_gpt2, tmp_path, dtype="float32") == prints[0]
    assert printed(tiny_gpt2, tmp_path / "other", dtype="float32") == prints[0]


def test_what_computes_counts(embedded_snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instruction set, the kernels' sources, or torch with its threads and its setting."""
    settings = Settings.load()
    seen = {
        fast_fingerprint(embedded_snapshot, "cpu", "int8", settings, level=level) for level in ("avx2", "another", None)
    }
    seen.add(fast_fingerprint(embedded_snapshot, "cpu", "float32", settings, level="avx2"))
    small = Settings.load(kv_dtype="int8")
    seen.add(fast_fingerprint(embedded_snapshot, "cpu", "int8", small, level="avx2"))
    plain = Settings.load(deterministic=False)
    seen.add(fast_fingerprint(embedded_snapshot, "cpu", "int8", plain, level=None))
    monkeypatch.setattr(build, "digest", lambda: "others")
    seen.add(fast_fingerprint(embedded_snapshot, "cpu", "int8", settings, level="avx2"))
    assert len(seen) == 7


def test_torch_refuses_a_type_of_keys_and_values(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without compiled kernels, and in the reference engine, KV_DTYPE names itself in the error."""
    with pytest.raises(ModelUnavailable, match="KV_DTYPE=int8 needs the compiled kernels"):
        printed(tiny_gpt2, tmp_path, engine="reference", kv_dtype="int8")
    without_kernels(monkeypatch)
    with pytest.raises(ModelUnavailable, match="KV_DTYPE=float16 needs the compiled kernels"):
        printed(tiny_gpt2, tmp_path, kv_dtype="float16")


def test_the_reference_engine_goes_by_its_source() -> None:
    """Whose identity changes with the files."""
    settings = Settings.load()
    assert reference_fingerprint("a", "cpu", "float32", settings) != reference_fingerprint(
        "b", "cpu", "float32", settings
    )


def test_number_types() -> None:
    """A type that is asked for is taken; float16, which bfloat16 could not hold, is stored whole."""
    assert serving_dtype(Settings.load(dtype="bfloat16"), "cpu") == "bfloat16"
    assert serving_dtype(Settings.load(), "cpu") in ("int8", "bfloat16", "float32")
    assert weight_kind("float16") == "float32"
