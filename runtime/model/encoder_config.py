"""The description of what an encoder does with the states of a text's tokens: pooling, and the stages behind it.

``runtime.loading.encoder_folder`` reads it from a folder of sentence-transformers or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runtime.encoder_types import EncoderInfo, EncoderTask, LogitActivation, Pooling, Similarity

StageKind = Literal["dense", "norm", "normalize"]
StageActivation = Literal["none", "tanh", "relu", "gelu", "sigmoid", "silu"]


@dataclass(frozen=True, slots=True)
class EncoderStage:
    """One step from the pooled vector of a text to the result.

    Args:
        kind: a linear layer, a LayerNorm, or scaling to the length 1.
        inputs: width of the vector before.
        outputs: width of the vector after.
        bias: whether the layer or norm has a bias.
        activation: function of a linear layer's outputs.
        epsilon: constant added to the variance in a norm.
    """

    kind: StageKind
    inputs: int
    outputs: int
    bias: bool = False
    activation: StageActivation = "none"
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """How a query and a document become one text for a decoder that answers yes or no (Qwen3-Reranker).

    Args:
        prefix, suffix: what comes before and after the text, with control tokens.
        text: the text, with ``{instruction}``, ``{query}`` and ``{document}``, in none of which control tokens count.
        instruction: the instruction that applies if a request has none.
    """

    prefix: str
    text: str
    suffix: str
    instruction: str


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What an encoder computes. Fields with the names of ``EncoderInfo`` have the same meaning.

    Args:
        stages: what is done with the pooled vector; the last result is the vector or the logits.
        pool_prompt: whether the tokens of a prompt are pooled with the others.
        lower_case: whether texts are converted to lower case.
        pair: how a decoder that answers yes or no gets a query and a document; None if the tokenizer joins them.
    """

    tasks: tuple[EncoderTask, ...]
    max_tokens: int
    pooling: tuple[Pooling, ...]
    stages: tuple[EncoderStage, ...] = ()
    pool_prompt: bool = True
    lower_case: bool = False
    similarity: Similarity = "cosine"
    dimensions: tuple[int, ...] = ()
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str = ""
    labels: tuple[str, ...] = ()
    activation: LogitActivation = "none"
    pair: PairTemplate | None = None

    def width(self, hidden: int) -> int:
        """Return the width of a vector; 0 if the model computes none.

        Args:
            hidden: width of a token's state.
        """
        if "embed" not in self.tasks:
            return 0
        return self.stages[-1].outputs if self.stages else hidden * len(self.pooling)

    def info(self, hidden: int) -> EncoderInfo:
        """Return what callers need to know. ``hidden`` as for ``width``."""
        return EncoderInfo(
            tasks=self.tasks,
            width=self.width(hidden),
            max_tokens=self.max_tokens,
            pooling=self.pooling,
            similarity=self.similarity,
            normalized=bool(self.stages) and self.stages[-1].kind == "normalize",
            dimensions=self.dimensions,
            prompts=dict(self.prompts),
            default_prompt=self.default_prompt,
            labels=self.labels,
            activation=self.activation,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EncoderConfig:
        """Build a configuration from the result of ``dataclasses.asdict``, also after a round trip through JSON text.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        plain = ("tasks", "pooling", "dimensions", "labels")
        tuples: dict[str, Any] = {name: tuple(data[name]) for name in plain}
        stages = tuple(EncoderStage(**stage) for stage in data["stages"])
        prompts = tuple((name, text) for name, text in data["prompts"])
        pair = None if data["pair"] is None else PairTemplate(**data["pair"])
        return cls(**{**data, **tuples, "stages": stages, "prompts": prompts, "pair": pair})


def stage_tensors(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the stages by name: ``stage.N.weight`` and ``stage.N.bias``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n, stage in enumerate(config.stages):
        if stage.kind == "normalize":
            continue
        shapes[f"stage.{n}.weight"] = (stage.outputs, stage.inputs) if stage.kind == "dense" else (stage.outputs,)
        if stage.bias:
            shapes[f"stage.{n}.bias"] = (stage.outputs,)
    return shapes
