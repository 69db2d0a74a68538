"""Folders of encoders: sentence-transformers' modules and transformers' classification models, up to the result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from runtime.encoder_types import EncoderInput
from runtime.errors import ModelCannotEncode, ModelUnavailable
from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from runtime.types import Job, SamplingParams
from tests.support.encoder_models import CASES, NO_TOKENS, SMALL, encoder_of
from tests.support.engines import needs_kernels
from tests.support.models import train_tokenizer

pytestmark = needs_kernels
TEXT = EncoderInput(tuple(range(5, 30)))


@contextmanager
def loaded(folder: Path, cache: Path, **settings: Any) -> Iterator[Any]:
    chosen = Settings.load(**{"cache_dir": cache, "dtype": "float32", **settings})
    engine = load_engine(parse_model_name(str(folder)), chosen, lambda stage, share: None)
    try:
        yield engine
    finally:
        engine.close()


def save(model: Any, folder: Path, **files: Any) -> Path:
    """Save a model with a tokenizer and further JSON files, by their names with ``__`` for a slash."""
    model.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    for name, content in files.items():
        file = folder / (name.replace("__", "/") + ".json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return folder


def modules(*kinds: str) -> list[dict[str, Any]]:
    paths = {"Transformer": ""}
    names = [(kind, paths.get(kind, f"{i}_{kind}")) for i, kind in enumerate(kinds)]
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(names)
    ]


async def test_a_folder_of_sentence_transformers_is_read_whole(tmp_path: Path) -> None:
    """Two poolings, a dense module, a norm, normalization, prompts, the length and the similarity."""
    model = encoder_of("bert")
    dense_config: dict[str, Any] = {"in_features": 96, "out_features": 24, "bias": True}
    dense_config |= {"activation_function": "torch.nn.modules.activation.Tanh"}
    folder = save(
        model,
        tmp_path / "model",
        modules=modules("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"),
        sentence_bert_config={"max_seq_length": 40, "do_lower_case": False},
        config_sentence_transformers={
            "prompts": {"query": "query: ", "document": ""},
            "default_prompt_name": "document",
            "similarity_fn_name": "dot",
            "matryoshka_dimensions": [16, 8, 32],
        },
        **{
            "1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "2_Dense__config": dense_config,
            "3_LayerNorm__config": {"dimension": 24},
        },
    )
    dense, norm = torch.nn.Linear(96, 24), torch.nn.LayerNorm(24)
    torch.nn.init.normal_(norm.weight)
    save_file({f"linear.{n}": p.data for n, p in dense.named_parameters()}, folder / "2_Dense/model.safetensors")
    torch.save({f"norm.{n}": p.data for n, p in norm.named_parameters()}, folder / "3_LayerNorm/pytorch_model.bin")
    with torch.inference_mode():
        states = model(torch.tensor([TEXT.ids])).last_hidden_state[0]
        pooled = torch.cat([states[0], states.mean(0)])
        expected = torch.nn.functional.normalize(norm(torch.tanh(dense(pooled))), dim=0).numpy()
    for _ in range(2):  # made from the folder, then from its snapshot
        with loaded(folder, tmp_path / "cache") as engine:
            info = engine.info.encoder
            assert (info.tasks, info.width, info.max_tokens, info.pooling) == (("embed",), 24, 40, ("cls", "mean"))
            assert (info.similarity, info.normalized, info.dimensions) == ("dot", True, (8, 16))
            assert (dict(info.prompts), info.default_prompt) == ({"query": "query: ", "document": ""}, "document")
            assert not engine.info.generates
            (found,) = await engine.embed([TEXT])
            assert np.abs(found - expected).max() < 1e-5
    (folder / "2_Dense/config.json").write_text(json.dumps(dense_config | {"activation_function": "torch.nn.ReLU"}))
    with loaded(folder, tmp_path / "cache") as engine:  # a changed module makes another snapshot
        (other,) = await engine.embed([TEXT])
        assert np.abs(other - expected).max() > 1e-3


CLASSIFIERS = ["bert", "roberta", "distilbert", "mpnet", "modernbert", "modernbert, biases", "qwen3"]


@pytest.mark.parametrize("case", CLASSIFIERS)
async def test_classification_heads_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """The logits of each family's classification model; the labels' names are the model's."""
    name, options = CASES[case]
    names = {0: "bad", 1: "fair", 2: "good"}
    pooling = {"classifier_pooling": "mean"} if case == "modernbert" else {}
    config = getattr(transformers, f"{name}Config")(**options, id2label=names, **pooling)
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.inference_mode():
        expected = model(torch.tensor([TEXT.ids])).logits[0].numpy()
    with loaded(save(model, tmp_path / "model"), tmp_path / "cache") as engine:
        info = engine.info.encoder
        assert (info.tasks, info.labels, info.activation) == (("classify",), ("bad", "fair", "good"), "softmax")
        (found,) = await engine.classify([TEXT])
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "none"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "none"),
    ],
)
async def test_a_single_label_is_a_cross_encoder(options: dict[str, Any], activation: str, tmp_path: Path) -> None:
    """It reranks, with a logit of each pair; the activation is that of sentence-transformers' CrossEncoder."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=1, **options))
    with loaded(save(model, tmp_path / "model"), tmp_path / "cache") as engine:
        assert (engine.info.encoder.tasks, engine.info.encoder.activation) == (("rerank", "classify"), activation)
        assert [len(logits) for logits in await engine.classify([TEXT, TEXT])] == [1, 1]


async def test_a_decoder_that_answers_yes_or_no_reranks(tmp_path: Path) -> None:
    """The logit is the difference of those of "yes" and "no" behind a template; control tokens in texts are texts."""
    options = {**SMALL, **NO_TOKENS, "vocab_size": 600, "num_key_value_heads": 2, "max_position_embeddings": 512}
    torch.manual_seed(2)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**options, tie_word_embeddings=True)).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    folder = save(
        model,
        tmp_path / "model",
        modules=modules("Transformer", "LogitScore"),
        **{"1_LogitScore__config": {"true_token_id": 7, "false_token_id": 9}},
    )
    with torch.inference_mode():
        logits = model(torch.tensor([TEXT.ids])).logits[0, -1]
    with loaded(folder, tmp_path / "cache") as engine:
        assert engine.info.encoder.tasks == ("rerank",)
        (found,) = await engine.classify([TEXT])
        assert found.tolist() == pytest.approx([float(logits[7] - logits[9])], rel=1e-3, abs=1e-4)
        (plain, instructed) = [
            (await engine.tokenize_inputs([("what", "<|endoftext|> this")], prompt=prompt))[0].ids
            for prompt in ("", "Find it")
        ]
        assert plain != instructed
        assert 0 not in plain[1:]
        (cut,) = await engine.tokenize_inputs([("what", "this " * 400)], truncate="end")
        assert len(cut.ids) == 512


async def test_a_reranker_is_known_by_its_name(tmp_path: Path) -> None:
    """A Qwen3 of that name reranks by its tokens "yes" and "no"; without these it is refused, and so is it on
    transformers' modules. Under another name it generates.
    """
    options = {**SMALL, **NO_TOKENS, "vocab_size": 700, "num_key_value_heads": 2, "max_position_embeddings": 512}
    torch.manual_seed(2)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**options, tie_word_embeddings=True)).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    folder = save(model, tmp_path / "My-Qwen3-Reranker-0.1B")
    with pytest.raises(ModelUnavailable, match=""""yes" and "no" are not tokens"""), loaded(folder, tmp_path / "cache"):
        pass
    tokenizer = train_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.inference_mode():
        logits = model(torch.tensor([TEXT.ids])).logits[0, -1]
    with loaded(folder, tmp_path / "cache") as engine:
        assert engine.info.encoder.tasks == ("rerank",)
        (found,) = await engine.classify([TEXT])
        assert found.tolist() == pytest.approx([float(logits[yes] - logits[no])], rel=1e-3, abs=1e-4)
    with pytest.raises(ModelUnavailable, match="answers yes or no"), loaded(folder, tmp_path, engine="reference"):
        pass
    with loaded(folder.rename(tmp_path / "other"), tmp_path / "cache") as engine:
        assert engine.info.generates


@pytest.mark.parametrize("kind", ["CNN", "WordWeights"])
async def test_an_unknown_module_is_named(kind: str, tmp_path: Path) -> None:
    """A module that is not supported is never left out."""
    files = {"modules": modules("Transformer", kind, "Pooling"), f"1_{kind}__config": {}, "2_Pooling__config": {}}
    folder = save(encoder_of("bert"), tmp_path / "model", **files)
    with pytest.raises(ModelUnavailable, match=kind), loaded(folder, tmp_path / "cache", engine="fast"):
        pass


async def test_a_dense_module_without_weights_is_reported(tmp_path: Path) -> None:
    """Missing files and tensors of another shape make the model unavailable, with their names."""
    dense = {"in_features": 48, "out_features": 8, "bias": False, "activation_function": "torch.nn.Identity"}
    files = {"modules": modules("Transformer", "Pooling", "Dense"), "1_Pooling__config": {}, "2_Dense__config": dense}
    folder = save(encoder_of("bert"), tmp_path / "model", **files)
    save_file({"linear.weight": torch.zeros(8, 40)}, folder / "2_Dense/model.safetensors")
    with pytest.raises(ModelUnavailable, match=r"linear\.weight"), loaded(folder, tmp_path / "cache"):
        pass


@pytest.mark.parametrize("classifies", [False, True])
async def test_other_encoders_run_on_transformers(classifies: bool, tmp_path: Path) -> None:
    """A family without a description here is computed by transformers' modules, vectors and logits."""
    options = {**SMALL, "embedding_size": 24, "num_hidden_groups": 1, "max_position_embeddings": 64, "num_labels": 1}
    name = "AlbertForSequenceClassification" if classifies else "AlbertModel"
    torch.manual_seed(5)
    model = getattr(transformers, name)(transformers.AlbertConfig(**options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.inference_mode():
        out = model(torch.tensor([TEXT.ids]))
    expected = (out.logits[0] if classifies else out.last_hidden_state[0].mean(0)).numpy()
    with loaded(save(model, tmp_path / "model"), tmp_path / "cache") as engine:
        assert (engine.info.engine, engine.info.generates) == ("reference", False)
        texts = [TEXT, EncoderInput((5, 6)), TEXT]
        found = await (engine.classify(texts) if classifies else engine.embed(texts))
        assert np.abs(found[0] - expected).max() < 1e-5
        assert found[0].tobytes() == found[2].tobytes()


@pytest.mark.parametrize("compiled", [True, False])
async def test_a_model_that_generates_embeds_too(
    compiled: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector is the mean of the last states, of length 1, on compiled kernels and on torch; the model generates as
    before, also beside it.
    """
    if not compiled:
        monkeypatch.setattr("runtime.loading.kernels.host_kernels", lambda cache_dir: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    with loaded(tiny_llama, tmp_path / "cache") as engine:
        assert engine.info.engine == ("native" if compiled else "torch")
        assert engine.info.encoder.tasks == ("embed",)
        (text,) = await engine.tokenize_inputs(["You may not use this file"])
        (found,) = await engine.embed([text])
        with torch.inference_mode():
            states = model.model(torch.tensor([text.ids])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert np.abs(found - expected).max() < 1e-5
        params = SamplingParams(max_new_tokens=4, temperature=0)
        tokens, again = await asyncio.gather(_tokens(engine, Job(text.ids, params)), engine.embed([text] * 40))
        assert len(tokens) == 4
        assert {vector.tobytes() for vector in again} == {found.tobytes()}
        with pytest.raises(ModelCannotEncode):
            await engine.classify([text])


async def _tokens(engine: Any, job: Job) -> list[Any]:
    return [token async for token in engine.stream([job])]
