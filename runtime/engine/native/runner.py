"""Model runner on the compiled kernels: reads packed weights in place and runs a whole step in one native call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engine.block_pool import BLOCK_TOKENS as BLOCK_TOKENS
from runtime.engine.native import library
from runtime.engine.sequence import Row, Sampled
from runtime.errors import InternalError, ServiceError
from runtime.model.block_formats import BLOCK_KINDS
from runtime.model.config import DecoderConfig, KVDType
from runtime.model.packing import PANEL_ROWS
from runtime.model.snapshot import Snapshot
from runtime.model.tensors import part_names

# The enumerations of layout.h.
_NORMS = {"rms": 0, "layer": 1}
_QK_NORMS = {"none": 0, "head": 1, "full": 2}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "relu2": 4}
_KINDS = {kind: i for i, kind in enumerate(("float32", "bfloat16", "int8", "float16", *BLOCK_KINDS))}
_KV_TYPES = {"float32": 0, "float16": 1, "int8": 2}
_LAYER_KINDS = {"attention": 0, "convolution": 1}
_MAX_BLOCKS = 1 << 26  # ``kMaxBlocks`` of check.h; no model has a context that needs more


class NativeRunner:
    """Runs steps with the compiled CPU kernels. Implements ``runtime.engine.sequence.Runner``.

    Args:
        snapshot: the model; its arrays are read in place and kept.
        kv_bytes: maximum bytes of the KV cache; memory becomes resident only when it is written.
        kv_dtype: number type of keys and values; by default float32 for float32 weights, else float16.
        max_tokens: maximum tokens per step.
        threads: number of compute threads, including the caller's.
        kernels: the library to use; by default the best for this processor.

    Raises:
        RuntimeError: there are no kernels for this processor, or a tensor has another size than the configuration
            requires.
        MemoryError: ``kv_bytes`` is less than one block, or an allocation failed.
    """

    block_tokens = BLOCK_TOKENS

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        kv_bytes: int,
        max_tokens: int,
        threads: int,
        kv_dtype: KVDType | None = None,
        kernels: library.Kernels | None = None,
    ) -> None:
        config, kind = snapshot.facts.decoder, snapshot.facts.kind
        kernels = kernels or next(iter(library.usable()), None)
        if kernels is None:
            raise RuntimeError("there are no kernels for this processor")
        self.level = kernels.level  # the name of the instruction set level
        self._library = kernels.functions
        self._keep: list[Any] = []  # keeps arrays alive whose addresses the kernels hold
        self.kv_dtype: KVDType = kv_dtype or ("float32" if kind == "float32" else "float16")
        self.block_bytes = config.kv_position_bytes(self.kv_dtype) * BLOCK_TOKENS
        self.blocks = min(kv_bytes // self.block_bytes, _MAX_BLOCKS)
        if not self.blocks:
            raise MemoryError(f"{kv_bytes} bytes for keys and values are too few: a block takes {self.block_bytes}")
        self.max_tokens = max_tokens
        self._vocabulary = config.vocabulary
        slopes = np.array(config.alibi_slopes, np.float32)
        positions = _padded(snapshot.vector("positions")) if config.learned_positions else np.empty(0, np.float32)
        described = library.Config(
            norm=_NORMS[config.norm],
            qk_norm=_QK_NORMS[config.qk_norm],
            activation=_ACTIVATIONS[config.activation],
            kv_type=_KV_TYPES[self.kv_dtype],
            gated=config.gated,
            parallel=config.parallel,
            shared_norm=config.shared_norm,
            layers=len(config.layers),
            hidden=config.hidden,
            intermediate=config.intermediate,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary,
            context=config.context_length,
            convolution_width=config.convolution_width,
            threads=threads,
            max_tokens=max_tokens,
            blocks=self.blocks,
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
            rotations=self._rotations(config),
            embed=self._matrix(snapshot, "embed"),
            embed_norm=self._vector(snapshot, "embed_norm"),
            final_norm=self._vector(snapshot, "final_norm"),
            head=self._matrix(snapshot, "embed" if config.tied else "head"),
            layer=self._layers(snapshot),
        )
        self._handle = ctypes.c_void_p()
        library.check(self._library, self._library.warmstart_open(described, ctypes.byref(self._handle)))
        self._ids = np.zeros(max_tokens, np.int32)
        self._outputs = np.zeros(max_tokens, np.int32)
        self._choices = np.zeros(max_tokens, library.CHOICE)
        self._chosen = np.zeros(max_tokens, library.CHOSEN)

    def step(self, rows: Items[Row]) -> list[list[Sampled] | ServiceError]:
        """Write the rows' keys and values to the KV cache and sample tokens, see ``Runner``."""
        return self._step(rows, None)

    def logits(self, rows: Items[Row]) -> NDArray[np.float32]:
        """Run a step and return its logits.

        Returns:
            [samples of all rows, vocabulary] the model's unmodified float32 logits.
        """
        found = np.empty((sum(row.samples for row in rows), self._vocabulary), np.float32)
        self._step(rows, found)
        return found

    def _step(self, rows: Items[Row], logits: NDArray[np.float32] | None) -> list[list[Sampled] | ServiceError]:
        ids: list[int] = []
        starts, tables = [0], [0]
        blocks: list[int] = []
        outputs: list[int] = []
        choices: list[tuple[Any, ...]] = []
        keep: list[Any] = []
        for row in rows:
            ids += row.token_ids
            starts.append(len(ids))
            blocks += row.sequence.blocks[: -(-(row.start + len(row.token_ids)) // BLOCK_TOKENS)]
            tables.append(len(blocks))
            outputs += range(len(ids) - row.samples, len(ids))
            choices += [_choice(row, index, keep) for index in range(row.samples)]
        count = len(outputs)
        self._ids[: len(ids)] = ids
        self._outputs[:count] = outputs
        if count:
            self._choices[:count] = choices
        ats, long_texts = [row.start for row in rows], [row.sequence.long_text for row in rows]
        arrays = [np.array(values, np.int32) for values in (starts, ats, long_texts, tables, blocks)]
        step = library.Step(
            len(rows),
            len(ids),
            count,
            len(blocks),
            self._ids.ctypes.data,
            *(array.ctypes.data for array in arrays),
            self._outputs.ctypes.data,
            self._choices.ctypes.data,
            self._chosen.ctypes.data,
            None if logits is None else logits.ctypes.data,
        )
        library.check(self._library, self._library.warmstart_step(self._handle, step))
        return self._results(rows, count)

    def _results(self, rows: Items[Row], count: int) -> list[list[Sampled] | ServiceError]:
        chosen = self._chosen[:count]
        ids, failed = chosen["id"].tolist(), chosen["failed"].tolist()
        results: list[list[Sampled] | ServiceError] = []
        at = 0
        for row in rows:
            mine = range(at, at + row.samples)
            at += row.samples
            if any(failed[i] for i in mine):
                results.append(InternalError("the model produced logits that are not numbers"))
            elif row.sequence.params.logprobs is None:
                results.append([Sampled(ids[i]) for i in mine])
            else:
                results.append([_with_logprobs(chosen[i]) for i in mine])
        return results

    def copy_block(self, source: int, target: int) -> None:
        """Copy a KV block onto another, in all layers."""
        library.check(self._library, self._library.warmstart_copy_block(self._handle, source, target))

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
        packed = snapshot.matrix(name)
        kind = _KINDS[snapshot.matrix_kind(name)]
        tensor = library.Tensor(data=self._address(packed.data), data_bytes=packed.data.nbytes, kind=kind)
        if packed.scales is not None:
            tensor.scales, tensor.scale_count = self._address(packed.scales), packed.scales.size
        self._add_bias(tensor, snapshot, name)
        return tensor

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
            layer.up = (library.Tensor * 2)(*self._parts(snapshot, f"{i}.{config.up}"))
            layer.down = self._matrix(snapshot, f"{i}.down")
        self._keep.append(layers)
        return ctypes.addressof(layers)


def _padded(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pad an array's last dimension with zeros to a multiple of ``PANEL_ROWS``."""
    missing = -array.shape[-1] % PANEL_ROWS
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array


def _choice(row: Row, index: int, keep: list[Any]) -> tuple[Any, ...]:
    """Return the fields of ``library.CHOICE`` for one sampled token of a row.

    Args:
        row: the row.
        index: index of the sampled token within the row, from 0.
        keep: receives the arrays that the fields point to; they must live until the step is done.
    """
    sequence = row.sequence
    params = sequence.params

    def address(values: Any, kind: type[np.generic]) -> int:
        array = np.fromiter(values, kind)
        keep.append(array)
        return array.ctypes.data

    biases = sequence.bias(index)
    mask = row.mask(index)
    bias_ids = bias = seen_ids = counted_ids = counts = banned = 0
    seen = counted = 0
    if biases:
        bias_ids = address((token for token, _ in biases), np.int32)
        bias = address((value for _, value in biases), np.float32)
    if params.repetition_penalty != 1:
        distinct = set(sequence.tokens)
        seen, seen_ids = len(distinct), address(distinct, np.int32)
    if (params.presence_penalty or params.frequency_penalty) and sequence.counts:
        counted = len(sequence.counts)
        counted_ids, counts = address(sequence.counts, np.int32), address(sequence.counts.values(), np.int32)
    if row.banned:
        banned = address(row.banned, np.int32)
    return (
        sequence.random(index),
        *(bias_ids, bias, seen_ids, counted_ids, counts, banned),
        0 if mask is None else mask.ctypes.data,
        *(params.temperature, params.top_p, params.min_p),
        *(params.repetition_penalty, params.presence_penalty, params.frequency_penalty),
        *(params.top_k, -1 if params.logprobs is None else params.logprobs),
        *(len(biases), seen, counted, len(row.banned), 0 if mask is None else mask.size),
    )


def _with_logprobs(chosen: Any) -> Sampled:
    tops = int(chosen["tops"])
    top = zip(chosen["top_ids"][:tops].tolist(), chosen["top_logprobs"][:tops].tolist(), strict=True)
    return Sampled(int(chosen["id"]), float(chosen["logprob"]), tuple(top))
