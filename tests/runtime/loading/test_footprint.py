"""What models take, before they are loaded: truth tables, and files on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.loading.footprint import (
    Footprint,
    default_budget,
    kv_bytes,
    snapshot_footprint,
    source_footprint,
    texts_bytes,
)
from runtime.model.snapshot import Snapshot
from tests.support.models import save_tiny_gguf

MB = 1 << 20
GB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "budget"), [(256 * MB, 128 * MB), (512 * MB, 256 * MB), (GB, int(0.95 * GB) - 256 * MB), (100 * GB, None)]
)
def test_the_default_budget(limit: int, budget: int | None) -> None:
    """Most of the limit, less what the process itself needs; half of a small one."""
    assert default_budget(limit) == (int(0.95 * limit) - 256 * MB if budget is None else budget)


@pytest.mark.parametrize(
    ("budget", "own", "others", "part"),
    [
        (1000, Footprint(200), [], 400),
        (1000, Footprint(200, 300), [], 300),
        (1000, Footprint(200), [Footprint(200)], 300),
        (1000, Footprint(200), [Footprint(200), Footprint(300)], 100),
        (1000, Footprint(200), [Footprint(200, 50), Footprint(200, 50)], 200),
        (1000, Footprint(200, 500), [Footprint(200, 100)], 300),
        (1000, Footprint(200, 100), [Footprint(200, 500)], 100),
        (1000, Footprint(600), [Footprint(600)], 200),
        (1000, Footprint(600), [Footprint(600), Footprint(100, pinned=True)], 150),
        (1000, Footprint(100, pinned=True), [Footprint(600), Footprint(700)], 100),
        (1000, Footprint(600, pinned=True), [Footprint(500), Footprint(100)], 150),
        (1000, Footprint(2000), [], 16),
        (1000, Footprint(2000, 5), [], 5),
        (1000, Footprint(990), [], 16),
        (1000, Footprint(300, 0), [Footprint(200)], 0),
    ],
    ids=[
        "alone: half of what is left",
        "or less, if that is all it can use",
        "two: half each",
        "three: a third each",
        "others that use little leave more, up to half of all",
        "and so up to its half",
        "the small one has what it can use",
        "two that cannot be there together: as if alone",
        "beside a pinned one",
        "a pinned one leaves room for the largest of the others",
        "that fits at all",
        "what does not fit: the least",
        "or what it can use",
        "what hardly fits: the least",
        "a model that reserves nothing",
    ],
)
def test_the_part_for_keys_and_values(budget: int, own: Footprint, others: list[Footprint], part: int) -> None:
    """In megabytes."""

    def scaled(one: Footprint) -> Footprint:
        return Footprint(one.weights * MB, None if one.texts is None else one.texts * MB, one.pinned)

    assert kv_bytes(budget * MB, scaled(own), [scaled(other) for other in others]) == part * MB


@pytest.mark.parametrize("weights", [(200, 200, 200), (600, 300, 90), (600, 600, 100), (300, 300, 300)])
@pytest.mark.parametrize("pinned", [(), (0,), (2,)])
def test_parts_never_exceed_the_budget(weights: tuple[int, ...], pinned: tuple[int, ...]) -> None:
    """All models together where they fit, else any of them beside the pinned ones."""
    models = [Footprint(size * MB, pinned=number in pinned) for number, size in enumerate(weights)]
    needs = [model.weights + kv_bytes(1000 * MB, model, [o for o in models if o is not model]) for model in models]
    if sum(weights) + 48 <= 1000:
        assert sum(needs) <= 1000 * MB
    for number in set(range(3)) - set(pinned):
        together = [number, *pinned]
        if sum(weights[one] for one in together) + 32 <= 1000:
            assert sum(needs[one] for one in together) <= 1000 * MB


def test_a_snapshot_tells_its_size(embedded_snapshot: Snapshot, tmp_path: Path) -> None:
    """To the byte, with the most that its texts can take; where there is none, or a damaged one, there is no answer."""
    from runtime.loading.loader import fetch, serving_folder
    from runtime.model.catalogue import CATALOGUE
    from runtime.settings import Settings

    spec = CATALOGUE["smollm2-135m-instruct"]
    path = fetch(spec, lambda stage, share: None)
    folder = serving_folder(spec, path, "int8", Settings.load().cache_dir)
    config = embedded_snapshot.facts.decoder
    assert snapshot_footprint(folder, 3) == Footprint(embedded_snapshot.nbytes, texts_bytes(config, 3))
    assert texts_bytes(config, 3) == 3 * 8192 * 2 * 4 * 30 * 3 * 64
    assert snapshot_footprint(tmp_path, 3) is None
    (tmp_path / "model.json").write_text("{")
    assert snapshot_footprint(tmp_path, 3) is None


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_a_folder_is_estimated_by_its_shapes(tiny_llama: Path, dtype: str, size: int) -> None:
    """Parameters times the number type that it will be served in; nothing is read but headers."""
    found = source_footprint(tiny_llama, dtype, "float32", 2)
    parameters = 600 * 64 + 64 + 2 * (2 * 64 + 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert parameters * size <= found.weights <= 1.1 * parameters * size
    assert found.texts == 2 * 256 * 2 * 4 * 2 * 2 * 16


def test_all_experts_count_as_weights(tmp_path: Path) -> None:
    """Also those that a token does not choose; keys and values are those of the attention alone."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_local_experts": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = MixtralForCausalLM(MixtralConfig(**shape, **heads))
    model.save_pretrained(tmp_path)
    found = source_footprint(tmp_path, "bfloat16", "float32", 2)
    assert found == Footprint(
        2 * sum(parameter.numel() for parameter in model.parameters()), 2 * 256 * 2 * 4 * 2 * 2 * 16
    )


def test_a_model_for_the_reference_engine_reserves_no_keys_and_values(tiny_llama: Path, tmp_path: Path) -> None:
    """And its weights are of that engine's number type; pickled ones are told by the files' size."""
    (tmp_path / "config.json").write_text('{"model_type": "bloom", "dtype": "float16"}')
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))
    assert source_footprint(tmp_path, "int8", "float32", 2) == Footprint(2000, 0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("m.Q4_1.gguf", 1000 * 8 / 4.5), ("m-q8_0.gguf", 1000 * 8 / 8.5), ("m.F16.gguf", 500), ("m-f32.gguf", 250)],
)
def test_a_gguf_file_is_estimated_by_its_name(tmp_path: Path, name: str, parameters: float) -> None:
    """Which tells the bits of a parameter."""
    (tmp_path / name).write_bytes(bytes(1000))
    assert source_footprint(tmp_path / name, "float32", "float32", 1) == Footprint(int(4 * parameters))


def test_a_split_gguf_counts_whole(tmp_path: Path) -> None:
    """Every part adds its size."""
    for number in (1, 2, 3):
        (tmp_path / f"m.Q8_0-0000{number}-of-00003.gguf").write_bytes(bytes(1000))
    one = tmp_path / "one.Q8_0.gguf"
    one.write_bytes(bytes(3000))
    first = tmp_path / "m.Q8_0-00001-of-00003.gguf"
    assert source_footprint(first, "int8", "float32", 4) == source_footprint(one, "int8", "float32", 4)


def test_a_gguf_file_of_another_name_is_a_guess(tiny_llama: Path, tmp_path: Path) -> None:
    """Within a factor of four."""
    file = save_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama)
    guess, known = (source_footprint(path, "float32", "float32", 1).weights for path in (file, tiny_llama))
    assert known / 4 < guess < 5 * known


def test_damaged_files_are_for_the_load_to_tell(tmp_path: Path) -> None:
    """An estimate is made all the same."""
    (tmp_path / "config.json").write_text("[1")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    assert source_footprint(tmp_path, "float32", "float32", 1).weights > 0
