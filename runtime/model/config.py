"""The description of a decoder that the fast engine runs: what each step must do, per layer where layers differ.

``runtime.model.families`` reads it from a ``config.json`` or from a GGUF file's metadata. The native and the PyTorch
decoder read only this description, never a family's name. Differences that a rearrangement of the weights removes are
not part of it, see ``runtime.model.checkpoint_layout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from runtime.model.packing import padded_rows

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2"]
NormKind = Literal["rms", "layer"]
LayerKind = Literal["attention", "convolution"]
QKNorm = Literal["none", "head", "full"]
RouterScores = Literal["softmax", "sigmoid"]
KVDType = Literal["float32", "float16", "int8"]

_VALUE_BYTES: dict[KVDType, int] = {"float32": 4, "float16": 2, "int8": 1}


class UnsupportedDecoder(Exception):
    """The fast decoder does not support this model; the message names the unsupported part."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary position embeddings (RoPE, arXiv:2104.09864) of some layers, with any scaling already applied.

    The first ``2 * len(frequencies)`` values of each query and key head are rotated, value ``i`` together with value
    ``i + len(frequencies)``; the others are not.

    Args:
        frequencies: radians per position of each pair.
        factor: factor of the cosines and sines (YaRN, arXiv:2309.00071, section 3.4).
        long_frequencies: the frequencies in texts of more than ``short_context`` tokens, for all of their positions
            (LongRoPE, arXiv:2402.13753); empty if they are the same.
        short_context: maximum length of a text that uses ``frequencies``; 0 without ``long_frequencies``.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0
    long_frequencies: tuple[float, ...] = ()
    short_context: int = 0


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """The mixtures of experts of some layers (arXiv:1701.06538), which stand in the place of their MLPs.

    A layer computes ``sum(weight[e] * mlp[e](x))`` over the chosen experts. The router's logits, ``router @ x`` in
    float32, become scores; the experts with the largest scores, after the correction if there is one, are chosen, of
    equal ones those with the smaller index; the scores without the correction are the weights. A shared expert is an
    MLP that is computed for every token, and its output is added to that sum.

    Args:
        count: number of experts of a layer, without the shared one.
        per_token: number of experts that are chosen for a token.
        intermediate: width inside each expert.
        scores: function of the logits of all experts.
        normalized: whether the weights of a token's experts are divided by their sum. Softmax of the chosen experts'
            logits alone (Mixtral, arXiv:2401.04088) is the same as softmax of all with ``normalized``.
        scale: factor of the weights.
        correction: whether each expert has a correction that is added to its score when experts are chosen
            (arXiv:2408.15664).
        shared_intermediate: width inside the shared expert; 0 for none.
        shared_gate: whether the shared expert's output is multiplied by ``sigmoid(shared_gate @ x)``.
    """

    count: int
    per_token: int
    intermediate: int
    scores: RouterScores = "softmax"
    normalized: bool = False
    scale: float = 1.0
    correction: bool = False
    shared_intermediate: int = 0
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What differs from layer to layer.

    Args:
        kind: attention, or a gated short convolution (LFM2, arXiv:2511.23404).
        window: number of positions that a token attends to, its own included, and as many in the other direction in a
            bidirectional model; 0 for all.
        rotation: index into ``DecoderConfig.rotations``; None for a layer without rotary positions.
        attention_norm: whether attention's input is normalized, in a model with ``pre_norm`` (ModernBERT's first layer
            leaves it out).
        experts: whether the layer has a mixture of experts, that of ``DecoderConfig.experts``, instead of an MLP.
    """

    kind: LayerKind = "attention"
    window: int = 0
    rotation: int | None = None
    attention_norm: bool = True
    experts: bool = False


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder's shape and constants, or an encoder's, whose tokens attend in both directions.

    A layer computes ``x += residual_scale * post_norm(attention(norm(x)))`` and then the same with the MLP; a parallel
    layer gives both the same ``x``. Norms without a tensor of that name are left out (``has_*`` below).

    Args:
        layers: the decoder's layers, first to last.
        hidden: width of the residual stream.
        intermediate: width inside the MLP of layers without experts.
        heads: number of query heads.
        kv_heads: number of key and value heads, each shared by ``heads / kv_heads`` query heads.
        head_dim: width of one head; ``heads * head_dim`` need not equal ``hidden``.
        vocabulary: number of rows of the embedding.
        context_length: maximum number of positions.
        norm: RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450), for all norms of the model.
        norm_epsilon: constant added to the variance in norms.
        activation: activation function of the MLP.
        gated: whether the MLP is ``down(activation(gate(x)) * up(x))`` instead of ``down(activation(up(x)))``.
        tied: whether the output head shares the embedding's weights.
        attention_scale: factor of the attention scores.
        attention_softcap: c of ``c * tanh(score / c)``, applied to the scaled scores; 0 for none.
        alibi_slopes: for each query head, what is taken off a score for each position between the key and the query
            (ALiBi, arXiv:2108.12409); empty for none.
        rotations: the different rotary embeddings that layers refer to.
        learned_positions: whether an embedding of the position is added to that of the token.
        pre_norm: whether attention and MLP get a normalized input.
        post_norm: whether their outputs are normalized before they are added.
        parallel: whether the MLP gets the layer's input rather than the input with attention added.
        shared_norm: whether a parallel layer's MLP gets the input as normalized for attention.
        qk_norm: whether queries and keys are normalized before the rotation, by head or over all heads at once.
        embedding_norm: whether the embeddings are normalized.
        embedding_scale: factor of the token embeddings.
        residual_scale: factor of what attention and MLP add to the residual stream.
        logit_scale: factor of the logits.
        logit_softcap: c of ``c * tanh(logit / c)``, applied to the scaled logits; 0 for none.
        convolution_width: positions that a convolution layer reads, the token's own included; 0 without such layers.
        bidirectional: whether a token attends to the positions behind it, too.
        norm_after_sum: whether ``post_norm`` normalizes the sum of the residual stream and an output instead of the
            output (BERT, arXiv:1810.04805): ``x = post_norm(x + attention(x))``.
        final_norm: whether the last layer's output is normalized.
        token_types: number of token types (BERT's segments), whose embeddings are added to those of tokens; 0 for none.
        relative_buckets: number of buckets of relative positions, each with a bias of the scores for each head (T5,
            arXiv:1910.10683; MPNet, arXiv:2004.09297); 0 for none.
        experts: the mixture of experts of the layers that have one, whose MLPs are gated; None if no layer has.
    """

    layers: tuple[LayerConfig, ...]
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    norm: NormKind
    norm_epsilon: float
    activation: Activation
    gated: bool
    tied: bool
    attention_scale: float
    attention_softcap: float = 0.0
    alibi_slopes: tuple[float, ...] = ()
    rotations: tuple[Rotation, ...] = ()
    learned_positions: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    qk_norm: QKNorm = "none"
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    convolution_width: int = 0
    bidirectional: bool = False
    norm_after_sum: bool = False
    final_norm: bool = True
    token_types: int = 0
    relative_buckets: int = 0
    experts: ExpertsConfig | None = None

    @property
    def padded_head_dim(self) -> int:
        """Width of a head in the weights and in the KV cache, padded to whole panels; the rest is zeros."""
        return padded_rows(self.head_dim)

    @property
    def heads_width(self) -> int:
        """Width of all query heads together, as padded."""
        return self.heads * self.padded_head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys of a position, as padded; the values have the same."""
        return self.kv_heads * self.padded_head_dim

    def kv_position_bytes(self, kv_dtype: KVDType) -> int:
        """Return the bytes of the KV cache for each position, over all layers, as the kernels lay it out.

        In 8 bits, keys have a float32 scale for each 32 values of a head, and values one for each head; the inputs of
        convolutions have 16 bits.
        """
        value_bytes = _VALUE_BYTES[kv_dtype]
        attention = 2 * self.kv_width * value_bytes
        if kv_dtype == "int8":
            attention += 4 * self.kv_heads * (-(-self.padded_head_dim // 32) + 1)
        convolution = padded_rows(self.hidden) * max(2, value_bytes)
        return sum(attention if layer.kind == "attention" else convolution for layer in self.layers)

    @property
    def short_context(self) -> int:
        """Number of tokens from which on a text uses other rotations, minus one; 0 if that never happens."""
        return max((rotation.short_context for rotation in self.rotations), default=0)

    @property
    def up(self) -> str:
        """Name of the matrix that leads into the MLP."""
        return "gate_up" if self.gated else "up"

    def mlp_width(self, layer: int) -> int:
        """Return the width inside a layer's MLP, or inside its shared expert; 0 if the layer has neither."""
        if not self.layers[layer].experts:
            return self.intermediate
        return 0 if self.experts is None else self.experts.shared_intermediate

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain data for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """Build a configuration from the result of ``to_json``, also after a round trip through JSON text.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        layers = tuple(LayerConfig(**layer) for layer in data["layers"])
        rotations = tuple(
            Rotation(**{**item, **{name: tuple(item[name]) for name in ("frequencies", "long_frequencies")}})
            for item in data["rotations"]
        )
        experts = data["experts"]
        changed = {
            "layers": layers,
            "rotations": rotations,
            "alibi_slopes": tuple(data["alibi_slopes"]),
            "experts": None if experts is None else ExpertsConfig(**experts),
        }
        return cls(**{**data, **changed})
