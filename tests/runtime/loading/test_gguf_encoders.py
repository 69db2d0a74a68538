"""GGUF files of encoders: their tokens and vectors are those of transformers' models from which they were made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from runtime.encoder_types import EncoderInput
from runtime.errors import ModelUnavailable
from runtime.loading.encoder_folder import YES_OR_NO
from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from tests.support import jina_bert
from tests.support.encoder_models import NO_TOKENS, SMALL
from tests.support.engines import needs_kernels
from tests.support.gguf_models import save_gguf

pytestmark = needs_kernels


@contextmanager
def loaded(file: Path, cache: Path, **settings: Any) -> Iterator[Any]:
    chosen = Settings.load(cache_dir=cache, **settings)
    engine = load_engine(parse_model_name(str(file)), chosen, lambda stage, share: None)
    try:
        yield engine
    finally:
        engine.close()


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "search", "##ing", "a", "text", "##s", ",", "the", "uber", "##e"]
UNIGRAMS = ["<s>", "<pad>", "</s>", "<unk>", "\u2581what", "\u2581a", "\u2581text", "s", "\u2581is", "\u2581", "e"]
HEADS = {"classifier.dense": "cls", "classifier.out_proj": "cls.output", "classifier": "cls.output"}
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
    "mlp.gated_layers": "ffn_up",
    "mlp.wo": "ffn_down",
    "mlp.layernorm": "layer_output_norm",
}
EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}


def saved(
    file: Path,
    architecture: str,
    model: Any,
    pooling: int | None,
    labels: list[str] | None = None,
    *,
    apart: bool = False,
) -> Path:
    """Write a model in the layout of llama.cpp's converter.

    Args:
        apart: whether the gate has a tensor of its own, as in older files of Jina's models.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_uint32(f"{architecture}.pooling_type", pooling)
    if labels:
        writer.add_classifier_output_labels(labels)
    if architecture == "nomic-bert":
        writer.add_rope_freq_base(1000.0)
    (add_scored_pieces if model.config.model_type == "xlm-roberta" else add_word_pieces)(writer)
    joint: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in model.state_dict().items():
        name, _, kind = key.removeprefix("roberta.").rpartition(".")
        parts = name.split(".")
        array = tensor.numpy()
        if name == "embeddings.position_embeddings" and model.config.model_type == "xlm-roberta":
            array = array[2:]
        if parts[0] == "embeddings":
            writer.add_tensor(f"{EMBEDDINGS[parts[1]]}.{kind}", array)
        elif name in HEADS:
            writer.add_tensor(f"{HEADS[name]}.{kind}", array)
        elif parts[0] in ("encoder", "layers"):
            number, rest = (parts[2], parts[3:]) if parts[0] == "encoder" else (parts[1], parts[2:])
            if rest[-1] in ("q_proj", "k_proj", "v_proj"):
                joint.setdefault(number, {})[rest[-1][0]] = array
            elif rest[-1] == "gated_layers" and apart:
                for half, values in zip(("gate", "up"), np.split(array, 2), strict=True):
                    writer.add_tensor(f"blk.{number}.ffn_{half}.weight", values)
            else:
                writer.add_tensor(f"blk.{number}.{LAYERS['.'.join(rest)]}.{kind}", array)
    for number, three in joint.items():
        writer.add_tensor(f"blk.{number}.attn_qkv.weight", np.concatenate([three[part] for part in "qkv"]))
    finish(writer)
    return file


def finish(writer: gguf.GGUFWriter) -> None:
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()


def add_scored_pieces(writer: gguf.GGUFWriter) -> None:
    """Write XLM-R's kind of vocabulary: unigrams, with a separator between the two texts of a pair."""
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(UNIGRAMS)
    writer.add_token_scores([-float(i) for i in range(len(UNIGRAMS))])
    writer.add_token_types([3, 3, 3, 2] + [1] * (len(UNIGRAMS) - 4))
    writer.add_token_type_count(1)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    for key, number in {"bos": 0, "padding": 1, "eos": 2, "seperator": 2, "unknown": 3}.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    for key in ("bos", "eos", "sep"):
        writer.add_bool(f"tokenizer.ggml.add_{key}_token", True)


def add_word_pieces(writer: gguf.GGUFWriter) -> None:
    """Write BERT's kind of vocabulary."""
    writer.add_tokenizer_model("bert")
    marked = [p if p.startswith("[") else p[2:] if p.startswith("##") else f"\u2581{p}" for p in PIECES]
    writer.add_token_list(marked)
    writer.add_token_types([3 if p.startswith("[") else 1 for p in PIECES])
    writer.add_token_type_count(2)
    for key, token in {"unknown": "[UNK]", "cls": "[CLS]", "seperator": "[SEP]", "padding": "[PAD]"}.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", PIECES.index(token))


def wide(model: Any) -> Any:
    """Return a model with random weights of a size at which everything shows."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "pooling", "dtype", "apart"),
    [
        ("bert", 1, "float32", False),
        ("bert", 2, "gguf", False),
        ("nomic-bert", 1, "float32", False),
        ("jina-bert-v2", 1, "float32", False),
        ("jina-bert-v2", 1, "gguf", True),
    ],
)
async def test_a_file_gives_what_its_model_gives(
    architecture: str, pooling: int, dtype: str, apart: bool, tmp_path: Path
) -> None:
    """The tokens are BERT's, lower case and without accents; the vector is pooled as the file says, of length 1."""
    name = {"bert": "Bert", "nomic-bert": "NomicBert", "jina-bert-v2": "JinaBert"}[architecture]
    torch.manual_seed(4)
    library: Any = jina_bert if name == "JinaBert" else transformers
    config = getattr(library, f"{name}Config")(**{**SMALL, "vocab_size": len(PIECES)})
    model = wide(getattr(library, f"{name}Model")(config))
    file = saved(tmp_path / "model-f32.gguf", architecture, model, pooling, apart=apart)
    with loaded(file, tmp_path / "cache", dtype=dtype) as engine:
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


@pytest.mark.parametrize(("pooling", "labels"), [(None, ["LABEL_0"]), (4, None), (4, ["good", "bad", "none"])])
async def test_a_classification_head_is_that_of_the_model(
    pooling: int | None, labels: list[str] | None, tmp_path: Path
) -> None:
    """A head of one class is a cross-encoder's, whether or not the file has llama.cpp's kind of pooling for it."""
    torch.manual_seed(5)
    count = len(labels or ["one"])
    options = {**SMALL, "vocab_size": len(UNIGRAMS), "pad_token_id": 1, "type_vocab_size": 1, "num_labels": count}
    config = transformers.XLMRobertaConfig(**{**options, "max_position_embeddings": 162})
    model = wide(transformers.XLMRobertaForSequenceClassification(config))
    config.max_position_embeddings = 160  # of which the file has those that are used
    file = saved(tmp_path / "model-f32.gguf", "bert", model, pooling, labels)
    with loaded(file, tmp_path / "cache", dtype="float32") as engine:
        (text,) = await engine.tokenize_inputs([("what is", "a texts")])
        assert [UNIGRAMS[token] for token in text.ids] == [
            *("<s>", "\u2581what", "\u2581is", "</s>", "</s>", "\u2581a", "\u2581text", "s", "</s>")
        ]
        with torch.inference_mode():
            expected = model(torch.tensor([text.ids])).logits[0].numpy()
        (found,) = await engine.classify([text])
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        assert engine.info.encoder.tasks == (("rerank", "classify") if count == 1 else ("classify",))
        assert engine.info.encoder.labels == tuple(labels or ["LABEL_0"])


async def test_a_decoder_that_answers_yes_or_no(tmp_path: Path) -> None:
    """The head has the rows of the two tokens, whose logits' difference counts; another question is refused by name."""
    torch.manual_seed(6)
    sizes = {**SMALL, **NO_TOKENS, "vocab_size": 300, "num_key_value_heads": 2, "max_position_embeddings": 512}
    model = wide(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, tie_word_embeddings=True)))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    keys = {
        "context_length": 512,
        "embedding_length": 48,
        "feed_forward_length": 72,
        "block_count": 3,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": model.config.head_dim,
        "attention.value_length": model.config.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": float(model.config.rope_parameters["rope_theta"]),
        "pooling_type": 4,
        "classifier.output_labels": ["yes", "no"],
    }
    text = YES_OR_NO.text.replace("{instruction}", YES_OR_NO.instruction)
    question = YES_OR_NO.prefix + text + YES_OR_NO.suffix
    vocabulary = byte_vocabulary()
    head = {"cls.output.weight": state["model.embed_tokens.weight"][[7, 9]]}
    ids = tuple(range(5, 30))
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    for asked in (question, "{query}? {document}"):
        file = tmp_path / f"{len(asked)}" / "model-f32.gguf"
        file.parent.mkdir()
        tokenizer = vocabulary | {"tokenizer.chat_template.rerank": asked}
        save_gguf(file, "qwen3", state, keys, tokenizer, more=head)
        if asked != question:
            with pytest.raises(ModelUnavailable, match=r"chat_template\.rerank"):
                load_engine(parse_model_name(str(file)), Settings.load(engine="fast"), lambda stage, share: None)
            continue
        with loaded(file, tmp_path / "cache", dtype="float32") as engine:
            (found,) = await engine.classify([EncoderInput(ids)])
            assert found.tolist() == pytest.approx([float(logits[7] - logits[9])], rel=1e-3, abs=1e-3)
            (pair,) = await engine.tokenize_inputs([("what", "this")])
            assert len(pair.ids) > 200
            assert engine.info.encoder.tasks == ("rerank",)


def byte_vocabulary() -> dict[str, Any]:
    """Return a byte-level vocabulary without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|im_start|>", "<|im_end|>", *alphabet, *(f"[{i}]" for i in range(300 - 2 - len(alphabet)))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * 298,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 1,
    }
