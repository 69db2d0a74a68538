"""Checkpoints of AWQ and GPTQ: what their codes stand for is read, and served without quantizing again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runtime.loading.quantized_source import QuantizedSource
from runtime.loading.safetensors_source import DamagedSafetensors, SafetensorsSource
from runtime.loading.serving_form import serving_form
from runtime.model.catalogue import parse_model_name
from runtime.model.packing import Packed, SnapshotKind, unpack
from runtime.model.quantization import CheckpointQuantization, read_quantization
from tests.support.engines import snapshot_of
from tests.support.models import save_tiny_llama
from tests.support.quantized_models import save_quantized

Q_PROJ = "model.layers.0.self_attn.q_proj."
CASES: dict[str, dict[str, Any]] = {
    "awq": {"method": "awq", "group": 32},
    "awq, groups of 64": {"method": "awq", "group": 64},
    "gptq": {"method": "gptq", "group": 128},
    "gptq, symmetric": {"method": "gptq", "group": 64, "symmetric": True},
    "gptq, whole rows": {"method": "gptq", "group": -1},
    "gptq, second format": {"method": "gptq_v2", "group": 32},
    "gptq, act-order": {"method": "gptq", "group": 32, "act_order": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "plain", hidden_size=128, intermediate_size=256)


def source_of(folder: Path) -> QuantizedSource:
    scheme = read_quantization(json.loads((folder / "config.json").read_bytes()))
    assert scheme is not None
    return QuantizedSource(SafetensorsSource([folder / "model.safetensors"]), scheme)


def kinds(folder: Path, kind: SnapshotKind = "int4") -> dict[str, str]:
    snapshot = snapshot_of(folder, kind)
    return {name: snapshot.matrix_kind(name) for name in snapshot if snapshot.is_matrix(name)}


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_codes(case: str, plain: Path, tmp_path: Path) -> None:
    """(code - zero) x scale, whole or some rows; other tensors are read as they are."""
    values = save_quantized(plain, tmp_path / "m", **CASES[case])
    source = source_of(tmp_path / "m")
    assert set(source.names()) == set(values)
    for name, expected in values.items():
        assert source.shape(name) == expected.shape
        assert np.array_equal(source.read(name), expected)
    assert np.array_equal(source.read_rows(f"{Q_PROJ}weight", 5, 40), values[f"{Q_PROJ}weight"][5:40])


@pytest.mark.parametrize("case", [case for case in CASES if "act-order" not in case])
def test_codes_are_kept(case: str, plain: Path, tmp_path: Path) -> None:
    """Packed weights are the checkpoint's: exactly if symmetric, else but for minima in half precision."""
    values = save_quantized(plain, tmp_path / "m", **CASES[case])
    source = source_of(tmp_path / "m")
    name, places = f"{Q_PROJ}weight", np.array([7, 0, 1, *range(20, 61)])
    kind = source.kind(name)
    assert kind == ("q4_0" if "symmetric" in case else "q4_1")
    packed = Packed(source.pack_rows(name, places), None)
    expected = np.where(places[:, None] > 0, values[name][places - 1], 0)
    found = unpack(packed, len(places), expected.shape[1], kind)
    assert np.abs(found - expected).max() <= (0 if kind == "q4_0" else np.abs(expected).max() / 2048)
    served = kinds(tmp_path / "m")
    assert {part: served[f"1.{part}"] for part in ("qkv.v", "attention_out", "gate_up.up", "down")} == dict.fromkeys(
        ("qkv.v", "attention_out", "gate_up.up", "down"), kind
    )
    assert served["embed"] == "int8"


def test_columns_in_another_order_have_8_bits(plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Groups whose columns are not side by side have no format of 4 bits; the log says so once."""
    save_quantized(plain, tmp_path / "m", **CASES["gptq, act-order"])
    assert set(kinds(tmp_path / "m").values()) == {"int8"}
    assert [record.message for record in caplog.records if "served in int8" in record.message] == [
        "m: 0.qkv.q is served in int8, as its groups do not fit"
    ]


def test_other_types_are_converted_from_the_values(plain: Path, tmp_path: Path) -> None:
    """Any type serves the checkpoint: float32 has the values themselves."""
    values = save_quantized(plain, tmp_path / "m", **CASES["awq"])
    spec = parse_model_name(str(tmp_path / "m"))
    weights = {weight.name: weight for weight in serving_form(spec, tmp_path / "m", "float32", lambda *_: None)[2]}
    assert np.array_equal(weights["0.down"].read(), values["model.layers.0.mlp.down_proj.weight"])
    assert set(kinds(tmp_path / "m", "int8").values()) == {"int8"}


def test_what_does_not_fit_is_told(plain: Path, tmp_path: Path) -> None:
    """The message names the tensor, and what it should be."""
    save_quantized(plain, tmp_path / "m", "gptq", 64)
    file = tmp_path / "m" / "model.safetensors"
    state = load_file(file)

    def refused(said: str, group: int = 64, **changes: Any) -> None:
        changed = {**state, **{Q_PROJ + part: array for part, array in changes.items()}}
        save_file({name: array for name, array in changed.items() if array is not None}, file)
        with pytest.raises(DamagedSafetensors, match=said):
            QuantizedSource(SafetensorsSource([file]), CheckpointQuantization("gptq", group, 1))

    refused("qweight has no .*q_proj.scales", scales=None)
    refused(r"scales is \[2, 64\] where .* needs \[2, 128\]", scales=state[f"{Q_PROJ}scales"][:, :64].copy())
    refused(r"stored as F32 .*, not as int32 in 2", qzeros=np.zeros((2, 16), np.float32))
    refused("names a group that is not one of 2", g_idx=np.full(128, 2, np.int32))
    for name in [name for name in state if name.endswith(("qzeros", "scales"))]:
        state[name] = state[name][:1].copy()
    refused("columns, not whole groups of 160", 160)
