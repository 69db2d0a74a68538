"""The encoder families: models whose tokens attend in both directions, and decoders that are used as encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import Activation, DecoderConfig, UnsupportedDecoder
from runtime.model.families.family import Description, Family
from runtime.model.families.gemma import GEMMA
from runtime.model.families.gpt import GPT
from runtime.model.families.llama import LLAMA
from runtime.model.families.options import Options, activation, alibi_slopes, decoder, one_rotation, require
from runtime.model.families.parallel import PARALLEL
from runtime.model.families.rotary import rope_parameters, rotation
from runtime.model.families.sigmoid_experts import SIGMOID_EXPERTS
from runtime.model.families.softmax_experts import SOFTMAX_EXPERTS

DECODERS: Mapping[str, Family] = {**LLAMA, **GEMMA, **GPT, **PARALLEL, **SOFTMAX_EXPERTS, **SIGMOID_EXPERTS}

_PLAIN = ("embed", "positions", "token_types", "relative_bias")  # parts without a bias
_HEADS: tuple[str, ...] = (
    r"pooler\.",
    r"classifier\.",
    r"pre_classifier\.",
    r"head\.",
    r"cls\.",
    r"lm_head\.",
    r"decoder\.",
    r"score\.",
)
_HEADS += (r"vocab_(transform|layer_norm|projector)\.", r"(.*\.)?position_ids$", r"(.*\.)?token_type_ids$")
_HEADS += (r".*inv_freq$",)
"""Heads, of which ``runtime.loading.encoder_stages`` reads those that count, and buffers."""

_BERT = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "attention_out": "encoder.layer.{i}.attention.output.dense",
    "attention_post_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
    "mlp_post_norm": "encoder.layer.{i}.output.LayerNorm",
}
_JINA_BERT = {
    "gate_up": "encoder.layer.{i}.mlp.gated_layers",
    "down": "encoder.layer.{i}.mlp.wo",
    "mlp_post_norm": "encoder.layer.{i}.mlp.layernorm",
}
_MPNET = {
    "relative_bias": "encoder.relative_attention_bias",
    "q": "encoder.layer.{i}.attention.attn.q",
    "k": "encoder.layer.{i}.attention.attn.k",
    "v": "encoder.layer.{i}.attention.attn.v",
    "attention_out": "encoder.layer.{i}.attention.attn.o",
    "attention_post_norm": "encoder.layer.{i}.attention.LayerNorm",
}
_DISTILBERT = {
    "q": "transformer.layer.{i}.attention.q_lin",
    "k": "transformer.layer.{i}.attention.k_lin",
    "v": "transformer.layer.{i}.attention.v_lin",
    "attention_out": "transformer.layer.{i}.attention.out_lin",
    "attention_post_norm": "transformer.layer.{i}.sa_layer_norm",
    "up": "transformer.layer.{i}.ffn.lin1",
    "down": "transformer.layer.{i}.ffn.lin2",
    "mlp_post_norm": "transformer.layer.{i}.output_layer_norm",
}
_NOMIC = {
    "q": "layers.{i}.self_attn.q_proj",
    "k": "layers.{i}.self_attn.k_proj",
    "v": "layers.{i}.self_attn.v_proj",
    "attention_out": "layers.{i}.self_attn.o_proj",
    "attention_post_norm": "layers.{i}.post_attention_layernorm",
    "gate": "layers.{i}.mlp.gate_proj",
    "up": "layers.{i}.mlp.up_proj",
    "down": "layers.{i}.mlp.down_proj",
    "mlp_post_norm": "layers.{i}.post_mlp_layernorm",
}
_MODERNBERT = {
    "embed": "embeddings.tok_embeddings",
    "embed_norm": "embeddings.norm",
    "attention_norm": "layers.{i}.attn_norm",
    "qkv": "layers.{i}.attn.Wqkv",
    "attention_out": "layers.{i}.attn.Wo",
    "mlp_norm": "layers.{i}.mlp_norm",
    "gate_up": "layers.{i}.mlp.Wi",
    "down": "layers.{i}.mlp.Wo",
    "final_norm": "final_norm",
}


def _encoder(options: Options, **fields: Any) -> DecoderConfig:
    """Return a model with LayerNorm behind each sum, as BERT (arXiv:1810.04805). Arguments as for ``decoder``."""
    common = {
        "norm": "layer",
        "norm_epsilon": options["layer_norm_eps"],
        "activation": activation(options["hidden_act"]),
        "gated": False,
        "tied": True,  # it has no output head
        "bidirectional": True,
        "embedding_norm": True,
        "pre_norm": False,
        "post_norm": True,
        "norm_after_sum": True,
        "final_norm": False,
    }
    return decoder(options, **{**common, **fields})


def _layout(
    names: Mapping[str, str], prefix: str, *, biases: Iterable[str] | None = None, **fields: Any
) -> CheckpointLayout:
    """Return a layout in which, unless ``biases`` says otherwise, all linear layers and norms have a bias."""
    parts = frozenset(names) - frozenset(_PLAIN) if biases is None else frozenset(biases)
    return CheckpointLayout(names, ignored=_HEADS, prefixes=(prefix,), biases=parts, **fields)


def _bert(options: Options) -> Description:
    require(options, is_decoder=False, add_cross_attention=False)
    kind = options.get("position_embedding_type") or "absolute"
    if kind == "alibi":
        return _jina_bert(options)
    if kind != "absolute":
        raise UnsupportedDecoder(f"positions of type {kind}")
    types = options["type_vocab_size"]
    config = _encoder(options, learned_positions=True, token_types=types)
    names = _BERT if types else {part: name for part, name in _BERT.items() if part != "token_types"}
    return config, _layout(names, "bert.")


def _jina_bert(options: Options) -> Description:
    """Read Jina's BERT (arXiv:2310.19923), whose configuration says "bert": ALiBi and a gated MLP."""
    functions: dict[Any, Activation] = {"geglu": "gelu", "reglu": "relu"}
    if (kind := options.get("feed_forward_type")) not in functions:
        raise UnsupportedDecoder(f"a feed-forward network of type {kind}")
    config = _encoder(
        options,
        gated=True,
        activation=functions[kind],
        alibi_slopes=alibi_slopes(options["num_attention_heads"]),
        token_types=options["type_vocab_size"],
    )
    names = {part: name for part, name in {**_BERT, **_JINA_BERT}.items() if part not in ("positions", "up")}
    return config, _layout(names, "bert.", biases=names.keys() - {"gate_up", *_PLAIN})


def _roberta(options: Options) -> Description:
    """Read RoBERTa (arXiv:1907.11692), XLM-R or CamemBERT: their positions begin behind that of the padding token."""
    config, names = _bert(options)
    return _shifted(config, replace(names, prefixes=("roberta.",)), options["pad_token_id"] + 1)


def _shifted(config: DecoderConfig, names: CheckpointLayout, offset: int) -> Description:
    """Return a model whose first rows of the position embeddings are not used."""
    return replace(config, context_length=config.context_length - offset), replace(names, position_offset=offset)


def _mpnet(options: Options) -> Description:
    config = _encoder(options, learned_positions=True, relative_buckets=32)  # transformers' model ignores the option
    names = {part: name for part, name in {**_BERT, **_MPNET}.items() if part != "token_types"}
    return _shifted(config, _layout(names, "mpnet."), 2)


def _distilbert(options: Options) -> Description:
    names = {part: name for part, name in {**_BERT, **_DISTILBERT}.items() if part != "token_types"}
    return _encoder(options, learned_positions=True), _layout(names, "distilbert.")


def _nomic_bert(options: Options) -> Description:
    config = _encoder(
        options,
        gated=True,
        token_types=options["type_vocab_size"],
        rotations=(one_rotation(options, theta=1000.0),),
    )
    names = {part: name for part, name in {**_BERT, **_NOMIC}.items() if part != "positions"}
    return config, _layout(names, "nomic_bert.", biases=("embed_norm", "attention_post_norm", "mlp_post_norm"))


def _modernbert(options: Options) -> Description:
    """Read ModernBERT (arXiv:2412.13663): layers with a window between those with full attention."""
    count, interval = options["num_hidden_layers"], options.get("global_attn_every_n_layers") or 3
    types = options.get("layer_types") or [
        "sliding_attention" if i % interval else "full_attention" for i in range(count)
    ]
    if other := set(types) - {"full_attention", "sliding_attention"}:
        raise UnsupportedDecoder(f"layers of type {min(map(str, other))}")
    window = options["local_attention"] // 2 + 1  # half on each side, and the token itself
    width = options["hidden_size"] // options["num_attention_heads"]
    thetas = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
    ropes = [rope_parameters(options, theta=float(options[theta]), layer_type=kind) for kind, theta in thetas.items()]
    config = _encoder(
        options,
        gated=True,
        activation=activation(options["hidden_activation"]),
        pre_norm=True,
        post_norm=False,
        norm_after_sum=False,
        final_norm=True,
        windows=[window if kind == "sliding_attention" else 0 for kind in types],
        rotations=tuple(rotation(rope, width, options["max_position_embeddings"]) for rope in ropes),
    )
    layers = [
        replace(layer, rotation=int(kind == "sliding_attention"), attention_norm=i > 0)
        for i, (layer, kind) in enumerate(zip(config.layers, types, strict=True))
    ]
    norms = ("embed_norm", "attention_norm", "mlp_norm", "final_norm")
    switches = {"norm_bias": norms, "attention_bias": ("qkv", "attention_out"), "mlp_bias": ("gate_up", "down")}
    biases = [part for option, parts in switches.items() if options.get(option) for part in parts]
    return replace(config, layers=tuple(layers)), _layout(_MODERNBERT, "model.", biases=biases)


def _used_decoder(options: Options) -> Description:
    """Read a decoder family's model as an encoder: its output head does not count."""
    bidirectional = bool(options.get("use_bidirectional_attention"))
    if bidirectional:  # Gemma 3, whose window is then that of both sides together
        window = options["sliding_window"] // 2 + 1
        options = {**options, "use_bidirectional_attention": False, "sliding_window": window}
    config, names = DECODERS[options["model_type"]].read({**options, "tie_word_embeddings": True})
    parts = {part: name for part, name in names.names.items() if part != "head"}
    layout = replace(names, names=parts, ignored=(*names.ignored, r"lm_head\.", r"score\."))
    return replace(config, tied=True, bidirectional=bidirectional), layout


_BERT_OPTIONS = {
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
_ROBERTA_OPTIONS = {**_BERT_OPTIONS, "pad_token_id": 1}

ENCODERS: Mapping[str, Family] = {
    "bert": Family("BertModel", _bert, _BERT_OPTIONS),
    "roberta": Family("RobertaModel", _roberta, _ROBERTA_OPTIONS),
    "xlm-roberta": Family("XLMRobertaModel", _roberta, _ROBERTA_OPTIONS),
    "camembert": Family("CamembertModel", _roberta, _ROBERTA_OPTIONS),
    "mpnet": Family("MPNetModel", _mpnet, {**_BERT_OPTIONS, "pad_token_id": 1}),
    "distilbert": Family(
        "DistilBertModel",
        _distilbert,
        _BERT_OPTIONS,
        {
            "dim": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "hidden_dim": "intermediate_size",
            "activation": "hidden_act",
        },
    ),
    "nomic_bert": Family(
        "NomicBertModel", _nomic_bert, {**_BERT_OPTIONS, "hidden_act": "silu", "max_position_embeddings": 2048}
    ),
    "modernbert": Family(
        "ModernBertModel",
        _modernbert,
        {
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "hidden_activation": "gelu",
            "max_position_embeddings": 8192,
            "local_attention": 128,
            "global_rope_theta": 160_000.0,
            "local_rope_theta": 10_000.0,
        },
        {"norm_eps": "layer_norm_eps"},
    ),
    **{name: replace(family, read=_used_decoder) for name, family in DECODERS.items() if name != "gemma3"},
}
"""The families of encoders by the ``model_type`` of their configurations."""
