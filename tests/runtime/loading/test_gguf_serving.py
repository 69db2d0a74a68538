"""A GGUF file becomes a serving snapshot without torch and transformers, and with the facts that they would give."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ModelUnavailable
from runtime.loading.checkpoint import form_through_transformers
from runtime.loading.serving_form import serving_form
from runtime.model.catalogue import parse_model_name
from tests.support.models import ROOT, save_tiny_gguf

CHILD = """
import sys
from pathlib import Path
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
spec = parse_model_name(sys.argv[1])
snapshot = open_serving(spec, "int8", Path(sys.argv[2]), lambda stage, share: None)
print(snapshot.facts.architecture, sorted({"torch", "transformers", "gguf"} & sys.modules.keys()))
"""


@pytest.fixture
def file(tiny_llama: Path, tmp_path: Path) -> Path:
    return save_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama)


def test_nothing_heavy_is_imported(file: Path, tmp_path: Path) -> None:
    """From the file to the open snapshot."""
    run = [sys.executable, "-c", CHILD, str(file), str(tmp_path / "cache")]
    result = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "LlamaForCausalLM []"


def test_transformers_would_give_the_same(file: Path) -> None:
    """Facts, tokens and weights; the norms' epsilon is 1e-6 here, and the float32 nearest to it there."""
    spec = parse_model_name(str(file))
    facts, tokenizer, weights = serving_form(spec, file, "int8", lambda stage, share: None)
    expected = form_through_transformers(spec, file, "int8", lambda stage, share: None)
    decoder = replace(expected[0].decoder, norm_epsilon=facts.decoder.norm_epsilon)
    assert expected[0].decoder.norm_epsilon == pytest.approx(facts.decoder.norm_epsilon)
    assert facts == replace(expected[0], decoder=decoder)
    assert tokenizer.to_json() == expected[1].to_json()
    for weight, other in zip(weights, expected[2], strict=True):
        assert weight.name == other.name
        assert np.array_equal(weight.read(), other.read())


def test_a_damaged_file_is_an_unavailable_model(file: Path) -> None:
    """The message says which file and what in it, and what to do."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelUnavailable, match=r"tiny\.gguf is truncated: .* ends at byte .* check its files"):
        serving_form(parse_model_name(str(file)), file, "int8", lambda stage, share: None)
