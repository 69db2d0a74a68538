"""handlers.encoding.relevance: with a real cross-encoder. The rest is in tests/handlers/operations/test_rerank.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers

from handlers.operations import rerank
from tests.support.contexts import real
from tests.support.encoder_models import SMALL
from tests.support.engines import needs_kernels
from tests.support.models import train_tokenizer


@needs_kernels
async def test_ranking_is_that_of_transformers(tmp_path: Path) -> None:
    """A real cross-encoder's scores, and with them its ranking, are transformers' own."""
    torch.manual_seed(3)
    config = transformers.BertConfig(**SMALL | {"vocab_size": 1024}, num_labels=1)
    model = transformers.BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    train_tokenizer().save_pretrained(tmp_path / "model")
    documents = ["a", "the license", "you may copy it", "This License applies to any program.", "no warranty", ""]
    async with (
        real(model_name=str(tmp_path / "model"), cache_dir=tmp_path / "cache") as ctx,
        ctx.models.lease(None) as engine,
    ):
        answer = await rerank.handle({"query": "what may I do", "documents": documents}, ctx)
        pairs = await engine.tokenize_inputs([("what may I do", document) for document in documents])
    with torch.inference_mode():
        logits = [
            model(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.types or [0] * len(pair.ids)])).logits
            for pair in pairs
        ]
    scores = [1 / (1 + math.exp(-float(logit))) for logit in logits]
    assert [one["index"] for one in answer["results"]] == sorted(range(6), key=lambda index: -scores[index])
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(scores[one["index"]], abs=1e-4)
