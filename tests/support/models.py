"""Creates small real models: seeded random weights, and a tokenizer trained on a text of this repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(
    *,
    first: str = "<|endoftext|>",
    control: tuple[str, ...] = (),
    template: str | None = None,
    normalizer: Any = None,
) -> Any:
    """Return a byte-level BPE tokenizer of 600 tokens, with ``first`` and ``control`` as control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[first, *control],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((ROOT / "LICENSE").read_text().splitlines(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=first, eos_token=first)
    fast.chat_template = template
    return fast


def save_tiny_gpt2(folder: Path) -> Path:
    """Save a GPT-2 of 2 layers: learned positions, no padding token, no chat template, a context of 128."""
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
    """Save a Llama of 2 layers: rotary positions, grouped-query attention, ChatML control tokens and template.

    Only one of its tokens ends a text, so that greedy texts are long enough to compare.

    Args:
        folder: the model's folder.
        changes: changes to its configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    control = ("<|im_start|>", "<|im_end|>")
    tokenizer = train_tokenizer(first="<|begin_of_text|>", control=control, template=CHATML)
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


def add_key(writer: Any, key: str, value: Any) -> None:
    """Add metadata to a GGUF file, with the value type that converters use for it."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def save_tiny_gguf(
    file: Path, llama: Path, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None
) -> Path:
    """Save the tiny Llama of a folder as a float32 GGUF file, in the layout of llama.cpp's converter.

    Args:
        file: the new file.
        llama: the model's folder.
        keys: further metadata, which replaces the file's own under the same key.
        tensors: further tensors.
    """
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
    writer.add_tokenizer_pre("gpt-2")
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    control = set(tokenizer.added_tokens_decoder)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in control else 1 for i in range(len(tokens))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
    for key, value in (keys or {}).items():
        writer.kv_data[0].pop(key, None)
        add_key(writer, key, value)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)

    def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:  # llama.cpp rotates adjacent pairs, not halves
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


def rewrite_gguf(
    source: Path,
    file: Path,
    *,
    names: Callable[[str], str | None] = lambda name: name,
    extra: Mapping[str, Any] | None = None,
    split_tensors: int = 0,
) -> Path:
    """Copy a GGUF file with changes.

    Args:
        source: the GGUF file.
        file: the copy's path.
        names: returns the new name of a tensor; None leaves the tensor out.
        extra: float32 tensors to add.
        split_tensors: the number of tensors of each part, named as gguf-split does; 0 does not split.

    Returns:
        The copy, or its first part.
    """
    import gguf

    from runtime.model.gguf_split import parts

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents(), split_max_tensors=split_tensors)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            kind, *element = dict.fromkeys(field.types)
            writer.add_key_value(key, field.contents(), kind, element[0] if element else None)
    tensors = {name: tensor for tensor in reader.tensors if (name := names(tensor.name)) is not None}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next((part for part in file.parent.glob(f"{file.stem}-00001-of-*.gguf") if parts(part)[0] == part), file)


def with_tensors(source: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Copy a checkpoint's folder with changed tensors.

    Args:
        source: the folder, with one safetensors file.
        folder: the copy's path.
        change: returns the new tensors for the old ones.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = change(load_file(folder / "model.safetensors"))
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_multimodal(folder: Path, kind: str, **changes: Any) -> Path:
    """Save a tiny model with a vision tower.

    Args:
        folder: the model's folder.
        kind: its ``model_type``.
        changes: changes to its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = layers | {"vocab_size": 600, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    text |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    vision = layers | {"image_size": 28, "patch_size": 14}
    defaults = AutoConfig.for_model(kind).to_dict()
    parts = {
        name: {key: value for key, value in shape.items() if key in defaults[name]}
        | {"model_type": defaults[name]["model_type"]}
        for name, shape in (("text_config", text), ("vision_config", vision))
    }
    torch.manual_seed(3)
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **parts, **changes)).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder
