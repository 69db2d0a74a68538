"""Small real models, made on the spot: seeded random weights and a tokenizer trained on a text of this repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(*, control: tuple[str, ...] = (), template: str | None = None, normalizer: Any = None) -> Any:
    """A byte-level BPE tokenizer of 600 tokens, ``<|endoftext|>`` (and ``control``) its control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", *control],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((ROOT / "LICENSE").read_text().splitlines(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    fast.chat_template = template
    return fast


def save_tiny_gpt2(folder: Path) -> Path:
    """A GPT-2 of 2 layers: learned positions, no padding token, no chat template, a context of 128."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = train_tokenizer()
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,  # wide, so that logits differ clearly and a greedy text is not one repeated token
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_llama(folder: Path, **changes: Any) -> Path:
    """A Llama of 2 layers: rotary positions, grouped heads, ChatML control tokens and template.

    Args:
        changes: of its configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(control=("<|im_start|>", "<|im_end|>"), template=CHATML)
    tokenizer.eos_token = "<|im_end|>"
    torch.manual_seed(11)
    shape = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    LlamaForCausalLM(LlamaConfig(**shape | changes)).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_gguf(file: Path, llama: Path) -> Path:
    """The tiny Llama of a folder as a GGUF file, as llama.cpp's converter lays it out (float32)."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    control = set(tokenizer.added_tokens_decoder)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in control else 1 for i in range(len(tokens))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)

    def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:  # llama.cpp rotates neighbours, not halves
        size = weight.shape[0] // heads // 2
        return weight.reshape(heads, 2, size, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"} | {
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for key, weight in model.state_dict().items():
        parts = key.removeprefix("model.").split(".")
        if parts[0] == "layers":
            if parts[3] == "q_proj":
                weight = interleaved(weight, config.num_attention_heads)
            if parts[3] == "k_proj":
                weight = interleaved(weight, config.num_key_value_heads)
            inner = names[parts[2] if parts[3] == "weight" else parts[3]]
            writer.add_tensor(f"blk.{parts[1]}.{inner}.weight", weight.numpy())
        elif parts[0] in ("embed_tokens", "norm"):
            writer.add_tensor(
                "token_embd.weight" if parts[0] == "embed_tokens" else "output_norm.weight", weight.numpy()
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
