"""The kernels' mixtures of experts: in the formats of GGUF files, which experts are chosen, and what is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from runtime.engine.native import library
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.model.block_formats import BlockKind, unpack_blocks
from runtime.model.config import DecoderConfig, ExpertsConfig
from runtime.model.snapshot import Snapshot
from runtime.model.tensors import matrices, stored_matrices
from runtime.types import SamplingParams
from tests.support.dense_decoder import DenseDecoder
from tests.support.engines import needs_kernels
from tests.support.random_decoder import EXPERTS, describe, random_decoder, random_weights
from tests.support.random_snapshot import held

pytestmark = needs_kernels
LEVELS = {kernels.level: kernels for kernels in library.usable()}
IDS = np.random.default_rng(1).integers(0, 300, 60).tolist()


def row(ids: list[int], start: int = 0, end: int | None = None, block: int = 0) -> Row:
    sequence = Sequence(tuple(ids), SamplingParams(max_new_tokens=1, temperature=0), seed=1)
    sequence.blocks = list(range(block, block + len(ids) // 16 + 1))
    fed = ids[start:end]
    return Row(sequence, start, fed, samples=len(fed))


def opened(snapshot: Snapshot, kernels: library.Kernels | None = None, threads: int = 2) -> NativeRunner:
    return NativeRunner(snapshot, kv_bytes=4 << 20, max_tokens=128, threads=threads, kernels=kernels)


def in_blocks() -> tuple[DecoderConfig, Snapshot, dict[str, torch.Tensor]]:
    """A decoder whose experts and shared expert are Q4_K and Q6_K, and the values of its tensors."""
    mixture = ExpertsConfig(8, 2, 256, normalized=True, shared_intermediate=256, shared_gate=True)
    config = describe(EXPERTS, EXPERTS, hidden=256, experts=mixture)
    tensors = random_weights(config)
    kinds: dict[str, BlockKind] = {"gate": "q4_k", "up": "q6_k", "experts_down": "q6_k", "down": "q4_k"}
    blocks = {
        name: (kinds[part], shape)
        for name, shape in stored_matrices(config, in_parts=True).items()
        if (part := name.rpartition(".")[2]) in kinds
    }
    plain = {name: values for name, values in tensors.items() if not name.endswith(("gate_up", "down"))}
    snapshot = held(config, plain, "gguf", blocks)
    values = {name: unpack_blocks(snapshot.matrix(name).data, *shape, kind) for name, (kind, shape) in blocks.items()}
    for name, shape in matrices(config).items():
        if name.endswith("gate_up"):
            halves = (values[f"{name}.{part}"].reshape(-1, 16, shape[1]) for part in ("gate", "up"))
            values[name] = np.stack(list(halves), axis=1).reshape(shape)
    return config, snapshot, plain | {name: torch.from_numpy(value) for name, value in values.items()}


@pytest.mark.parametrize("level", LEVELS)
def test_experts_in_block_formats(level: str) -> None:
    """Gate, up and down of all experts have types of their own: logits are right but for the rounding of activations.

    They are the same bits at once, in chunks beside another text, and with more threads.
    """
    config, snapshot, values = in_blocks()
    runner = opened(snapshot, LEVELS[level])
    found = runner.logits([row(IDS)])
    wanted = DenseDecoder(config, values).logits(IDS).numpy()
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.08 * wanted.std()
    runner.close()
    runner = opened(snapshot, LEVELS[level], threads=3)
    parts, at = [], 0
    for count in (1, 2, 3, 17, 37):
        parts.append(runner.logits([row(IDS[::-1][:count], block=10), row(IDS, at, at + count, block=20)])[count:])
        at += count
    runner.close()
    assert at == len(IDS)
    assert np.array_equal(np.concatenate(parts), found)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_of_equal_scores_the_first_experts_are_chosen(scores: str) -> None:
    """With a router of zeros every token takes the experts with the smallest indices."""
    mixture = ExpertsConfig(20, 3, 32, scores=scores, normalized=True)  # type: ignore[arg-type]
    config = describe(EXPERTS, experts=mixture)
    tensors = random_weights(config)
    tensors["0.router"] = torch.zeros_like(tensors["0.router"])
    runner = opened(held(config, tensors, "float32"))
    found = runner.logits([row(IDS)])
    runner.close()
    assert found == pytest.approx(DenseDecoder(config, tensors).logits(IDS).numpy(), abs=2e-4)


def test_a_row_that_is_not_a_number_fails_alone() -> None:
    """A token whose scores are no numbers still gets experts; its neighbours' logits are the same bits as ever."""
    config, tensors = random_decoder("lfm2_moe")
    tensors["embed"][7] = float("nan")
    runner = opened(held(config, tensors, "float32"))
    good = [token for token in IDS if token != 7]
    alone = runner.logits([row(good)])
    found = runner.logits([row([7, 7]), row(good, block=20)])
    runner.close()
    assert np.isnan(found[:2]).all()
    assert np.isfinite(alone[:, :7]).all()
    assert np.array_equal(found[2:], alone, equal_nan=True)  # the head has the token's embedding, too


Change = Callable[[library.Config, Any], None]


def sets(**fields: Any) -> Change:
    """Change fields of the configuration."""
    return lambda config, layers: [setattr(config, name, value) for name, value in fields.items()] and None


def tensor(name: str, place: int | None = None, **fields: Any) -> Change:
    """Change fields of a tensor of the second layer, or add to them where that is an integer in a tuple."""

    def change(config: library.Config, layers: Any) -> None:
        found = getattr(layers[1], name)
        found = found if place is None else found[place]
        for field, value in fields.items():
            setattr(found, field, getattr(found, field) + value[0] if isinstance(value, tuple) else value)

    return change


def without(name: str, place: int | None = None) -> Change:
    return tensor(name, place, data=None)


def layer(**fields: Any) -> Change:
    return lambda config, layers: [setattr(layers[1], name, value) for name, value in fields.items()] and None


def borrowed(config: library.Config, layers: Any) -> None:
    layers[1].experts_up[1] = layers[1].down


REFUSED: dict[str, tuple[Change, str]] = {
    "more experts of a token than there are": (sets(experts_per_token=13), "size"),
    "no expert of a token": (sets(experts_per_token=0), "size"),
    "a negative number of experts": (sets(experts=-1), "size"),
    "too many experts": (sets(experts=1 << 13), "size"),
    "experts of a token, and no experts": (sets(experts=0), "size"),
    "no experts": (sets(experts=0, experts_per_token=0), "tensor"),
    "one expert fewer": (sets(experts=11), "tensor"),
    "experts without a width": (sets(experts_intermediate=0), "size"),
    "experts that are too wide": (sets(experts_intermediate=1 << 20), "size"),
    "wider experts": (sets(experts_intermediate=48), "tensor"),
    "other scores": (sets(router_scores=2), "size"),
    "weights more than normalized": (sets(normalized=2), "size"),
    "a gate that is no boolean": (sets(shared_gate=-1), "size"),
    "experts without gates": (sets(gated=0), "size"),
    "a layer with neither router nor MLP": (
        lambda *all_: (without("router")(*all_), layer(intermediate=0)(*all_))[0],
        "size",
    ),
    "a negative width": (layer(intermediate=-1), "size"),
    "a shared expert of another width": (layer(intermediate=64), "tensor"),
    "a shared expert without a width": (layer(intermediate=0), "tensor"),
    "no router beside experts": (without("router"), "tensor"),
    "a router of another type": (tensor("router", kind=1), "tensor"),
    "a short router": (tensor("router", data_bytes=(-4,)), "tensor"),
    "a router at an odd address": (tensor("router", data=(1,)), "tensor"),
    "a short correction": (tensor("router_correction", data_bytes=(-64,)), "tensor"),
    "no gate and up": (without("experts_up", 0), "tensor"),
    "a short gate and up": (tensor("experts_up", 0, data_bytes=(-16,)), "tensor"),
    "gate and up of an unknown type": (tensor("experts_up", 0, kind=99), "tensor"),
    "gate and up without scales": (tensor("experts_up", 0, scales=None), "tensor"),
    "too few scales": (tensor("experts_up", 0, scale_count=(-16,)), "tensor"),
    "a part of another size": (borrowed, "tensor"),
    "no down": (without("experts_down"), "tensor"),
    "a long down": (tensor("experts_down", data_bytes=(16,)), "tensor"),
    "too few scales of down": (tensor("experts_down", scale_count=(-1,)), "tensor"),
}


class Changed:
    """The kernels' functions, with a change of what is opened."""

    def __init__(self, functions: ctypes.CDLL, change: Change) -> None:
        self.functions, self.change = functions, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.functions, name)

    def warmstart_open(self, config: library.Config, handle: Any) -> int:
        layers = (library.Layer * config.layers).from_address(config.layer)
        for one in layers:
            if one.router.data:
                one.router_correction.data = one.router.data  # long enough
                one.router_correction.data_bytes = 64
        self.change(config, layers)
        status: int = self.functions.warmstart_open(config, handle)
        return status


@pytest.mark.parametrize("name", ["nothing", *REFUSED])
def test_sizes_that_do_not_fit_are_refused(name: str) -> None:
    """Each count, width and pointer of the experts is checked before it is used."""
    change, message = REFUSED.get(name, (sets(), ""))
    kernels = library.usable()[0]
    config, tensors = random_decoder("qwen2_moe")
    assert config.layers[1].experts
    changed = replace(kernels, functions=Changed(kernels.functions, change))  # type: ignore[arg-type]
    if name == "nothing":
        opened(held(config, tensors, "int8"), changed).close()
        return
    with pytest.raises(RuntimeError, match=f"kernels refuse.*{message}"):
        opened(held(config, tensors, "int8"), changed)
