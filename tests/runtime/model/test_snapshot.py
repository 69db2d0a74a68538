"""Snapshots on disk and in memory: whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from runtime.loading import snapshot_writer
from runtime.loading.snapshot_writer import Weight, hold, save
from runtime.model.config import DecoderConfig, LayerConfig, Rotation
from runtime.model.packing import Packed, WeightKind, pack, unpack
from runtime.model.snapshot import Facts, Snapshot
from runtime.model.snapshot_folder import DamagedSnapshot, digest_of, folder_of, open_snapshot
from runtime.model.tensors import matrices
from runtime.model.tokenizer import Tokenizer
from tests.support.random_decoder import random_decoder

KINDS: list[WeightKind] = ["float32", "bfloat16", "int8"]
DECODER = DecoderConfig(
    layers=(LayerConfig(),),
    hidden=7,
    intermediate=33,
    heads=1,
    kv_heads=1,
    head_dim=7,
    vocabulary=5000,
    context_length=3,
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu",
    gated=False,
    tied=True,
    attention_scale=7**-0.5,
    learned_positions=True,
)
DICE = np.random.default_rng(0)
MATRICES = {
    "embed": (5000, 7),  # more rows than are packed at a time
    "0.qkv": (48, 7),
    "0.attention_out": (7, 16),
    "0.up": (33, 7),
    "0.down": (7, 33),
}
VECTORS: dict[str, tuple[int, ...]] = {"positions": (3, 7), "0.qkv.bias": (48,)}
VECTORS |= {
    f"{norm}.{part}": (7,) for norm in ("0.attention_norm", "0.mlp_norm", "final_norm") for part in ("weight", "bias")
}
VALUES = {name: DICE.normal(size=shape).astype(np.float32) for name, shape in (MATRICES | VECTORS).items()}


def facts(kind: WeightKind = "int8") -> Facts:
    return Facts("a.gguf", "abc", "LlamaForCausalLM", 7, kind, DECODER, (1, 2))


def tokenizer() -> Tokenizer:
    return Tokenizer(Backend(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")), "{{ 1 }}", {"eos_token": "</s>"})


def weights() -> list[Weight]:
    return [Weight(name, array.shape, name in MATRICES, array.copy) for name, array in VALUES.items()]


def made(cache: Path, kind: WeightKind = "int8", content: list[Weight] | None = None) -> Path:
    folder = folder_of(cache, "a", "identity", kind)
    save(folder, facts(kind), tokenizer(), weights() if content is None else content)
    return folder


def same(packed: Packed, expected: Packed) -> bool:
    return np.array_equal(packed.data, expected.data) and (
        packed.scales is expected.scales is None or np.array_equal(packed.scales, expected.scales)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_everything_comes_back(tmp_path: Path, kind: WeightKind, where: str) -> None:
    """Weights packed as one piece would be, vectors in shape, facts and tokenizer; all arrays aligned and read-only."""
    found = open_snapshot(made(tmp_path, kind)) if where == "disk" else hold(facts(kind), tokenizer(), weights())
    assert found.facts == facts(kind)
    assert (found.tokenizer.chat_template, found.tokenizer.eos_token_id) == ("{{ 1 }}", 1)
    for name, array in VALUES.items():
        assert name in found
        assert found.shape(name) == array.shape
        arrays: list[Any]
        if name in MATRICES:
            packed = found.matrix(name)
            assert same(packed, pack(array, kind))
            arrays = [packed.data] + ([packed.scales] if packed.scales is not None else [])
            assert np.abs(unpack(packed, *array.shape, kind) - array).max() < 0.05
        else:
            arrays = [found.vector(name)]
            assert np.array_equal(arrays[0], array)
        for each in arrays:
            assert each.ctypes.data % 64 == 0
            assert not each.flags.writeable
    assert "other" not in found
    assert found.nbytes >= sum(array.size for array in VALUES.values())


def test_a_tensor_is_asked_for_as_what_it_is(tmp_path: Path) -> None:
    """No panels are handed out as a vector, nor the other way round."""
    found = open_snapshot(made(tmp_path))
    with pytest.raises(KeyError):
        found.matrix("positions")
    with pytest.raises(KeyError):
        found.vector("embed")


def test_arrays_outlive_the_snapshot(tmp_path: Path) -> None:
    """A view keeps the mapping, even when the folder is gone."""
    folder = made(tmp_path)
    view = open_snapshot(folder).vector("positions")
    shutil.rmtree(folder)
    assert np.array_equal(view, VALUES["positions"])


def _flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def _edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "model.json").read_text())["content"] | changes
    (folder / "model.json").write_text(json.dumps({"sha256": digest_of(content), "content": content}))


DAMAGE = {
    "one bit of the weights": lambda folder: _flip(folder / "weights.bin", 30_000),
    "the last byte of the weights": lambda folder: _flip(folder / "weights.bin", -1),
    "truncated weights": lambda folder: os.truncate(folder / "weights.bin", 1000),
    "empty weights": lambda folder: os.truncate(folder / "weights.bin", 0),
    "longer weights": lambda folder: os.truncate(folder / "weights.bin", 10_000_000),
    "no weights": lambda folder: (folder / "weights.bin").unlink(),
    "a changed tokenizer": lambda folder: _flip(folder / "tokenizer.json", 20),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no model": lambda folder: (folder / "model.json").unlink(),
    "a changed model": lambda folder: _flip(folder / "model.json", 200),
    "half a model": lambda folder: os.truncate(folder / "model.json", 500),
    "a model of another shape": lambda folder: (folder / "model.json").write_text("[]"),
    "another format": lambda folder: _edit(folder, format=0),
    "other facts": lambda folder: _edit(folder, facts={}),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_noticed(tmp_path: Path, harm: Any) -> None:
    """Whatever was changed, cut off or removed, nothing of it is served."""
    folder = made(tmp_path)
    harm(folder)
    with pytest.raises(DamagedSnapshot):
        open_snapshot(folder)


OTHERS: dict[str, Callable[[list[Weight]], list[Weight]]] = {
    "a matrix less": lambda w: [each for each in w if each.name != "0.up"],
    "a vector less": lambda w: [each for each in w if each.name != "final_norm.weight"],
    "a tensor more": lambda w: [*w, replace(w[-1], name="1.attention_norm.weight")],
    "fewer rows": lambda w: [replace(each, shape=(20, 7)) if each.name == "0.qkv" else each for each in w],
    "fewer columns": lambda w: [replace(each, shape=(7, 32)) if each.name == "0.down" else each for each in w],
    "a shorter vector": lambda w: [replace(each, shape=(2, 7)) if each.name == "positions" else each for each in w],
    "a matrix as a vector": lambda w: [replace(each, matrix=False) if each.name == "0.up" else each for each in w],
    "a vector as a matrix": lambda w: [replace(each, matrix=True) if each.name == "positions" else each for each in w],
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=list(OTHERS))
def test_tensors_of_another_model_are_damage(tmp_path: Path, change: Callable[[list[Weight]], list[Weight]]) -> None:
    """Whole by its checksums, and yet nothing that its decoder could run."""

    def cut(weight: Weight) -> Weight:
        whole = weight.read()
        return replace(weight, read=lambda: whole[tuple(slice(size) for size in weight.shape)])

    folder = made(tmp_path, content=[cut(weight) for weight in change(weights())])
    with pytest.raises(DamagedSnapshot, match=r"is missing or of no use|is not of the model's shape"):
        open_snapshot(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": (LayerConfig(rotation=0),)}, "refers to rotation 0 of 0"),
        ({"rotations": (Rotation((1.0,) * 4),)}, "4 rotary frequencies for heads of width 7"),
        ({"rotations": (Rotation(()),)}, "0 rotary frequencies"),
        ({"alibi_slopes": (1.0, 0.5)}, "2 ALiBi slopes for 1 heads"),
    ],
)
def test_constants_that_do_not_fit_are_damage(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """Kernels use them as indexes and counts as they are."""
    folder = folder_of(tmp_path, "a", "identity", "int8")
    save(folder, replace(facts(), decoder=replace(DECODER, **change)), tokenizer(), weights())
    with pytest.raises(DamagedSnapshot, match=said):
        open_snapshot(folder)


@pytest.mark.parametrize("change", [{"offset": -64}, {"offset": 10**9}, {"offset": 2}, {"size": 1}, {"scales": None}])
def test_places_outside_the_file_are_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    """Kernels read addresses as they are."""
    folder = made(tmp_path)
    tensors = json.loads((folder / "model.json").read_text())["content"]["tensors"]
    _edit(folder, tensors=tensors | {"0.up": tensors["0.up"] | change})
    with pytest.raises(DamagedSnapshot, match=r"0\.up"):
        open_snapshot(folder)


def test_one_that_was_never_made_is_told_apart(tmp_path: Path) -> None:
    """Missing is not damaged."""
    with pytest.raises(FileNotFoundError):
        open_snapshot(tmp_path / "none")


def test_its_folder_is_named_by_all_it_depends_on(tmp_path: Path) -> None:
    """Another source or kind has another folder."""
    folders = {folder_of(tmp_path, "a", identity, kind) for identity in ("x", "y") for kind in KINDS}
    assert len(folders) == 6
    assert {folder.parent for folder in folders} == {tmp_path / "serving"}


@pytest.mark.parametrize("failing", ["rename", "pack"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Wherever the writing fails, no half snapshot stays."""

    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot_writer.os if failing == "rename" else snapshot_writer, failing, full)
    with pytest.raises(OSError, match="No space"):
        made(tmp_path)
    assert list((tmp_path / "serving").iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    """The second finds a whole snapshot in its place, leaves it and cleans up."""
    folder = made(tmp_path)
    before = (folder / "model.json").stat().st_ino
    made(tmp_path)
    assert (folder / "model.json").stat().st_ino == before
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    """A half snapshot that has lain there for hours goes; one that another process may be writing stays."""
    folder = folder_of(tmp_path, "a", "identity", "int8")
    old, new = folder.with_name(f".{folder.name}-old"), folder.with_name(f".{folder.name}-new")
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (1, 1))
    made(tmp_path)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, new.name}


def test_progress_ends_at_one(tmp_path: Path) -> None:
    """It rises to the whole."""
    shares: list[float] = []
    save(tmp_path / "s" / "x", facts(), tokenizer(), weights(), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_in_memory_it_is_the_same_object() -> None:
    """Callers need not know where it lives."""
    assert isinstance(hold(facts(), tokenizer(), weights()), Snapshot)


def test_a_step_reads_the_chosen_experts_and_no_whole_embedding() -> None:
    """Two of eight experts, and of an embedding that is not the head a row, which is not counted."""
    config, tensors = random_decoder("mixtral")
    content = [
        Weight(name, tuple(values.shape), name in matrices(config), values.numpy) for name, values in tensors.items()
    ]
    found = hold(replace(facts(), decoder=config), tokenizer(), content)

    def size(*names: str) -> int:
        packed = [found.matrix(name) for name in names]
        return sum(one.data.nbytes + (0 if one.scales is None else one.scales.nbytes) for one in packed)

    experts = size(*(f"{i}.{part}" for i in range(2) for part in ("experts_gate_up", "experts_down")))
    assert found.step_bytes == found.nbytes - size("embed") - experts * 6 // 8
