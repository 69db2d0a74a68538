"""The tensors of mixtures of experts: both arrangements of checkpoints, and which are kept, converted and reported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.errors import ModelUnavailable
from runtime.loading.convert import convert, count_parameters, with_actual_head
from runtime.loading.matrix_types import FourBits
from runtime.loading.safetensors_source import SafetensorsSource
from runtime.loading.snapshot_writer import Weight
from runtime.loading.tensor_source import StateDictSource, TensorSource
from runtime.model.config import DecoderConfig
from runtime.model.families import read_config
from runtime.model.packing import Packed, unpack
from runtime.model.tensors import active_parameters, stored_matrices
from tests.runtime.loading.test_quantized_source import source_of
from tests.support.expert_models import EXPERT_CASES
from tests.support.family_models import random_model
from tests.support.numpy_decoder import logits
from tests.support.quantized_models import save_quantized

Array = NDArray[np.float32]
State = Mapping[str, Any]

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_experts": 8}
STACK = "model.layers.1.mlp.experts.gate_up_proj"
APART = "model.layers.1.mlp.experts.{}.up_proj.weight"


@functools.cache
def model_of(case: str, **changes: Any) -> Any:
    family, options = EXPERT_CASES[case]
    return random_model(family, {**options, **changes})


def described(model: Any, source: TensorSource) -> tuple[DecoderConfig, dict[str, Weight]]:
    """A model's description and its converted tensors."""
    decoder, layout = read_config(model.config.to_dict())
    decoder = with_actual_head(decoder, layout, source)
    return decoder, {weight.name: weight for weight in convert(decoder, layout, source)}


def saved(model: Any, folder: Path) -> SafetensorsSource:
    model.save_pretrained(folder)
    return SafetensorsSource(sorted(folder.glob("*.safetensors")))


def apart(state: State) -> dict[str, Any]:
    """A state with a tensor for each expert and projection, as checkpoints of Qwen's have them."""
    found = {}
    for name, tensor in state.items():
        module, _, projection = name.rpartition(".")
        for expert, matrix in enumerate(tensor if module.endswith("experts") else ()):
            halves = {"gate_proj": matrix.chunk(2)[0], "up_proj": matrix.chunk(2)[1]}
            for part, values in (halves if projection == "gate_up_proj" else {projection: matrix}).items():
                found[f"{module}.{expert}.{part}.weight"] = values
        if not module.endswith("experts"):
            found[name] = tensor
    return found


@pytest.mark.parametrize("case", [case for case in EXPERT_CASES if " " not in case])
def test_both_arrangements_have_the_same_weights(case: str, tmp_path: Path) -> None:
    """That of the family's files, and that of transformers' models in memory, in which its adapters are merged."""
    model = model_of(case)
    config, stored = described(model, saved(model, tmp_path))
    again, held = described(model, StateDictSource(model.state_dict()))
    assert config == again
    assert list(stored) == list(held)
    assert all(np.array_equal(stored[name].read(), held[name].read()) for name in stored)


def test_rows_are_read_a_few_at_a_time() -> None:
    """No stack of experts is read at once, and pieces of any panels are those of the whole."""
    most = 0

    class Watched(StateDictSource):
        def read(self, name: str) -> Array:
            assert "experts" not in name
            return super().read(name)

        def read_rows(self, name: str, start: int, stop: int) -> Array:
            nonlocal most
            most = max(most, (stop - start) if "experts" in name else 0)
            return super().read_rows(name, start, stop)

    for state in (model_of("qwen3_moe").state_dict(), apart(model_of("qwen3_moe").state_dict())):
        _, weights = described(model_of("qwen3_moe"), Watched(state))
        for name in ("1.experts_gate_up", "1.experts_down"):
            weight = weights[name]
            whole, rows, most = weight.read(), weight.shape[0], 0
            assert weight.read_rows is not None
            pieces = [weight.read_rows(start, min(start + 48, rows)) for start in range(0, rows, 48)]
            assert np.array_equal(np.concatenate(pieces), whole)
            assert 0 < most <= 48


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: without(state, APART.format(3)), f"({APART.format(3)} missing)"),
        (lambda state: {**state, APART.format(6): state[APART.format(5)].clone()}, f"no place for {APART.format(6)}"),
        (
            lambda state: {**state, APART.format(2): state[APART.format(2)][1:]},
            f"{APART.format(2)} is [19, 48] where its configuration needs [20, 48]",
        ),
        (lambda state: without(state, "model.layers.0.mlp.gate.weight"), "(model.layers.0.mlp.gate.weight missing)"),
        (
            lambda state: {**state, "model.layers.1.mlp.gate.weight": torch.zeros(5, 48)},
            "model.layers.1.mlp.gate.weight is [5, 48] where its configuration needs [6, 48]",
        ),
        (lambda state: {**state, STACK: torch.zeros(6, 40, 48)}, "experts.down_proj missing"),
    ],
)
def test_experts_that_do_not_fit_are_named(change: Callable[[State], State], said: str) -> None:
    """A missing one, one too many, one of another shape, a router for another number, and both arrangements at once."""
    model = model_of("qwen3_moe")
    with pytest.raises(ModelUnavailable) as caught:
        described(model, StateDictSource(change(apart(model.state_dict()))))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: without(state, STACK), f"({STACK} missing)"),
        (
            lambda state: {**state, STACK: state[STACK][1:]},
            f"{STACK} is [5, 40, 48] where its configuration needs [6, ",
        ),
        (lambda state: {**state, APART.format(0): state[STACK][0, :20].clone()}, f"no place for {APART.format(0)}"),
    ],
)
def test_stacks_that_do_not_fit_are_named(change: Callable[[State], State], said: str) -> None:
    """A missing stack, one of too few experts, and an expert beside it."""
    model = model_of("qwen3_moe")
    with pytest.raises(ModelUnavailable) as caught:
        described(model, StateDictSource(change(dict(model.state_dict()))))
    assert said in str(caught.value)


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize("arrange", [dict, apart])
@pytest.mark.parametrize("in_parts", [False, True])
def test_equalizing_changes_nothing_but_the_scales_of_experts(
    arrange: Callable[[State], State], in_parts: bool
) -> None:
    """Each expert's rows and columns come nearer to each other, by powers of two, and the results stay the same."""
    model = model_of("qwen2_moe")
    state = dict(model.state_dict())
    uneven = torch.logspace(-2, 2, 20)
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            state[name] = torch.cat([tensor[:, :20], tensor[:, 20:] * uneven[:, None]], 1)
        elif name.endswith("experts.down_proj"):
            state[name] = tensor / uneven
    decoder, layout = read_config(model.config.to_dict())
    source = StateDictSource(arrange(state))

    def converted(equalize: bool) -> dict[str, Array]:
        types = FourBits(source, "m") if in_parts else None
        weights = {w.name: w.read() for w in convert(decoder, layout, source, equalize=equalize, types=types)}
        return joined(decoder, weights) if in_parts else weights

    def spread(tensors: Mapping[str, Array]) -> float:
        up = tensors["1.experts_gate_up"].reshape(6, -1, 2, 16, 48)[:, :, 1].reshape(6, 32, 48)[:, :20]
        down = tensors["1.experts_down"].reshape(6, 48, 20)
        ratios = np.log2(np.linalg.norm(up, axis=2) / np.linalg.norm(down, axis=1))
        return float((ratios.max(1) - ratios.min(1)).max())

    plain, equalized = converted(equalize=False), converted(equalize=True)
    assert spread(plain) > 20
    assert spread(equalized) < 2.01
    ids = list(range(40))
    assert np.array_equal(logits(decoder, equalized, ids), logits(decoder, plain, ids))


def joined(decoder: DecoderConfig, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors without parts, from those of a snapshot whose matrices have types of their own."""
    found = {}
    for name, values in weights.items():
        whole, _, part = name.rpartition(".")
        if whole.endswith("gate_up") and part == "gate":
            halves = [values.reshape(-1, 16, values.shape[1]), weights[f"{whole}.up"].reshape(-1, 16, values.shape[1])]
            found[whole] = np.stack(halves, 1).reshape(-1, values.shape[1])
        elif part == "q":
            found[whole] = np.concatenate([weights[f"{whole}.{each}"] for each in "qkv"])
        elif part not in ("k", "v", "up"):
            found[name] = values
    return found


def test_four_bits_are_for_gate_and_up(tmp_path: Path) -> None:
    """Down projections of experts have 8 bits as others have, and the router is not quantized."""
    model = model_of("qwen2_moe", **WIDE, moe_intermediate_size=96, shared_expert_intermediate_size=96)
    source = saved(model, tmp_path)
    decoder, layout = read_config(model.config.to_dict())
    weights = {w.name: w for w in convert(decoder, layout, source, types=FourBits(source, "m"))}
    shapes = stored_matrices(decoder, in_parts=True)
    assert {name: weight.shape for name, weight in weights.items() if weight.matrix} == shapes
    assert not weights["1.router"].matrix
    kinds = {name: weight.kind for name, weight in weights.items() if "experts_" in name or "gate_up" in name}
    assert {kind for name, kind in kinds.items() if not name.endswith("down")} == {"q4_1"}
    assert {kind for name, kind in kinds.items() if name.endswith("down")} == {"int8"}


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_codes_of_experts_are_kept(method: Any, tmp_path: Path) -> None:
    """Those of each expert, whose tensors are apart; a quantized router is read as the values of its codes."""
    model = model_of("qwen3_moe", **WIDE, moe_intermediate_size=96)
    saved(model, tmp_path / "plain")
    values = save_quantized(tmp_path / "plain", tmp_path / "m", method, 32, symmetric=method == "gptq")
    source = source_of(tmp_path / "m")
    decoder, layout = read_config(model.config.to_dict())
    weights = {w.name: w for w in convert(decoder, layout, source, types=FourBits(source, "m"))}
    assert np.array_equal(weights["1.router"].read(), values["model.layers.1.mlp.gate.weight"])
    for name, part in (("gate_up.gate", "gate"), ("gate_up.up", "up"), ("down", "down")):
        weight = weights[f"1.experts_{name}"]
        kind = "q4_0" if method == "gptq" else "q4_1"
        assert weight.kind == kind
        assert weight.pack_rows is not None
        expected = np.concatenate([values[f"model.layers.1.mlp.experts.{e}.{part}_proj.weight"] for e in range(8)])
        assert np.array_equal(weight.read(), expected)
        for start, stop in ((0, len(expected)), (80, 208)):
            packed = Packed(weight.pack_rows(start, stop), None)
            found = unpack(packed, stop - start, weight.shape[1], kind)
            error = np.abs(found - expected[start:stop]).max()
            assert error <= (0 if kind == "q4_0" else np.abs(expected).max() / 2048)


def test_experts_whose_codes_do_not_fit_have_8_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Groups of columns out of order have no format of 4 bits; the log says so once."""
    model = model_of("qwen3_moe", **WIDE, moe_intermediate_size=96)
    saved(model, tmp_path / "plain")
    save_quantized(tmp_path / "plain", tmp_path / "m", "gptq", 32, act_order=True)
    source = source_of(tmp_path / "m")
    decoder, layout = read_config(model.config.to_dict())
    weights = convert(decoder, layout, source, types=FourBits(source, "m"))
    assert {weight.kind for weight in weights if ".experts_" in weight.name} == {"int8"}
    assert len([record for record in caplog.records if "served in int8" in record.message]) == 1


@pytest.mark.parametrize(("case", "idle"), [("qwen2_moe", 2 * 4), ("lfm2_moe", 2 * 4), ("mixtral", 2 * 2)])
def test_parameters_are_counted(case: str, idle: int, tmp_path: Path) -> None:
    """All of them, and those with which a token is computed: without the experts that are not chosen for it."""
    model = model_of(case)
    decoder, layout = read_config(model.config.to_dict())
    total = sum(tensor.numel() for tensor in StateDictSource(model.state_dict())._state.values())
    stacks = [p for name, p in model.named_parameters() if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    for source in (saved(model, tmp_path), StateDictSource(model.state_dict())):
        assert count_parameters(decoder, layout, source) == total
    assert active_parameters(decoder, total) == total - idle * sum(stack[0].numel() for stack in stacks[:2])


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("glm4_moe", "model.layers.2.eh_proj.weight"),
        ("hy_v3", "model.layers.2.mlp.experts.0.up_proj.weight"),
        ("ernie4_5_moe", "model.mtp_block.0.self_attn.q_proj.weight"),
        ("exaone_moe", "mtp.layers.0.mlp.gate.weight"),
        ("mellum", "mtp.fc.weight"),
    ],
)
def test_layers_that_predict_further_tokens_are_left_out(case: str, name: str) -> None:
    """They are neither superfluous nor counted; in a family without them the same tensor is reported."""
    model = model_of(case)
    state = {**model.state_dict(), name: torch.zeros(3, 3)}
    decoder, layout = read_config(model.config.to_dict())
    source = StateDictSource(state)
    assert described(model, source)[1].keys() == described(model, StateDictSource(model.state_dict()))[1].keys()
    assert count_parameters(decoder, layout, source) == count_parameters(
        decoder, layout, StateDictSource(model.state_dict())
    )
    other = model_of("qwen3_moe")
    with pytest.raises(ModelUnavailable, match=r"left over|no place for"):
        described(other, StateDictSource({**other.state_dict(), name: torch.zeros(3, 3)}))
