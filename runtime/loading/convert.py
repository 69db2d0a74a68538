"""Converts a checkpoint's tensors to the names, shapes and order in ``runtime.model.tensors``.

Names and shapes of all tensors are checked at once; values are read later, one tensor at a time. Nothing here imports
torch or transformers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from runtime.loading.checkpoint_parts import Array, CheckpointParts, Read, Shape
from runtime.loading.converted_weights import ConvertedWeights
from runtime.loading.expert_tensors import ExpertTensors
from runtime.loading.head_layout import HeadLayout, Parts
from runtime.loading.matrix_types import FourBits, MatrixTypes, row_numbers
from runtime.loading.mlp_tensors import MLPTensors
from runtime.loading.quantized_source import QuantizedSource
from runtime.loading.snapshot_writer import Weight
from runtime.loading.stored_tensors import StoredTensors, stored_shapes
from runtime.loading.tensor_source import TensorSource
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig
from runtime.model.load_errors import mismatched, named
from runtime.model.packing import SnapshotKind


def convert(
    config: DecoderConfig,
    layout: CheckpointLayout,
    source: TensorSource,
    *,
    model: str = "the model",
    equalize: bool = False,
    types: MatrixTypes | None = None,
) -> list[Weight]:
    """Convert a model's tensors.

    Args:
        config: the decoder's configuration; whether it is tied must be as ``with_actual_head`` says.
        layout: how the checkpoint names and arranges its tensors.
        source: the checkpoint's tensors.
        model: the model's name, for error messages.
        equalize: whether to rescale gated MLPs and experts so that they lose less in 8-bit quantization, see
            ``runtime.loading.equalize``.
        types: selects the types of matrices, which are then stored in parts where ``runtime.model.tensors`` says so;
            None to store all in the snapshot's type.

    Raises:
        ModelUnavailable: tensors are missing, superfluous, of shapes that do not match the configuration, or of types
            that cannot be stored.
    """
    conversion = _Conversion(config, layout, source, equalize, types)
    conversion.run()
    stored = conversion.stored
    if missing := stored.missing:
        raise mismatched(model, f"{named(missing)} missing", stored.left())
    if stored.misshapen:
        name, expected = min(stored.misshapen.items())
        others = f", and {len(stored.misshapen) - 1} more" if len(stored.misshapen) > 1 else ""
        actual = list(source.shape(name))
        raise mismatched(model, f"{name} is {actual} where its configuration needs {list(expected)}{others}")
    if left := stored.left():
        raise mismatched(model, f"its architecture has no place for {named(left)}")
    return conversion.out.weights


def convert_to(
    kind: SnapshotKind, config: DecoderConfig, layout: CheckpointLayout, source: TensorSource, model: str
) -> list[Weight]:
    """Convert a model's tensors for a snapshot of any kind but ``gguf``. Other arguments and errors as for ``convert``.

    Args:
        kind: the kind of the snapshot.
    """
    # A checkpoint's own 4-bit codes are kept and not rescaled.
    equalize = kind == "int8" or (kind == "int4" and not isinstance(source, QuantizedSource))
    types = FourBits(source, model) if kind == "int4" else None
    return convert(config, layout, source, model=model, equalize=equalize, types=types)


def with_actual_head(config: DecoderConfig, layout: CheckpointLayout, source: TensorSource) -> DecoderConfig:
    """Return the configuration with ``tied`` as the checkpoint is.

    As in transformers, a tied configuration does not count if the checkpoint has a head of other values.
    """
    if "head" not in layout.names:  # an encoder
        return config
    stored = StoredTensors(layout, source)
    head, embed = (stored.name(layout.names[part] + ".weight") for part in ("head", "embed"))
    if not config.tied or head is None or embed is None:
        return config
    same = source.shape(head) == source.shape(embed) and np.array_equal(source.read(head), source.read(embed))
    return config if same else replace(config, tied=False)


def count_parameters(config: DecoderConfig, layout: CheckpointLayout, source: TensorSource) -> int:
    """Return the number of a checkpoint's parameters, a tied head counted once. Arguments as for ``convert``."""
    stored = StoredTensors(layout, source)
    names = set(source.names()) - stored.ignored()
    head, embed = (stored.name(layout.names.get(part, "") + ".weight") for part in ("head", "embed"))
    if config.tied and head is not None and embed is not None:
        names.discard(head)
    return sum(math.prod(source.shape(name)) for name in names)


class _Conversion:
    """Converts the tensors of one checkpoint. Arguments as for ``convert``."""

    def __init__(
        self,
        config: DecoderConfig,
        layout: CheckpointLayout,
        source: TensorSource,
        equalize: bool,
        types: MatrixTypes | None,
    ) -> None:
        self._config = config
        self._layout = layout
        self.stored = StoredTensors(layout, source)
        self._parts = CheckpointParts(layout, self.stored, len(config.layers))
        self._heads = HeadLayout(config, layout)
        self.out = ConvertedWeights(layout, self._parts, types)
        common = config, layout, self._parts, self.out
        self._mlps = MLPTensors(*common, equalize=equalize)
        self._experts = ExpertTensors(*common, equalize=equalize)

    def run(self) -> None:
        """Convert all tensors, in the order in which the decoder reads them."""
        config, hidden = self._config, self._config.hidden
        self._embedding()
        if config.learned_positions:
            offset = self._layout.position_offset
            read = self._parts.weight("positions", (config.context_length + offset, hidden))
            self.out.add("positions", (config.context_length, hidden), lambda: read()[offset:])
        for part, rows, width in (
            ("token_types", config.token_types, hidden),
            ("relative_bias", config.relative_buckets, config.heads),
        ):
            if rows:
                self._table(part, (rows, width))
        if config.embedding_norm:
            self._norm("embed_norm")
        for i, layer in enumerate(config.layers):
            if config.pre_norm and layer.attention_norm:
                self._norm("attention_norm", i)
            if layer.kind == "attention":
                self._attention(i)
            else:
                self._convolution(i)
            if config.post_norm:
                self._norm("attention_post_norm", i)
            if config.pre_norm and not config.shared_norm:
                self._norm("mlp_norm", i)
            if layer.experts:
                self._experts.convert(i)
            if inner := config.mlp_width(i):
                self._mlps.convert(i, inner, "shared_expert_" if layer.experts else "")
            if config.post_norm:
                self._norm("mlp_post_norm", i)
        if config.final_norm:
            self._norm("final_norm")
        if not config.tied:
            self.out.add_linear("head", None, (config.vocabulary, hidden))

    def _embedding(self) -> None:
        """Convert the embedding; a tied model may have stored it as its head."""
        shape = self._config.vocabulary, self._config.hidden
        part = "embed"
        if self._config.tied and "head" in self._layout.names:
            embed, head = (f"{self._layout.names[name]}.weight" for name in ("embed", "head"))
            if self.stored.name(embed) is not None:
                self.stored.discard(head)
            elif self.stored.name(head) is not None:
                part = "head"
            else:
                self.stored.missing.add(head)  # either of the two would do
        self.out.add_same("embed", part, None, shape)
        if self._config.tied and self._parts.has_bias("head"):
            self.out.add("embed.bias", shape[:1], self._parts.bias("head", shape[0]))

    def _attention(self, i: int) -> None:
        """Convert the tensors of an attention layer."""
        config, head_dim = self._config, self._config.head_dim
        heads, kv_heads = config.heads, config.kv_heads
        counts = {"q": heads, "k": kv_heads, "v": kv_heads}
        rows = sum(counts.values())
        if "qkv" in self._layout.names:
            weights: Parts = self._heads.split(self._parts.weight("qkv", (rows * head_dim, config.hidden), i))
            has_bias = self._parts.has_bias("qkv")
            biases = self._heads.split(self._parts.bias("qkv", rows * head_dim, i)) if has_bias else None
        else:
            weights = _each([self._parts.weight(part, (n * head_dim, config.hidden), i) for part, n in counts.items()])
            has_bias = any(self._parts.has_bias(part) for part in counts)
            biases = _each([self._parts.bias_or_zeros(part, n * head_dim, i) for part, n in counts.items()])

        def arranged_parts(parts: Sequence[Array]) -> list[Array]:
            q, k, v = (part.reshape(-1, head_dim, *part.shape[1:]) for part in parts)
            all_heads = [self._heads.rotated(q, i), self._heads.rotated(k, i), v]
            return [self._heads.padded(part, 1).reshape(-1, *part.shape[2:]) for part in all_heads]

        def arranged(parts: Sequence[Array]) -> Array:
            return np.concatenate(arranged_parts(parts))

        width = config.heads_width + 2 * config.kv_width
        if not self.out.in_parts:
            self.out.add(f"{i}.qkv", (width, config.hidden), lambda: arranged(weights()), matrix=True)
        else:
            if "qkv" in self._layout.names:
                numbers = self._heads.split(lambda: row_numbers(rows * head_dim))()
            else:
                numbers = [row_numbers(n * head_dim) for n in counts.values()]
            for n, (part, places) in enumerate(zip(counts, arranged_parts(numbers), strict=True)):
                tensor = "qkv" if "qkv" in self._layout.names else part
                read = functools.partial(lambda n: arranged_parts(weights())[n], n)
                self.out.add_matrix(f"{i}.qkv.{part}", (len(places), config.hidden), read, tensor, i, places)
        if has_bias and biases is not None:
            self.out.add(f"{i}.qkv.bias", (width,), lambda: arranged(biases()))
        if config.qk_norm != "none":
            self._head_norm("q_norm", i, heads)
            self._head_norm("k_norm", i, kv_heads)
        out = self._parts.weight("attention_out", (config.hidden, heads * head_dim), i)

        self.out.add_matrix(
            f"{i}.attention_out",
            (config.hidden, config.heads_width),
            lambda: self._heads.padded(out().reshape(-1, heads, head_dim), 2).reshape(config.hidden, -1),
            "attention_out",
            i,
            whole_rows=config.padded_head_dim == head_dim,
        )
        if self._parts.has_bias("attention_out"):
            self.out.add(
                f"{i}.attention_out.bias", (config.hidden,), self._parts.bias("attention_out", config.hidden, i)
            )

    def _head_norm(self, part: str, i: int, heads: int) -> None:
        """Convert a norm of queries or keys; one that all heads share is repeated for each."""
        head_dim = self._config.head_dim
        shapes = [(heads * head_dim,)] if self._config.qk_norm == "full" else [(head_dim,), (heads, head_dim)]

        def arranged(read: Read) -> Array:
            values = np.broadcast_to(read().reshape(-1, head_dim), (heads, head_dim))
            return self._heads.padded(self._heads.rotated(values, i), 1).reshape(-1)

        width = heads * self._config.padded_head_dim
        name, offset = self._layout.names[part].replace("{i}", str(i)), self._layout.norm_offset
        weight = self._parts.by_head(f"{name}.weight", heads, head_dim, shapes)
        self.out.add(f"{i}.{part}.weight", (width,), lambda: arranged(lambda: weight() + np.float32(offset)))
        if self._parts.has_bias(part):
            bias = self._parts.by_head(f"{name}.bias", heads, head_dim, shapes)
            self.out.add(f"{i}.{part}.bias", (width,), lambda: arranged(bias))

    def _convolution(self, i: int) -> None:
        """Convert the tensors of a convolution layer."""
        hidden, width = self._config.hidden, self._config.convolution_width
        self.out.add_linear("conv_in", i, (3 * hidden, hidden))
        name = f"{self._layout.names['conv']}.weight".replace("{i}", str(i))
        read = self.stored.use(name, (hidden, 1, width), (hidden, width))
        self.out.add(f"{i}.conv", (width, hidden), lambda: np.ascontiguousarray(read().reshape(hidden, width).T))
        if self._parts.has_bias("conv"):
            self.out.add(f"{i}.conv.bias", (hidden,), self._parts.bias("conv", hidden, i))
        self.out.add_linear("conv_out", i, (hidden, hidden))

    def _table(self, part: str, shape: Shape) -> None:
        """Convert a table that is added as it is."""
        read = self.stored.use(self._parts.name(part, None), *stored_shapes(shape))
        self.out.add(part, shape, lambda: read().reshape(shape))

    def _norm(self, part: str, i: int | None = None) -> None:
        """Convert a norm over the residual stream; one without tensors gets weights of ones."""
        name = part if i is None else f"{i}.{part}"
        shape = (self._config.hidden,)
        if part not in self._layout.names:
            self.out.add(f"{name}.weight", shape, lambda: np.ones(shape, np.float32))
            return
        weight, offset = self._parts.weight(part, shape, i), np.float32(self._layout.norm_offset)
        self.out.add(f"{name}.weight", shape, lambda: weight() + offset)
        if self._parts.has_bias(part):
            self.out.add(f"{name}.bias", shape, self._parts.bias(part, shape[0], i))


def _each(reads: Sequence[Read]) -> Parts:
    """Return a function that reads several tensors."""
    return lambda: [read() for read in reads]
