"""Converts a transformers model's tensors to the names, shapes and order that the fast decoder reads.

| name | shape | |
|---|---|---|
| ``embed`` | [V, H] | |
| ``positions`` | [P, H] | gpt2; not packed |
| ``{i}.attention_norm.weight`` ``.bias`` | [H] | bias: gpt2 |
| ``{i}.qkv`` | [(heads + 2 kv_heads) head_dim, H] | rows of the queries, then keys, then values |
| ``{i}.attention_out`` | [H, heads head_dim] | |
| ``{i}.mlp_norm.weight`` ``.bias`` | [H] | |
| ``{i}.gate_up`` | [2 I, H] | llama; alternately 16 rows of the gate and 16 of up, I padded to a multiple of 16 |
| ``{i}.up`` | [I, H] | gpt2 |
| ``{i}.down`` | [H, I] | |
| ``final_norm.weight`` ``.bias`` | [H] | |
| ``head`` | [V, H] | only if it is not tied to the embedding |

Matrices are [outputs, inputs]. Each may have a separate ``.bias`` [outputs] in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.loading.snapshot_writer import Weight
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.packing import PANEL_ROWS
from runtime.model.tensors import gate_up_rows

_Arrange = Callable[[list[NDArray[np.float32]]], NDArray[np.float32]]


def convert(model: Any, config: DecoderConfig) -> tuple[DecoderConfig, list[Weight]]:
    """Convert a model's tensors; the values are read later, one tensor at a time.

    Args:
        model: a transformers model of the class that the configuration names.
        config: the model's configuration.

    Returns:
        The configuration completed from the loaded model (whether the head is actually tied, and bit-exact rotary
        frequencies, so that late positions agree with the reference), and the tensors.

    Raises:
        UnsupportedDecoder: the model has tensors that the decoder does not use, or lacks some.
    """
    state = model.state_dict()
    head = model.get_output_embeddings().weight
    config = replace(config, tied=head.data_ptr() == model.get_input_embeddings().weight.data_ptr())
    if config.family == "llama":
        rotary = model.model.rotary_emb
        config = replace(
            config,
            inverse_frequencies=tuple(rotary.inv_freq.tolist()),
            rope_attention_factor=float(rotary.attention_scaling),
        )
    taken = _Taken(state)
    try:
        (_llama if config.family == "llama" else _gpt2)(taken, config)
    except KeyError as error:
        raise UnsupportedDecoder(f"a checkpoint without {error}") from error
    if left := state.keys() - taken.names - ({"lm_head.weight"} if config.tied else set()):
        raise UnsupportedDecoder(f"a checkpoint with {min(left)}")
    return config, taken.weights


def equalize(model: Any) -> None:
    """Rescale a Llama's MLP weights so that they lose less in 8-bit quantization, without changing the MLPs' results.

    The factor of the gate passes linearly from a row of the up projection to a column of the down projection, so the
    two may be scaled inversely until their norms are equal (arXiv:1906.04721, section 4.1). The factors are powers of
    two, which cause no rounding in any floating-point type.

    Args:
        model: the transformers model, changed in place.
    """
    with torch.no_grad():
        for layer in model.model.layers:
            up, down = layer.mlp.up_proj, layer.mlp.down_proj
            rows, columns = up.weight.float().norm(dim=1), down.weight.float().norm(dim=0)
            shift = (0.5 * (rows / columns).log2()).nan_to_num(0, 0, 0)  # a row or column of zeros is not scaled
            factors = torch.exp2((shift - shift.mean()).round()).to(up.weight.dtype)
            up.weight /= factors[:, None]
            down.weight *= factors
            if up.bias is not None:
                up.bias /= factors


def _llama(take: _Taken, config: DecoderConfig) -> None:
    """Convert the tensors of a Llama or Mistral model."""
    take.matrix("embed", "model.embed_tokens")
    for i in range(config.layers):
        old = f"model.layers.{i}."
        take.vectors(f"{i}.attention_norm", old + "input_layernorm")
        take.matrix(f"{i}.qkv", *(f"{old}self_attn.{part}_proj" for part in "qkv"))
        take.matrix(f"{i}.attention_out", old + "self_attn.o_proj")
        take.vectors(f"{i}.mlp_norm", old + "post_attention_layernorm")
        rows = gate_up_rows(config.intermediate)
        take.matrix(f"{i}.gate_up", old + "mlp.gate_proj", old + "mlp.up_proj", arrange=_interleave, rows=rows)
        take.matrix(f"{i}.down", old + "mlp.down_proj")
    take.vectors("final_norm", "model.norm")
    if not config.tied:
        take.matrix("head", "lm_head")


def _gpt2(take: _Taken, config: DecoderConfig) -> None:
    """Convert the tensors of a GPT-2 model."""
    take.matrix("embed", "transformer.wte")
    take.vector("positions", "transformer.wpe.weight")
    for i in range(config.layers):
        old = f"transformer.h.{i}."
        take.vectors(f"{i}.attention_norm", old + "ln_1")
        take.matrix(f"{i}.qkv", old + "attn.c_attn", transposed=True)
        take.matrix(f"{i}.attention_out", old + "attn.c_proj", transposed=True)
        take.vectors(f"{i}.mlp_norm", old + "ln_2")
        take.matrix(f"{i}.up", old + "mlp.c_fc", transposed=True)
        take.matrix(f"{i}.down", old + "mlp.c_proj", transposed=True)
    take.vectors("final_norm", "transformer.ln_f")
    if not config.tied:
        take.matrix("head", "lm_head")


def _interleave(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Alternate panels of two tensors, so that one pass computes the gate and up projections side by side.

    Args:
        parts: the two tensors [I, ...].

    Returns:
        The result [2 I, ...], with I padded to a multiple of ``PANEL_ROWS``.
    """
    rows = -(-len(parts[0]) // PANEL_ROWS) * PANEL_ROWS
    filled = [np.pad(part, [(0, rows - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in parts]
    panels = [part.reshape(-1, PANEL_ROWS, *part.shape[1:]) for part in filled]  # [I / 16, 16, ...]
    return np.stack(panels, axis=1).reshape(2 * rows, *parts[0].shape[1:])


class _Taken:
    """Converts tensors of a state dict and records which of them were used."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.names: set[str] = set()
        self.weights: list[Weight] = []

    def matrix(
        self,
        name: str,
        *old: str,
        transposed: bool = False,
        arrange: _Arrange = np.concatenate,
        rows: int | None = None,
    ) -> None:
        """Convert several modules' weights to one matrix, and their biases, if any, to its bias.

        Args:
            name: the matrix's new name.
            old: the modules' names.
            transposed: whether the modules' weights are [inputs, outputs].
            arrange: combines the modules' rows.
            rows: number of rows of the result; by default the sum of the modules' rows.

        Raises:
            KeyError: a tensor is missing.
        """
        tensors = [self._take(f"{module}.weight").T if transposed else self._take(f"{module}.weight") for module in old]
        rows = rows or sum(len(tensor) for tensor in tensors)
        self._add(name, (rows, tensors[0].shape[1]), tensors, arrange, matrix=True)
        if f"{old[0]}.bias" in self._state:
            self._add(f"{name}.bias", (rows,), [self._take(f"{module}.bias") for module in old], arrange)

    def vectors(self, name: str, old: str) -> None:
        """Convert a norm's weight, and its bias if it has one."""
        self.vector(f"{name}.weight", f"{old}.weight")
        if f"{old}.bias" in self._state:
            self.vector(f"{name}.bias", f"{old}.bias")

    def vector(self, name: str, old: str) -> None:
        """Convert a tensor that keeps its shape and is not packed."""
        tensor = self._take(old)
        self._add(name, tuple(tensor.shape), [tensor], np.concatenate)

    def _take(self, name: str) -> Tensor:
        """Return a tensor of the state dict and record its use."""
        self.names.add(name)
        return self._state[name]

    def _add(
        self, name: str, shape: tuple[int, ...], tensors: list[Tensor], arrange: _Arrange, *, matrix: bool = False
    ) -> None:
        def read() -> NDArray[np.float32]:
            return arrange([tensor.detach().to("cpu", torch.float32).numpy() for tensor in tensors])

        self.weights.append(Weight(name, shape, matrix, read))
