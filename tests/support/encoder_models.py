"""Small random encoders of every family, as transformers makes them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models as token_models

from runtime.encoder_types import EncoderInput
from runtime.loading.convert import convert
from runtime.loading.snapshot_writer import hold
from runtime.loading.tensor_source import StateDictSource
from runtime.model.families import read_encoder
from runtime.model.packing import SnapshotKind
from runtime.model.snapshot import Facts, Snapshot
from runtime.model.tokenizer import Tokenizer
from tests.support import jina_bert

SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 72,  # not a multiple of 16
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
}
NO_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
WINDOW = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SMALL),
    "bert, tanh": ("Bert", {**SMALL, "hidden_act": "gelu_new", "type_vocab_size": 1, "num_attention_heads": 3}),
    "roberta": ("Roberta", {**SMALL, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", {**SMALL, "pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": ("Camembert", {**SMALL, "pad_token_id": 1}),
    "mpnet": ("MPNet", {**SMALL, "pad_token_id": 1}),
    "jina-bert": ("JinaBert", SMALL),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 101, "dim": 48, "hidden_dim": 72, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 160},
    ),
    "nomic-bert": ("NomicBert", SMALL),
    "modernbert": ("ModernBert", {**SMALL, "local_attention": 24, **NO_TOKENS, "cls_token_id": 0, "sep_token_id": 1}),
    "modernbert, biases": (
        "ModernBert",
        {**SMALL, "local_attention": 17, "attention_bias": True, "mlp_bias": True, "norm_bias": True, **NO_TOKENS}
        | {"cls_token_id": 0, "sep_token_id": 1, "global_attn_every_n_layers": 2},
    ),
    "gemma3, both directions": (
        "Gemma3Text",
        {**SMALL, **NO_TOKENS, **WINDOW, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 21}
        | {"use_bidirectional_attention": True, "query_pre_attn_scalar": 16},
    ),
    "qwen3": ("Qwen3", {**SMALL, **NO_TOKENS, "num_key_value_heads": 2, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {
            **SMALL,
            **NO_TOKENS,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 21,
            "query_pre_attn_scalar": 16,
        }
        | {"attn_logit_softcapping": 5.0},
    ),
    "lfm2": (
        "Lfm2",
        {**SMALL, **NO_TOKENS, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]}
        | {"block_auto_adjust_ff_dim": False},
    ),
    "bloom": ("Bloom", {"vocab_size": 101, "hidden_size": 48, "n_layer": 2, "n_head": 4, **NO_TOKENS}),
    "gpt2": ("GPT2", {"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 160}),
}


def encoder_of(case: str) -> Any:
    """Return a transformers model with random weights, in float32 and in evaluation mode."""
    name, options = CASES[case]
    library: Any = jina_bert if name == "JinaBert" else transformers
    config = getattr(library, f"{name}Config")(**options)
    config._attn_implementation = "eager"
    torch.manual_seed(len(case))
    model = getattr(library, f"{name}Model")(config)
    for _, parameter in model.named_parameters():  # wide, so that what is left out shows
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def states_of(model: Any, text: EncoderInput) -> Any:
    """Return [tokens, hidden] the final states of a text, computed by transformers alone."""
    types = {"token_type_ids": torch.tensor([text.types])} if text.types else {}
    with torch.inference_mode():
        return model(torch.tensor([text.ids]), **types).last_hidden_state[0].numpy()


def snapshot_of_encoder(model: Any, kind: SnapshotKind = "float32") -> Snapshot:
    """Return a snapshot of a transformers model, in memory."""
    decoder, layout = read_encoder(_saved(model))
    weights = convert(decoder, layout, StateDictSource(model.state_dict()), equalize=kind == "int8")
    tokenizer = Tokenizer(Backend(token_models.WordLevel({"a": 0}, unk_token="a")), None, {})
    return hold(Facts("test", None, "Test", 1, kind, decoder, ()), tokenizer, weights)


def _saved(model: Any) -> dict[str, Any]:
    """Return the content of the ``config.json`` from which transformers makes such a model."""
    config: dict[str, Any] = model.config.to_dict()
    if config.get("use_bidirectional_attention"):
        config["sliding_window"] = next(
            v for _, o in CASES.values() if (v := o.get("sliding_window"))
        )  # before halving
    return config
