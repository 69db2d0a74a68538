"""GGUF files of encoders: their tokens and vectors are those of transformers' models from which they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from tests.support.encoder_models import SMALL
from tests.support.engines import needs_kernels

pytestmark = needs_kernels
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "search", "##ing", "a", "text", "##s", ",", "the", "uber", "##e"]
TEXT = "Searching texts, The \u00dcbere zebra"
LAYERS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "attn_output_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_mlp_layernorm": "layer_output_norm",
}
EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}


def saved(file: Path, architecture: str, model: Any, pooling: int) -> Path:
    """Write a model in the layout of llama.cpp's converter."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_uint32(f"{architecture}.pooling_type", pooling)
    if architecture == "nomic-bert":
        writer.add_rope_freq_base(1000.0)
    writer.add_tokenizer_model("bert")
    marked = [p if p.startswith("[") else p[2:] if p.startswith("##") else f"\u2581{p}" for p in PIECES]
    writer.add_token_list(marked)
    writer.add_token_types([3 if p.startswith("[") else 1 for p in PIECES])
    writer.add_token_type_count(2)
    for key, token in {"unknown": "[UNK]", "cls": "[CLS]", "seperator": "[SEP]", "padding": "[PAD]"}.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", PIECES.index(token))
    joint: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in model.state_dict().items():
        name, _, kind = key.rpartition(".")
        parts = name.split(".")
        array = tensor.numpy()
        if parts[0] == "embeddings":
            writer.add_tensor(f"{EMBEDDINGS[parts[1]]}.{kind}", array)
        elif parts[0] in ("encoder", "layers"):
            number, rest = (parts[2], parts[3:]) if parts[0] == "encoder" else (parts[1], parts[2:])
            if rest[-1] in ("q_proj", "k_proj", "v_proj"):
                joint.setdefault(number, {})[rest[-1][0]] = array
            else:
                writer.add_tensor(f"blk.{number}.{LAYERS['.'.join(rest)]}.{kind}", array)
    for number, three in joint.items():
        writer.add_tensor(f"blk.{number}.attn_qkv.weight", np.concatenate([three[part] for part in "qkv"]))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return file


@pytest.mark.parametrize(
    ("architecture", "pooling", "dtype"), [("bert", 1, "float32"), ("bert", 2, "gguf"), ("nomic-bert", 1, "float32")]
)
async def test_a_file_gives_what_its_model_gives(architecture: str, pooling: int, dtype: str, tmp_path: Path) -> None:
    """The tokens are BERT's, lower case and without accents; the vector is pooled as the file says, of length 1."""
    name = {"bert": "Bert", "nomic-bert": "NomicBert"}[architecture]
    torch.manual_seed(4)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, "vocab_size": len(PIECES)})
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    file = saved(tmp_path / "model-f32.gguf", architecture, model, pooling)
    chosen = Settings.load(cache_dir=tmp_path / "cache", dtype=dtype)
    engine = load_engine(parse_model_name(str(file)), chosen, lambda stage, share: None)
    try:
        (text,) = await engine.tokenize_inputs([TEXT])
        words = ["[CLS]", "search", "##ing", "text", "##s", ",", "the", "uber", "##e", "[UNK]", "[SEP]"]
        assert text.ids == tuple(map(PIECES.index, words))
        (pair,) = await engine.tokenize_inputs([("a text", "the")])
        assert pair.types == (0, 0, 0, 0, 1, 1)
        (found,) = await engine.embed([text])
        with torch.inference_mode():
            states = model(torch.tensor([text.ids])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0) if pooling == 1 else states[0], dim=0).numpy()
        assert np.abs(found - expected).max() < (1e-5 if dtype == "float32" else 1e-3)
        assert engine.info.encoder.pooling == ("mean" if pooling == 1 else "cls",)
    finally:
        engine.close()
