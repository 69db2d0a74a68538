"""Plain data that crosses rooms: no torch, no pydantic, no behaviour beyond what the data itself says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one prompt are chosen.

    Args:
        max_new_tokens: tokens to generate at most, per sequence.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens less likely than this times the likeliest one (arXiv:2407.01082); 0 keeps all.
        repetition_penalty: CTRL's penalty on tokens already seen (arXiv:1909.05858 section 4.1); 1 is off.
        presence_penalty: subtracted once from the logit of each token generated already (OpenAI's formula).
        frequency_penalty: subtracted from a token's logit once per time it was generated (OpenAI's formula).
        logit_bias: (token id, number added to its logit).
        min_new_tokens: neither an end token nor a stop string ends a sequence before it has this many tokens.
        logprobs: None for none, else how many of the likeliest tokens to report beside the chosen one's own. They are
            the log-softmax of the logits as the model gave them, in natural logarithms.
        stop: strings that end a sequence; they are not part of its text.
        seed: makes the sampled tokens repeatable; None draws a fresh one.
        n: sequences per prompt.
    """

    max_new_tokens: int
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """One tokenized prompt and what to do with it."""

    token_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of one sequence.

    Args:
        sequence: the row: job number x n + number within the job.
        id: the token's id.
        text: the text this token releases; often empty (half a character, or a possible stop string held back).
        finish_reason: set on the sequence's last token only.
        logprob: of this token, if asked for.
        top_logprobs: (token id, logprob) of the likeliest tokens, best first, if asked for.
        cached_tokens: on a prompt's first token: how many of the prompt's tokens were in the prefix cache.
    """

    sequence: int
    id: int
    text: str
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model. Times in seconds, memory in bytes."""

    name: str
    revision: str | None
    source: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    context_length: int
    vocabulary_size: int
    chat_template: bool
    load_seconds: float
    warmup_seconds: float
    weights_bytes: int
    engine: str
    optimizations: tuple[str, ...] = ()


ModelState = Literal["unloaded", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where one served model stands.

    Args:
        id: the name that requests use.
        source: what it is loaded from.
        state: see ``ModelState``.
        default: whether it answers requests that name no model.
        stage: what a load is doing now, and ``progress`` how far that stage is (0 to 1), if known.
        error: why the last load failed.
        info: known once loaded.
    """

    id: str
    source: str
    state: ModelState
    default: bool
    created: int
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    info: ModelInfo | None = None
