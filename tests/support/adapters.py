"""Creates small LoRA adapters in peft's format: by hand, or with peft itself where its options are under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Tensors = dict[str, NDArray[np.float32]]

SAVED = {  # peft's default options, as it saves them
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "auto_mapping": None,
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "use_rslora": False,
}


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """Write an adapter's two files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SAVED | config))
    return folder


def weights_of(model: Path) -> Tensors:
    """Return a checkpoint's float32 tensors."""
    return dict(load_file(model / "model.safetensors"))


def random_lora(model: Path, targets: tuple[str, ...], rank: int, seed: int = 3) -> Tensors:
    """Return seeded A and B matrices for every module of a checkpoint whose name ends in a target."""
    dice = np.random.default_rng(seed)
    tensors = {}
    for name, weight in weights_of(model).items():
        module = name.removesuffix(".weight")
        if module.endswith(targets) and module != name:
            outputs, inputs = weight.shape if "layers." in name else weight.shape[::-1]  # GPT-2 keeps [in, out]
            prefix = "base_model.model." + module
            tensors[f"{prefix}.lora_A.weight"] = dice.normal(0, 0.3, (rank, inputs)).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = dice.normal(0, 0.3, (outputs, rank)).astype(np.float32)
    return tensors


def save_lora(folder: Path, model: Path, *, rank: int = 4, alpha: float = 8, seed: int = 3, **config: Any) -> Path:
    """Save a plain adapter of a tiny model's attention."""
    targets = ("q_proj", "v_proj") if "llama" in model.name else ("c_attn",)
    tensors = random_lora(model, targets, rank, seed)
    return write_adapter(folder, tensors, **{"r": rank, "lora_alpha": alpha, "target_modules": list(targets), **config})


def save_by_peft(folder: Path, model: Path, **options: Any) -> Path:
    """Save an adapter with peft, after a seeded random step of every trained tensor.

    Args:
        folder: the adapter's folder.
        model: the checkpoint's folder.
        options: options of peft's ``LoraConfig``.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder)
    return folder
