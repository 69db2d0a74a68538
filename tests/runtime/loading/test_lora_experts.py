"""LoRA adapters of mixtures of experts: merged on attention and shared experts, refused on experts and routers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from runtime.engine.pytorch.model import weights_from_snapshot
from runtime.engine.pytorch.runner import TorchRunner
from runtime.errors import ModelUnavailable
from runtime.loading.checkpoint import read
from runtime.loading.loader import open_serving
from runtime.model.catalogue import ModelSpec, parse_model_name
from runtime.model.load_timer import Phases
from tests.support.adapters import Tensors, save_by_peft, weights_of, write_adapter
from tests.support.decoders import logits_of, placed
from tests.support.models import train_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
CHANGES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "Lfm2Moe": {
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "num_dense_layers": 0,
        "layer_types": ["conv", "full_attention"],
    },
    "GraniteMoe": {"num_local_experts": 4},
}


@pytest.fixture(scope="module", params=CHANGES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mixture of each family, as transformers saves it."""
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    tokenizer = train_tokenizer()
    torch.manual_seed(1)
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=len(tokenizer), **SHAPE, **CHANGES[request.param]
    )
    getattr(transformers, f"{request.param}ForCausalLM")(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet(stage: str, share: float | None) -> None:
    """Nobody is told of the progress."""


def adapted(model: Path, adapter: Path) -> ModelSpec:
    """The model with the adapter."""
    return replace(parse_model_name(str(model)), id="adapted", adapter=str(adapter))


def merged(model: Path, adapter: Path) -> Any:
    """The model with the adapter in its weights."""
    return read(adapted(model, adapter), model, "cpu", "float32", quiet)[0]


def logits(model: Any) -> Any:
    """Of a fixed prompt."""
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 60)[None]).logits


TARGETS = {
    "attention": r".*self_attn\.(q_proj|k_proj|v_proj|o_proj|out_proj)",
    "two projections": ["q_proj", "v_proj"],
    "the shared experts and their gates": r".*(shared_expert\..*_proj|shared_expert_gate)",
}


CASES = [(name, targets) for name in CHANGES for targets in ("attention", "two projections")]


@pytest.mark.parametrize(
    ("model", "targets"), [*CASES, ("Qwen2Moe", "the shared experts and their gates")], indirect=["model"]
)
def test_other_layers_are_merged(model: Path, tmp_path: Path, targets: str) -> None:
    """The logits are those of the model with the adapter beside its weights, and not those of the plain model."""
    from peft import PeftModel

    folder = save_by_peft(tmp_path / "a", model, target_modules=TARGETS[targets])
    plain = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, folder).eval())
    assert (expected - before).abs().max() > 0.1
    assert (logits(merged(model, folder)) - expected).abs().max() < 1e-3


def test_the_engine_computes_the_merged_mixture(model: Path, tmp_path: Path) -> None:
    """The PyTorch engine's logits, through a snapshot, are those of the model with the adapter beside its weights."""
    from peft import PeftModel

    folder = save_by_peft(tmp_path / "a", model, target_modules=["q_proj", "v_proj"])
    expected = logits(
        PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(model), folder).eval()
    )
    snapshot = open_serving(adapted(model, folder), "float32", tmp_path, quiet, Phases())
    weights = weights_from_snapshot(snapshot, torch.float32, torch.device("cpu"))
    assert snapshot.facts.decoder.experts is not None
    runner = TorchRunner(snapshot.facts.decoder, weights, kv_bytes=2**22)
    assert (logits_of(runner, placed(range(3, 60), range(4))) - expected[0]).abs().max() < 1e-3


def refusal(model: Path, adapter: Path) -> str:
    """The message."""
    with pytest.raises(ModelUnavailable) as caught:
        merged(model, adapter)
    return caught.value.message


def pair(module: str, outputs: int, inputs: int) -> Tensors:
    """A and B of a module."""
    return {
        f"base_model.model.{module}.lora_A.weight": np.ones((4, inputs), np.float32),
        f"base_model.model.{module}.lora_B.weight": np.ones((outputs, 4), np.float32),
    }


@pytest.mark.parametrize("target", ["expert", "router", "router in full"])
def test_experts_and_routers_are_refused_by_name(model: Path, tmp_path: Path, target: str) -> None:
    """By the tensor's name, also beside projections of the attention that could be merged."""
    names = {name.removesuffix(".weight"): value.shape for name, value in weights_of(model).items()}
    q = next(name for name in names if name.endswith("q_proj"))
    parts = (".experts.0.", "input_linear") if target == "expert" else (".gate", ".router.layer")
    module = next(name for name in names if any(part in name for part in parts))
    outputs, inputs = names[module][-2:]
    options: dict[str, Any] = {"target_modules": ["q_proj", module.rpartition(".")[2]]}
    tensors = pair(module, outputs, inputs)
    if target == "router in full":
        options = {"target_modules": ["q_proj"], "modules_to_save": [module.rpartition(".")[2]]}
        tensors = {f"base_model.model.{module}.weight": np.ones((outputs, inputs), np.float32)}
    folder = write_adapter(tmp_path / "a", pair(q, *names[q]) | tensors, r=4, lora_alpha=4, **options)
    message = refusal(model, folder)
    assert message.startswith(f"adapter a cannot be served: base_model.model.{module}.")
    assert "changes the experts or a router of" in message


@pytest.mark.parametrize("model", ["Mixtral", "Qwen2Moe", "Lfm2Moe"], indirect=True)
def test_parameters_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    """peft's option for stacked experts."""
    folder = save_by_peft(tmp_path / "a", model, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    assert "target_parameters is an option that cannot be merged" in refusal(model, folder)
