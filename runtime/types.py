"""Plain data that crosses rooms: no torch, no pydantic, no behaviour beyond what the data itself says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant"]

_OUTWEIGHING = 1e30  # added to a logit, in float32, nothing is left of what was there, nor of any other's chance


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
        forced: ids of the sequence's first tokens, chosen whatever the model would choose. No end token or stop string
            among them ends it. With ``max_new_tokens`` of them this scores a given text: their log-probabilities are
            the model's own.
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
    forced: tuple[int, ...] = ()

    def bias(self, place: int) -> tuple[tuple[int, float], ...]:
        """(token id, number added to its logit) for the sequence's token of that number, counted from 0."""
        return ((self.forced[place], _OUTWEIGHING),) if place < len(self.forced) else self.logit_bias


@dataclass(frozen=True, slots=True)
class Job:
    """One tokenized prompt and what to do with it.

    Args:
        token_ids: of the prompt.
        params: how its tokens are chosen.
        queued: whether nobody waits for the answer right now. Others then go before it and may interrupt it, which
            changes nothing about its answer.
        field: the request's field that the prompt comes from, for messages of errors.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    queued: bool = False
    field: str = "prompt"


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
    """What is known of a loaded model. Times in seconds, memory in bytes.

    ``kv_bytes`` is what its keys and values may take up. ``fingerprint`` names all that decides the bits of an answer:
    the weights, the tokenizer and its template, the number types, and the code that computes.
    """

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
    kv_bytes: int = 0
    fingerprint: str = ""


ModelState = Literal["unloaded", "loading", "ready", "draining", "failed"]


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
        pinned: whether it stays loaded when others need the room.
        memory_bytes: what it holds now: weights, and keys and values written so far.
        reserved_bytes: what it may come to hold (keys and values in full) and takes of the budget, if that is known.
        last_used: wall clock at which a request last began or ended on it.
        running: requests that hold it now.
        loads: times it was loaded, ``load_failures`` times it could not be, since the process began.
        unloads: times it was unloaded, of which ``evictions`` were to make room for another model.
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
    pinned: bool = False
    memory_bytes: int = 0
    reserved_bytes: int | None = None
    last_used: float | None = None
    running: int = 0
    loads: int = 0
    load_failures: int = 0
    unloads: int = 0
    evictions: int = 0


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The middle of many figures and nearly the worst of them."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What one model does now and has done since the process began.

    Args:
        running: requests in the batch.
        waiting: requests that wait for a place in it, those aside that are ``queued``: see ``Job``.
        queued: requests of that kind that wait for a place, those that were interrupted among them.
        kv_usage: share of the memory for keys and values that running requests hold, 0 to 1.
        finished: requests that ended by themselves.
        failed: requests that were admitted and ended with an error.
        cancelled: requests whose caller went away.
        rejected: requests that were not admitted.
        prompt_tokens: tokens read, of which ``cached_tokens`` were in the prefix cache.
        generated_tokens: tokens handed out.
        tokens_per_second: generated, over the last ten seconds.
        time_to_first_token: in seconds, of the last requests; None if there were none in the last five minutes.
        inter_token_latency: in seconds, of the last requests' means, likewise.
    """

    running: int = 0
    waiting: int = 0
    queued: int = 0
    kv_usage: float = 0.0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    time_to_first_token: Percentiles | None = None
    inter_token_latency: Percentiles | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: what the process holds, what its container lets it have, and what all its models may hold together."""

    process_bytes: int = 0
    limit_bytes: int = 0
    budget_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What the response cache had to do with an answer.

    Args:
        status: ``hit``: it was kept; ``miss``: it was computed, and is kept; ``shared``: it is another's, who asked the
            same a moment before; ``bypass``: it was computed whatever was kept.
        key: that it is kept under; None where it is not.
        age_seconds: of a kept answer.
    """

    status: Literal["hit", "miss", "shared", "bypass"]
    key: str | None = None
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the response cache holds and has done. Counts are this process's, since it began.

    Args:
        store: where answers are kept: off, memory, sqlite or redis.
        entries: answers kept now, of ``bytes`` in all and ``limit_bytes`` at most.
        hits: requests answered from the store.
        shared: requests that joined an identical one under way.
        misses: requests that could have been answered from it and were computed.
        bypassed: requests that may have another answer each time, or asked not to be answered from it.
        evictions: answers dropped for want of room.
        expired: answers dropped for their age.
        errors: times the store failed, and the request was computed instead.
        saved_tokens: generated tokens that did not have to be computed.
        saved_seconds: time that computing them had taken the first time.
        ttl_seconds: how long an answer is good for.
    """

    store: str = "off"
    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    hits: int = 0
    shared: int = 0
    misses: int = 0
    bypassed: int = 0
    evictions: int = 0
    expired: int = 0
    errors: int = 0
    saved_tokens: int = 0
    saved_seconds: float = 0.0
    ttl_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as its credential shows.

    Args:
        id: of the key; stable, harmless in logs.
        name: for people.
        scopes: the operations it may call; ``*`` stands for all that are not an admin's, ``admin`` for those.
        requests_per_minute: its own limit; None for everybody's, 0 for none.
        tokens_per_minute: likewise.
    """

    id: str
    name: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
