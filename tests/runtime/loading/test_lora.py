"""LoRA adapters in the weights: right by definition and by peft's unmerged models, or refused with the reason."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from handlers.local import build_context, invoke
from runtime.errors import ModelUnavailable, SettingsError
from runtime.loading.adapters import with_adapters
from runtime.loading.checkpoint import read
from runtime.loading.load_engine import load_engine, pull
from runtime.loading.loader import open_serving
from runtime.model.catalogue import CATALOGUE, ModelSpec, parse_model_name
from runtime.model.load_timer import Phases
from runtime.settings import Settings
from runtime.types import Job, SamplingParams
from tests.support.adapters import SAVED, Tensors, random_lora, save_by_peft, save_lora, weights_of, write_adapter
from tests.support.fakes import serving
from tests.support.soak import SOAK

PROMPT = "You may not use this file except in compliance with the"
MODELS = ["tiny_gpt2", "tiny_llama"]


def quiet(stage: str, share: float | None) -> None:
    """Nobody is told of the progress."""


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    """Either tiny model's folder."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def adapted(model: Path, adapter: Path) -> ModelSpec:
    """The model with the adapter."""
    spec = parse_model_name(str(model))
    return replace(spec, id=f"{spec.id}:{adapter.name}", adapter=str(adapter))


def merged(model: Path, adapter: Path) -> Any:
    """The model as the reference engine has it."""
    return read(adapted(model, adapter), model, "cpu", "float32", quiet)[0]


def unmerged(model: Path, adapter: Path) -> Any:
    """The model with the adapter beside its weights, as peft runs it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()


def logits(model: Any) -> Any:
    """Of a fixed prompt."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 60)[None]).logits


@contextmanager
def engine(spec: ModelSpec, cache: Path, **settings: Any) -> Iterator[Any]:
    """A float32 engine, unless the settings say otherwise."""
    made = load_engine(spec, Settings.load(**{"cache_dir": cache, "dtype": "float32", **settings}), quiet)
    try:
        yield made
    finally:
        made.close()


async def greedy(engine: Any, count: int = 24) -> list[int]:
    """The ids that follow the prompt."""
    ids = await engine.encode(PROMPT)
    return [token.id async for token in engine.stream([Job(ids, SamplingParams(max_new_tokens=count, temperature=0))])]


def greedy_by_forward(model: Any, ids: list[int], count: int = 24) -> list[int]:
    """The same from whole forward passes of transformers' model."""
    import torch

    text = list(ids)
    with torch.no_grad():
        for _ in range(count):
            text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
            if text[-1] in (0, 2 if model.config.model_type == "llama" else 0):
                break
    return text[len(ids) :]


# Right


@pytest.mark.parametrize("rslora", [False, True])
def test_the_weights_are_those_of_the_definition(model: Path, tmp_path: Path, rslora: bool) -> None:
    """W + alpha / r B A by numpy (r's square root for rsLoRA, arXiv:2312.03732), each layer with its own rank and
    alpha; all other tensors stay to the bit.
    """
    llama = "llama" in model.name
    target, first = ("q_proj", "model.layers.0.") if llama else ("c_attn", "transformer.h.0.")
    base = weights_of(model)
    wide = {name: value for name, value in random_lora(model, (target,), 6).items() if first in name}
    narrow = {name: value for name, value in random_lora(model, (target,), 2).items() if first not in name}
    options: dict[str, Any] = {"rank_pattern": {f"layers.0.self_attn.{target}" if llama else f"h.0.attn.{target}": 6}}
    options["alpha_pattern"] = dict.fromkeys(options["rank_pattern"], 3.0)
    folder = write_adapter(
        tmp_path / "a", wide | narrow, r=2, lora_alpha=5, target_modules=[target], use_rslora=rslora, **options
    )
    expected = dict(base)
    for name in wide.keys() | narrow.keys():
        if name.endswith("lora_A.weight"):
            rank, alpha = (6, 3.0) if first in name else (2, 5.0)
            scale = alpha / (math.sqrt(rank) if rslora else rank)
            tensors: Tensors = wide | narrow
            delta = scale * tensors[name.replace("lora_A", "lora_B")].astype(np.float64) @ tensors[name]
            key = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            expected[key] = base[key] + (delta if llama else delta.T)
    state = {name: tensor.numpy() for name, tensor in merged(model, folder).state_dict().items()}
    for name, values in expected.items():
        if values is base[name]:
            assert np.array_equal(state[name], values), name
        else:
            np.testing.assert_allclose(state[name], values, rtol=1e-5, atol=1e-5)


ATTENTION = {"tiny_gpt2": ["c_attn"], "tiny_llama": ["q_proj", "o_proj"]}
EMBEDDING = {"tiny_gpt2": "wte", "tiny_llama": "embed_tokens"}
EVERYTHING = {"tiny_gpt2": r".*\.(c_attn|c_proj|c_fc)", "tiny_llama": "all-linear"}
VARIANTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "every linear layer": lambda name: {"target_modules": EVERYTHING[name], "r": 3},
    "rslora": lambda name: {"target_modules": ATTENTION[name], "use_rslora": True},
    "dora": lambda name: {"target_modules": ATTENTION[name], "use_dora": True},
    "one layer": lambda name: {"target_modules": ATTENTION[name], "layers_to_transform": [1]},
    "all biases": lambda name: {"target_modules": ATTENTION[name], "bias": "all"},
    "its own biases": lambda name: {"target_modules": ATTENTION[name], "bias": "lora_only"},
    "a head of its own": lambda name: {"target_modules": ATTENTION[name], "modules_to_save": ["lm_head"]},
    "an embedding of its own": lambda name: {"target_modules": ATTENTION[name], "modules_to_save": [EMBEDDING[name]]},
    "the tied embedding": lambda name: {"target_modules": [*ATTENTION[name], EMBEDDING[name]]},
    "the tied head": lambda name: {"target_modules": [*ATTENTION[name], "lm_head"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_merged_is_what_peft_computes_unmerged(
    variant: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every variant that peft saves, by the logits."""
    model = request.getfixturevalue(name)
    folder = save_by_peft(tmp_path / "a", model, **VARIANTS[variant](name))
    expected = logits(unmerged(model, folder))
    plain = read(parse_model_name(str(model)), model, "cpu", "float32", quiet)[0]
    assert (expected - logits(plain)).abs().max() > 0.1
    assert (logits(merged(model, folder)) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("variant", ["every linear layer", "the tied head"])
@pytest.mark.parametrize("name", MODELS)
async def test_the_engine_says_what_peft_says(
    variant: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The fast engine's greedy tokens are those of the unmerged model's forward passes."""
    model = request.getfixturevalue(name)
    folder = save_by_peft(tmp_path / "a", model, **VARIANTS[variant](name))
    with engine(adapted(model, folder), tmp_path, engine="fast") as fast:
        assert await greedy(fast) == greedy_by_forward(unmerged(model, folder), list(await fast.encode(PROMPT)))


def test_a_bias_of_the_adapters_own_is_added(tiny_gpt2: Path, tmp_path: Path) -> None:
    """``lora_bias``, where the module has one to add it to; on others it is refused."""
    folder = save_by_peft(tmp_path / "a", tiny_gpt2, target_modules=["c_attn"], lora_bias=True)
    assert (logits(merged(tiny_gpt2, folder)) - logits(unmerged(tiny_gpt2, folder))).abs().max() < 1e-3


def test_half_precision_is_merged_in_full(model: Path, tmp_path: Path) -> None:
    """An adapter in float16 is merged in float32; a model asked for in bfloat16 is rounded once, at the end."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = save_lora(tmp_path / "a", model)
    file = folder / "adapter_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(halves, file)
    whole = merged(model, folder).state_dict()
    save_file({name: tensor.float() for name, tensor in halves.items()}, file)
    assert all(torch.equal(whole[name], tensor) for name, tensor in merged(model, folder).state_dict().items())
    rounded = read(adapted(model, folder), model, "cpu", "bfloat16", quiet)[0]
    for name, parameter in rounded.named_parameters():
        assert torch.equal(parameter, whole[name].bfloat16())


# Served


async def test_base_and_adapters_side_by_side(model: Path, tmp_path: Path) -> None:
    """Each says its own, whatever else is loaded, through either engine; the base says what it said before."""
    one, two = save_lora(tmp_path / "dir/one", model, seed=1), save_lora(tmp_path / "dir/two", model, seed=2)
    base, *both = with_adapters([parse_model_name(str(model))], tmp_path / "dir")
    assert [spec.id for spec in both] == [f"{base.id}:one", f"{base.id}:two"]
    with engine(base, tmp_path / "alone") as alone:
        before = await greedy(alone)
    with engine(base, tmp_path) as plain, engine(both[0], tmp_path) as first, engine(both[1], tmp_path) as second:
        said = [await greedy(each) for each in (plain, first, second, plain)]
        assert said[0] == said[3] == before
        assert len({tuple(text) for text in said}) == 3
        ids = list(await plain.encode(PROMPT))
        assert said[1] == greedy_by_forward(unmerged(model, one), ids)
        assert said[2] == greedy_by_forward(unmerged(model, two), ids)
        assert first.info.name == f"{base.id}:one"
    with engine(both[0], tmp_path, engine="reference") as reference:
        assert await greedy(reference) == said[1]


def test_each_adapter_has_a_snapshot_of_its_own(model: Path, tmp_path: Path) -> None:
    """Made once; a changed adapter has another one, and the base's is never touched."""
    folder = save_lora(tmp_path / "shout", model)
    base, spec = parse_model_name(str(model)), adapted(model, folder)

    def opened(spec: ModelSpec) -> tuple[bool, set[str]]:
        phases = Phases()
        open_serving(spec, "float32", tmp_path, quiet, phases)
        return "convert" in phases.seconds, {path.name for path in (tmp_path / "serving").iterdir()}

    _, (untouched,) = opened(base)
    stamp = (tmp_path / "serving" / untouched / "model.json").stat().st_mtime_ns
    converted, folders = opened(spec)
    assert converted
    assert {name.rpartition("-")[0] for name in folders} == {base.id, f"{base.id}+shout"}
    assert opened(spec) == (False, folders)
    save_lora(tmp_path / "shout", model, rank=5)
    converted, more = opened(spec)
    assert converted
    assert len(more) == 3
    assert opened(base) == (False, more)
    assert (tmp_path / "serving" / untouched / "model.json").stat().st_mtime_ns == stamp


async def test_over_http(tiny_llama: Path, tmp_path: Path) -> None:
    """Model and adapters in one service: both at once, unloaded one by one, and a broken one failed with its reason
    while the others go on.
    """
    for seed, name in enumerate(("one", "two")):
        save_lora(tmp_path / "dir" / name, tiny_llama, seed=seed)
    save_lora(tmp_path / "dir/broken", tiny_llama, peft_type="IA3")
    ctx = build_context(
        Settings.load(
            model_name=str(tiny_llama),
            adapters_dir=tmp_path / "dir",
            cache_dir=tmp_path,
            dtype="float32",
            response_cache="off",
        )
    )
    base, one, two, broken = (tiny_llama.name + end for end in ("", ":one", ":two", ":broken"))
    async with serving(ctx, preload=False) as url, aiohttp.ClientSession(url) as http:

        async def text(model: str) -> str:
            body = {"prompt": PROMPT, "model": model, "temperature": 0, "max_new_tokens": 16}
            async with http.post("/complete", json=body) as response:
                return str((await response.json())["text"])

        async def models() -> dict[str, dict[str, Any]]:
            async with http.get("/models") as response:
                return {model["id"]: model for model in (await response.json())["data"]}

        assert {name: model["state"] for name, model in (await models()).items()} == dict.fromkeys(
            (base, broken, one, two), "unloaded"
        )
        said = {name: await text(name) for name in (base, one, two)}
        assert len(set(said.values())) == 3
        together = await asyncio.gather(*(text(name) for name in (base, one, two) * 3))
        assert together == [said[name] for name in (base, one, two)] * 3

        async with http.post(f"/models/{broken}/load", json={"stream": True}) as response:
            assert '"state":"failed"' in await response.text()
        async with http.post("/complete", json={"prompt": "x", "model": broken}) as response:
            assert response.status == 503
            assert "adapter broken cannot be served: it is of type IA3" in (await response.json())["detail"]
        async with http.post(f"/models/{one}/unload") as response:
            assert (await response.json())["state"] == "unloaded"
        found = await models()
        assert [found[name]["state"] for name in (base, one, two, broken)] == ["ready", "unloaded", "ready", "failed"]
        assert "only LORA can be merged" in found[broken]["error"]
        assert [await text(name) for name in (base, one, two)] == [said[name] for name in (base, one, two)]


async def test_an_adapter_as_the_default(tiny_llama: Path, tmp_path: Path) -> None:
    """MODEL_NAME=model:adapter serves that alone; its snapshot can be made ahead of time."""
    folder = save_lora(tmp_path / "dir/one", tiny_llama)
    settings = Settings.load(
        model_name=f"{tiny_llama}:one", adapters_dir=folder.parent, cache_dir=tmp_path, dtype="float32"
    )
    spec = parse_model_name(settings.model_name, adapters=folder.parent)
    pull(spec, settings)
    assert [path.name.rpartition("-")[0] for path in (tmp_path / "serving").iterdir()] == [f"{tiny_llama.name}+one"]
    ctx = build_context(settings)
    answer = await invoke("complete", {"prompt": PROMPT, "max_new_tokens": 16, "temperature": 0}, ctx=ctx)
    assert [status.id for status in ctx.models.status()] == [f"{tiny_llama.name}:one"]
    assert answer["model"] == f"{tiny_llama.name}:one"
    await ctx.models.unload(f"{tiny_llama.name}:one")


def test_a_missing_folder_stops_the_start(tmp_path: Path) -> None:
    """The setting is named before anything is loaded."""
    with pytest.raises(SettingsError, match="ADAPTERS_DIR"):
        build_context(Settings.load(adapters_dir=tmp_path / "none"))


def _shift(base: ModelSpec, folder: Path) -> None:
    """Write an adapter of the embedded model, or of the tiny one."""
    embedded = base.id == EMBEDDED
    layers, hidden, values = (30, 576, 192) if embedded else (2, 64, 32)
    dice = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        for target, outputs in (("q_proj", hidden), ("v_proj", values)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{target}."
            tensors[prefix + "lora_A.weight"] = dice.normal(0, 0.02 if embedded else 0.2, (8, hidden)).astype(
                np.float32
            )
            tensors[prefix + "lora_B.weight"] = dice.normal(0, 0.02 if embedded else 0.2, (outputs, 8)).astype(
                np.float32
            )
    write_adapter(folder, tensors, r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"])


EMBEDDED = "smollm2-135m-instruct"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", *(["embedded"] if SOAK else [])])
async def test_a_gguf_model_with_an_adapter(model: str, tiny_gguf: Path, tmp_path: Path) -> None:
    """From a GGUF file to the fast engine in float32: the reference engine's tokens, and not the base's."""
    base = CATALOGUE[EMBEDDED] if model == "embedded" else parse_model_name(str(tiny_gguf))
    _shift(base, tmp_path / "dir/shift")
    _, spec = with_adapters([base], tmp_path / "dir")
    with engine(spec, tmp_path, engine="reference") as reference, engine(spec, tmp_path) as fast:
        expected = await greedy(reference)
        assert await greedy(fast) == expected
    with engine(base, tmp_path) as plain:
        assert await greedy(plain) != expected
    with engine(spec, tmp_path, dtype="int8") as packed:
        assert packed.info.dtype == "int8"
        assert len(await greedy(packed)) == 24


# Refused

CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "it is of type IA3; only LORA"),
    "no method": ({"peft_type": None}, "it is of type None"),
    "a classifier": ({"task_type": "SEQ_CLS"}, "trained for SEQ_CLS; only CAUSAL_LM"),
    "a changed base": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changes the model's"),
    "layers put in twice": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is an option that cannot"),
    "activated by tokens": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is an option that cannot"),
    "single tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is an option that cannot"),
    "code": ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "megatron_config is an option that cannot"),
    "an unknown option": ({"from_the_future": 1}, "from_the_future is an option that cannot"),
    "modules of another architecture": ({"target_modules": ["w_pack"]}, "has no modules for it"),
    "another rank": ({"r": 5}, "it was trained on another model, vocabulary or rank"),
    "an enormous rank": ({"r": 10**12}, "it was trained on another model, vocabulary or rank"),
    "no rank": ({"r": 0}, "has no modules for it"),
    "a rank of another type": ({"r": "many"}, "has no modules for it"),
    "biases that are not there": ({"bias": "both"}, "has no modules for it"),
    "a pattern that is none": ({"target_modules": "(", "modules_to_save": None}, "has no modules for it"),
    "DoRA without magnitudes": ({"use_dora": True}, "lora_magnitude_vector is missing"),
    "a head that is not there": ({"modules_to_save": ["lm_head"]}, "lm_head.weight is missing"),
}


def refusal(model: Path, folder: Path) -> str:
    """The message, in which no path is."""
    with pytest.raises(ModelUnavailable) as caught:
        merged(model, folder)
    message = caught.value.message
    assert message.startswith(f"adapter {folder.name} cannot be served: ")
    assert str(folder.parent) not in message
    return message


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_options_are_refused_by_name(model: Path, tmp_path: Path, case: str) -> None:
    """What cannot be merged, or does not go with the tensors; nothing of the size asked for is allocated."""
    changes, reason = CONFIGURATIONS[case]
    folder = save_lora(tmp_path / "wrong", model)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    assert reason in refusal(model, folder)


TENSORS: dict[str, tuple[Callable[[Tensors, str], Tensors], str]] = {
    "one is missing": (lambda t, last: {k: v for k, v in t.items() if k != last}, "is missing; "),
    "one is left over": (lambda t, last: t | {last.replace(".1.", ".7."): t[last]}, "has no place for "),
    "another width": (lambda t, last: t | {last: t[last][:-1]}, "it was trained on another model, vocabulary or rank"),
    "no number": (lambda t, last: t | {last: t[last] * np.float32("nan")}, "numbers that are not finite"),
    "none at all": (lambda t, last: {}, "is missing; "),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused_by_name(model: Path, tmp_path: Path, case: str) -> None:
    """They must be those that the configuration asks of this model, and numbers."""
    change, reason = TENSORS[case]
    folder = save_lora(tmp_path / "wrong", model)
    config = json.loads((folder / "adapter_config.json").read_text())
    targets = ("q_proj", "v_proj") if "llama" in model.name else ("c_attn",)
    tensors = random_lora(model, targets, 4)
    write_adapter(folder, change(tensors, max(tensors)), **{**config, **SAVED, "target_modules": list(targets)})
    assert reason in refusal(model, folder)


def test_an_adapter_of_another_model_is_refused(tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """Of another architecture, and of the same one in another size."""
    assert "has no modules for it" in refusal(tiny_llama, save_lora(tmp_path / "gpt2s", tiny_gpt2))
    assert "has no modules for it" in refusal(tiny_gpt2, save_lora(tmp_path / "llamas", tiny_llama))
    from tests.support.models import save_tiny_llama

    wider = save_tiny_llama(tmp_path / "wider-llama", hidden_size=96)
    assert "it was trained on another model" in refusal(tiny_llama, save_lora(tmp_path / "wide", wider))


@pytest.mark.parametrize("how", ["in full", "as a module"])
def test_a_larger_vocabulary_is_refused(tiny_llama: Path, tmp_path: Path, how: str) -> None:
    """The tokenizer that goes with it is not the model's."""
    name = "base_model.model.model.embed_tokens.weight"
    larger = np.zeros((610, 64), np.float32)
    folder = save_lora(tmp_path / "wordy", tiny_llama, modules_to_save=None if how == "in full" else ["embed_tokens"])
    tensors = random_lora(tiny_llama, ("q_proj", "v_proj"), 4) | {name: larger}
    config = json.loads((folder / "adapter_config.json").read_text())
    write_adapter(folder, tensors, **config)
    message = refusal(tiny_llama, folder)
    assert "embed_tokens.weight is [610, 64] where LlamaForCausalLM needs [600, 64]" in message
    assert "vocabulary" in message


def test_embeddings_in_full_are_taken(tiny_llama: Path, tmp_path: Path) -> None:
    """As peft does with those of the model's own size; a tied head follows them."""
    name = "base_model.model.model.embed_tokens.weight"
    folder = save_lora(tmp_path / "a", tiny_llama)
    config = json.loads((folder / "adapter_config.json").read_text())
    trained = weights_of(tiny_llama)["model.embed_tokens.weight"] * np.float32(1.1)
    write_adapter(folder, random_lora(tiny_llama, ("q_proj", "v_proj"), 4) | {name: trained}, **config)
    assert (logits(merged(tiny_llama, folder)) - logits(unmerged(tiny_llama, folder))).abs().max() < 1e-3


@pytest.mark.parametrize(
    "harm", [lambda file: file.write_bytes(b"nothing"), lambda file: file.open("r+b").truncate(99)]
)
def test_damaged_files_are_refused(model: Path, tmp_path: Path, harm: Callable[[Path], object]) -> None:
    """Cut off, or something else."""
    folder = save_lora(tmp_path / "torn", model)
    harm(folder / "adapter_model.safetensors")
    assert "adapter_model.safetensors is damaged; copy it again" in refusal(model, folder)


WRAPPED = ["base_model.model._orig_mod.", "module.base_model.model.", "_orig_mod.base_model.model.module."]


@pytest.mark.parametrize("prefix", WRAPPED)
def test_prefixes_of_wrappers_are_taken_off(tiny_llama: Path, tmp_path: Path, prefix: str) -> None:
    """Those of DataParallel, FSDP and ``torch.compile``, around the adapter or the model."""
    tensors = random_lora(tiny_llama, ("q_proj",), 4)
    renamed = {name.replace("base_model.model.", prefix): tensor for name, tensor in tensors.items()}
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    expected = merged(tiny_llama, write_adapter(tmp_path / "plain", tensors, **options)).state_dict()
    found = merged(tiny_llama, write_adapter(tmp_path / "wrapped", renamed, **options)).state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
    both = write_adapter(tmp_path / "both", tensors | renamed, **options)
    assert "holds tensors twice" in refusal(tiny_llama, both)


def test_a_refused_adapter_costs_no_load(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are looked at before the model's weights are read."""
    from runtime.loading import load_weights

    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(load_weights.AutoModelForCausalLM, "from_pretrained", never)
    assert "of type IA3" in refusal(tiny_llama, save_lora(tmp_path / "a", tiny_llama, peft_type="IA3"))


def test_no_pickle_is_opened(tiny_llama: Path, tmp_path: Path) -> None:
    """The code in it does not run."""
    folder = save_lora(tmp_path / "a", tiny_llama)
    mark = tmp_path / "ran"
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    assert "is a pickle, which can run code" in refusal(tiny_llama, folder)
    assert not mark.exists()
