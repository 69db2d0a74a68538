"""Jina's BERT (arXiv:2310.19923) written plainly, because transformers does not have it: BERT with ALiBi in both
directions (arXiv:2108.12409) in place of positions, and a gated feed-forward network. The modules have the names of the
published checkpoints.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig


class JinaBertConfig(BertConfig):
    """BERT's configuration with what the published checkpoints say besides."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.position_embedding_type, self.feed_forward_type = "alibi", "geglu"


class _SelfAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in (self.query, self.key, self.value)
        )
        places = torch.arange(len(x))
        slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1) / self.heads)  # of a power of two
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores - slopes[:, None, None] * (places[None] - places[:, None]).abs()
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


class _Output(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class _Mlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gated_layers(x).chunk(2, dim=-1)
        return self.layernorm(x + self.wo(nn.functional.gelu(gate) * up))


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(config), "output": _Output(config)})
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        out = self.attention["output"]
        return self.mlp(out.LayerNorm(x + out.dense(self.attention["self"](x))))


class JinaBertModel(nn.Module):
    """The model, for one text at a time."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """Return [1, tokens, hidden] the final states as ``last_hidden_state``."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        words, kinds = self.embeddings["word_embeddings"], self.embeddings["token_type_embeddings"]
        x = self.embeddings["LayerNorm"](words(input_ids[0]) + kinds(types[0]))
        for layer in self.encoder["layer"]:
            x = layer(x)
        return SimpleNamespace(last_hidden_state=x[None])
