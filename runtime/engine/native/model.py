"""A model opened by the compiled kernels, which read its packed weights in place: the part that runners share."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine.native import library
from runtime.model.block_formats import BLOCK_KINDS
from runtime.model.config import DecoderConfig, KVDType
from runtime.model.packing import PANEL_ROWS, MatrixKind, Packed, pack
from runtime.model.relative_positions import bias_by_distance
from runtime.model.snapshot import Snapshot
from runtime.model.tensors import part_names

# The enumerations of layout.h.
_NORMS = {"rms": 0, "layer": 1}
_QK_NORMS = {"none": 0, "head": 1, "full": 2}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "relu2": 4}
_KINDS = {kind: i for i, kind in enumerate(("float32", "bfloat16", "int8", "float16", *BLOCK_KINDS))}
_KV_TYPES = {"float32": 0, "float16": 1, "int8": 2}
_LAYER_KINDS = {"attention": 0, "convolution": 1}
_ROUTER_SCORES = {"softmax": 0, "sigmoid": 1}


class NativeModel:
    """A model that the kernels have opened.

    Args:
        snapshot: the model; its arrays are read in place and kept.
        kv_dtype: number type of keys and values.
        blocks: number of blocks of keys and values; memory becomes resident only when it is written.
        max_tokens: maximum tokens per step.
        threads: number of compute threads, including the caller's.
        kernels: the library to use; by default the best for this processor.
        transient: whether keys and values are kept for one layer only, and each step has whole texts.

    Raises:
        RuntimeError: there are no kernels for this processor, or a tensor has another size than the configuration
            requires.
        MemoryError: an allocation failed.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        kv_dtype: KVDType,
        blocks: int,
        max_tokens: int,
        threads: int,
        kernels: library.Kernels | None = None,
        transient: bool = False,
    ) -> None:
        config = snapshot.facts.decoder
        kernels = kernels or next(iter(library.usable()), None)
        if kernels is None:
            raise RuntimeError("there are no kernels for this processor")
        self.level = kernels.level  # the name of the instruction set level
        self.max_tokens = max_tokens
        self._library = kernels.functions
        self._keep: list[Any] = []  # keeps arrays alive whose addresses the kernels hold
        slopes = np.array(config.alibi_slopes, np.float32)
        positions = _padded(snapshot.vector("positions")) if config.learned_positions else np.empty(0, np.float32)
        types = _padded(snapshot.vector("token_types")) if config.token_types else np.empty(0, np.float32)
        bias = np.empty((0, 1), np.float32)
        if config.relative_buckets:
            bias = bias_by_distance(snapshot.vector("relative_bias"))
        described = library.Config(
            norm=_NORMS[config.norm],
            qk_norm=_QK_NORMS[config.qk_norm],
            activation=_ACTIVATIONS[config.activation],
            kv_type=_KV_TYPES[kv_dtype],
            gated=config.gated,
            parallel=config.parallel,
            shared_norm=config.shared_norm,
            bidirectional=config.bidirectional,
            transient=transient,
            norm_after_sum=config.norm_after_sum,
            layers=len(config.layers),
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary,
            context=config.context_length,
            convolution_width=config.convolution_width,
            token_types=config.token_types,
            relative_range=bias.shape[1] // 2,
            **_experts(config),
            threads=threads,
            max_tokens=max_tokens,
            blocks=blocks,
            rotation_count=len(config.rotations),
            epsilon=config.norm_epsilon,
            attention_scale=config.attention_scale,
            attention_softcap=config.attention_softcap,
            embedding_scale=config.embedding_scale,
            residual_scale=config.residual_scale,
            logit_scale=config.logit_scale,
            logit_softcap=config.logit_softcap,
            alibi_slopes=self._address(slopes) if slopes.size else None,
            slope_count=slopes.size,
            positions=self._address(positions) if positions.size else None,
            position_count=positions.size,
            types=self._address(types) if types.size else None,
            type_count=types.size,
            relative_bias=self._address(bias) if bias.size else None,
            relative_count=bias.size,
            rotations=self._rotations(config),
            embed=self._matrix(snapshot, "embed"),
            embed_norm=self._vector(snapshot, "embed_norm"),
            final_norm=self._vector(snapshot, "final_norm"),
            head=self._matrix(snapshot, "embed" if config.tied else "head"),
            layer=self._layers(snapshot),
        )
        self._handle = ctypes.c_void_p()
        library.check(self._library, self._library.warmstart_open(described, ctypes.byref(self._handle)))

    def read(self, data: NDArray[Any]) -> None:
        """Read an array once with all threads, to measure memory bandwidth."""
        total = ctypes.c_float()
        status = self._library.warmstart_read(self._handle, data.ctypes.data, data.nbytes, total)
        library.check(self._library, status)

    def close(self) -> None:
        """Close the native decoder and free its memory."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        self._library.warmstart_close(handle)
        self._keep.clear()

    def _address(self, array: NDArray[Any]) -> int:
        self._keep.append(array)
        return array.ctypes.data

    def _matrix(self, snapshot: Snapshot, name: str) -> library.Tensor:
        """Return a packed matrix with its bias, if it has one."""
        tensor = self._packed(snapshot.matrix(name), snapshot.matrix_kind(name))
        self._add_bias(tensor, snapshot, name)
        return tensor

    def _packed(self, packed: Packed, kind: MatrixKind) -> library.Tensor:
        tensor = library.Tensor(data=self._address(packed.data), data_bytes=packed.data.nbytes, kind=_KINDS[kind])
        if packed.scales is not None:
            tensor.scales, tensor.scale_count = self._address(packed.scales), packed.scales.size
        return tensor

    def _router(self, snapshot: Snapshot, layer: int, *, gate: bool) -> library.Tensor:
        """Return a layer's router, with the gate of the shared expert as its last row if there is one."""
        rows = snapshot.vector(f"{layer}.router")  # [E, H]
        if gate:
            rows = np.vstack([rows, snapshot.vector(f"{layer}.shared_gate")])
        return self._packed(pack(rows, "float32"), "float32")

    def _parts(self, snapshot: Snapshot, name: str) -> list[library.Tensor]:
        """Return a matrix, or its parts if the snapshot has it in parts; the bias is that of the whole."""
        parts = part_names(name)
        if name in snapshot or parts[0] not in snapshot:
            return [self._matrix(snapshot, name)]
        found = [self._matrix(snapshot, part) for part in parts]
        self._add_bias(found[0], snapshot, name)
        return found

    def _vector(self, snapshot: Snapshot, name: str, suffix: str = ".weight") -> library.Tensor:
        """Return a norm's or a convolution's weights and bias, padded; an empty structure if the model has none."""
        tensor = library.Tensor()
        if f"{name}{suffix}" in snapshot:
            data = _padded(snapshot.vector(f"{name}{suffix}"))
            tensor.data, tensor.data_bytes = self._address(data), data.nbytes
            self._add_bias(tensor, snapshot, name)
        return tensor

    def _add_bias(self, tensor: library.Tensor, snapshot: Snapshot, name: str) -> None:
        if f"{name}.bias" in snapshot:
            bias = _padded(snapshot.vector(f"{name}.bias"))
            tensor.bias, tensor.bias_count = self._address(bias), bias.size

    def _rotations(self, config: DecoderConfig) -> int | None:
        count = len(config.rotations)
        rotations = (library.RotaryTable * count)(
            *(
                library.RotaryTable(
                    self._address(np.array(rotation.frequencies, np.float32)),
                    self._address(np.array(long, np.float32)) if (long := rotation.long_frequencies) else None,
                    len(rotation.frequencies),
                    rotation.factor,
                )
                for rotation in config.rotations
            )
        )
        self._keep.append(rotations)
        return ctypes.addressof(rotations) if count else None

    def _layers(self, snapshot: Snapshot) -> int:
        config = snapshot.facts.decoder
        layers = (library.Layer * len(config.layers))()
        for i, (layer, described) in enumerate(zip(layers, config.layers, strict=True)):
            layer.kind, layer.window = _LAYER_KINDS[described.kind], described.window
            layer.rotation = -1 if described.rotation is None else described.rotation
            for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm"):
                setattr(layer, name, self._vector(snapshot, f"{i}.{name}"))
            mixer = ("qkv", "attention_out") if described.kind == "attention" else ("conv_in", "conv_out")
            layer.qkv = (library.Tensor * 3)(*self._parts(snapshot, f"{i}.{mixer[0]}"))
            layer.attention_out = self._matrix(snapshot, f"{i}.{mixer[1]}")
            layer.convolution = self._vector(snapshot, f"{i}.conv", "")
            layer.intermediate = config.mlp_width(i)
            if layer.intermediate:
                layer.up = (library.Tensor * 2)(*self._parts(snapshot, f"{i}.{config.up}"))
                layer.down = self._matrix(snapshot, f"{i}.down")
            if described.experts and config.experts is not None:
                layer.router = self._router(snapshot, i, gate=config.experts.shared_gate)
                layer.router_correction = self._vector(snapshot, f"{i}.router_correction", "")
                layer.experts_up = (library.Tensor * 2)(*self._parts(snapshot, f"{i}.experts_gate_up"))
                layer.experts_down = self._matrix(snapshot, f"{i}.experts_down")
        self._keep.append(layers)
        return ctypes.addressof(layers)


def _experts(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields of ``library.Config`` that describe the mixtures of experts."""
    experts = config.experts
    if experts is None:
        return {}
    return {
        "experts": experts.count,
        "experts_per_token": experts.per_token,
        "experts_intermediate": experts.intermediate,
        "router_scores": _ROUTER_SCORES[experts.scores],
        "normalized": experts.normalized,
        "shared_gate": experts.shared_gate,
        "experts_scale": experts.scale,
    }


def _padded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pad an array's last dimension with zeros to a multiple of ``PANEL_ROWS``."""
    missing = -array.shape[-1] % PANEL_ROWS
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array
