"""Safetensors files are read one tensor at a time, and damaged ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from runtime.loading.safetensors_source import DamagedSafetensors, SafetensorsSource

HEADER = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
HEADER |= {"b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}


def written(folder: Path, header: Any = HEADER, size: int = 22, *, length: int | None = None) -> Path:
    """A file of a header and a number of bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(size))
    return file


@pytest.mark.parametrize("number", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_of_all_types_are_widened(number: torch.dtype, tmp_path: Path) -> None:
    """The values are those that safetensors' own library reads, also of a scalar and of an empty tensor."""
    values = torch.randn(5, 7).to(number)
    tensors = {"a": values, "scalar": torch.tensor(2.5).to(number), "empty": torch.empty(0, 3).to(number)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    source = SafetensorsSource([tmp_path / "a.safetensors"])
    assert set(source.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.read(name).dtype == np.float32
        assert np.array_equal(source.read(name), tensor.float().numpy())


def test_tensors_of_several_files_are_one_source(tmp_path: Path) -> None:
    """Unless two files have the same tensor."""
    for name in "ab":
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert set(SafetensorsSource(files).names()) == {"a", "b"}
    save_file({"a": torch.ones(2)}, files[1])
    with pytest.raises(DamagedSafetensors, match=r"b\.safetensors and another file both have a tensor a"):
        SafetensorsSource(files)


def test_float32_is_not_copied(tmp_path: Path) -> None:
    """What is read is a view of the file."""
    save_file({"a": torch.ones(1000)}, tmp_path / "a.safetensors")
    values = SafetensorsSource([tmp_path / "a.safetensors"]).read("a")
    assert not values.flags.owndata
    assert not values.flags.writeable


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: written(folder, b"", 0, length=0), "damaged header"),
        (lambda folder: written(folder, length=10**6), "truncated or not a safetensors file"),
        (lambda folder: written(folder, length=2**63), "truncated or not a safetensors file"),
        (lambda folder: written(folder, size=21), "its header describes"),
        (lambda folder: written(folder, size=23), "its header describes"),
        (lambda folder: written(folder, b"[1]"), "damaged header"),
        (lambda folder: written(folder, b"[" * 10**5), "damaged header"),
        (lambda folder: written(folder, b'{"a": 1}'), "damaged header"),
        (lambda folder: written(folder, b"\xff\xfe"), "damaged header"),
        (lambda folder: changed(folder, shape=[2, 3]), r"shape \[2, 3\] and type F32 has 16 bytes"),
        (lambda folder: changed(folder, shape=[2**40, 2**40, 0]), "has 16 bytes"),
        (lambda folder: changed(folder, shape=[-2, -2]), "not a number"),
        (lambda folder: changed(folder, shape=[True, 4]), "not a number"),
        (lambda folder: changed(folder, data_offsets=[8, 24]), "a begins at byte"),
        (lambda folder: changed(folder, data_offsets=[16, 0]), "has -16 bytes"),
        (lambda folder: changed(folder, data_offsets=[10**15, 10**15 + 16]), "begins at byte"),
        (lambda folder: changed(folder, data_offsets=[0, 16, 32]), "damaged header"),
        (lambda folder: changed(folder, data_offsets=["0", 16]), "damaged header"),
    ],
)
def test_damaged_files_are_refused(write: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    """Truncated ones, and headers that do not describe the file's bytes; nothing is allocated for wrong counts."""
    with pytest.raises(DamagedSafetensors, match=said) as caught:
        SafetensorsSource([write(tmp_path)])
    assert "model.safetensors" in str(caught.value)


def changed(folder: Path, **fields: Any) -> Path:
    """A file whose first tensor is described otherwise."""
    return written(folder, {**HEADER, "a": {**HEADER["a"], **fields}})


def test_other_numbers_are_refused_when_they_are_needed(tmp_path: Path) -> None:
    """A buffer of another type may lie beside the weights, an 8-bit weight may not be read as something else."""
    save_file({"a": torch.ones(2), "mask": torch.ones(2, dtype=torch.bool)}, tmp_path / "a.safetensors")
    source = SafetensorsSource([tmp_path / "a.safetensors"])
    assert source.read("a").sum() == 2
    with pytest.raises(DamagedSafetensors, match="mask is stored as BOOL"):
        source.shape("mask")
    source = SafetensorsSource([written(tmp_path, {"a": {"dtype": "F8_E4M3", "shape": [22], "data_offsets": [0, 22]}})])
    with pytest.raises(DamagedSafetensors, match="a is stored as F8_E4M3"):
        source.shape("a")


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_raises_anything_else(seed: int, tmp_path: Path) -> None:
    """Single bytes of a header changed or cut."""
    content = written(tmp_path).read_bytes()
    dice = np.random.default_rng(seed)
    for _ in range(100):
        damaged = bytearray(content)
        for place in dice.integers(0, len(content), dice.integers(1, 4)):
            damaged[place] = dice.integers(0, 256)
        (tmp_path / "a.safetensors").write_bytes(damaged[: dice.integers(0, len(damaged) + 1)])
        try:
            source = SafetensorsSource([tmp_path / "a.safetensors"])
            for name in source.names():
                source.shape(name)
                source.read(name)
        except DamagedSafetensors:
            continue
