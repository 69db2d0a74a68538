"""Plain data types shared by all packages. This module imports neither torch nor pydantic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from runtime.encoder_types import EncoderInfo

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant", "tool"]

# A logit bias that forces a token: in float32 the sum keeps nothing of the original logit, and the softmax gives every
# other token probability 0.
_FORCING_BIAS = 1e30


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Args:
        name: letters, digits, ``_`` and ``-`` only.
        description: what the function does; "" for none.
        parameters: JSON Schema of its arguments, which are an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function in an assistant's message.

    Args:
        id: the call's id, to which the message with its result refers.
        name: the function.
        arguments: the text of a JSON object, or any other text if the model was cut off or made a mistake.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Args:
        role: the author's role.
        content: the text.
        tool_calls: the calls of an assistant's message.
        tool_call_id: of a tool's message, the call whose result it is.
        reasoning: the reasoning before an assistant's message.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningLimit:
    """A limit on reasoning: after ``tokens`` generated tokens its end is forced.

    Args:
        tokens: the number of tokens of the answer's start in which reasoning may go on.
        begin, end: ids of the tokens that begin and end reasoning; ``begin`` is None if the prompt has begun it.
    """

    tokens: int
    begin: int | None
    end: int


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """How a chat is formatted with the model's template.

    Args:
        add_generation_prompt: whether the prompt ends with the start of the assistant's next turn.
        continue_final_message: whether the prompt ends with the last message's text, which the model continues.
        arguments: further variables of the template, as a JSON object.
        add_special_tokens: whether the tokenizer adds its own tokens around the prompt; None to add them only if the
            model has no template of its own.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    arguments: str = "{}"
    add_special_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that a generated text must match.

    Args:
        kind: the kind of definition.
        definition: a JSON Schema as JSON text, a regular expression, or a grammar in Lark's or llama.cpp's syntax.
        field: the request's field that holds it, for error messages.
        parts: grammars to which ``definition``, in Lark's syntax, refers as ``@part0``, ``@part1``, ...
        reasoning: limit on the reasoning before the text; None for none.
    """

    kind: Literal["json_schema", "regex", "lark", "gbnf"]
    definition: str
    field: str
    parts: tuple[Grammar, ...] = ()
    reasoning: ReasoningLimit | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What determines the texts that match, apart from the limit on reasoning."""
        return self.kind, self.definition, *(part.key for part in self.parts)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters for one prompt.

    Args:
        max_new_tokens: maximum number of tokens to generate per sequence.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens less likely than this times the most likely one (arXiv:2407.01082); 0 keeps all.
        repetition_penalty: CTRL's penalty on tokens already seen (arXiv:1909.05858 section 4.1); 1 is off.
        presence_penalty: subtracted once from the logit of each token already generated (OpenAI's formula).
        frequency_penalty: subtracted from a token's logit once per time it was generated (OpenAI's formula).
        logit_bias: pairs of (token id, number added to its logit).
        min_new_tokens: minimum length; before it, neither an end token nor a stop string ends a sequence.
        logprobs: number of most likely tokens to report in addition to the chosen one; None reports nothing. The values
            are natural-log softmax values of the model's unmodified logits.
        stop: strings that end a sequence; they are not part of its text.
        stop_token_ids: ids of further tokens that end a sequence; their text is not part of its text.
        ignore_eos: whether the model's own end tokens do not end a sequence.
        allowed_token_ids: ids of the only tokens that may be generated; empty for all.
        bad_words: texts that are not generated, as the tokenizer writes them at the start of a text and behind a blank.
        include_stop: whether the text of the stop string or stop token that ends a sequence is part of its text.
        skip_special_tokens: whether control tokens are left out of the text.
        seed: seed that makes sampling reproducible; None draws a random one.
        forced: ids of the first generated tokens, used instead of sampled ones. No end token or stop string among them
            ends the sequence. With ``max_new_tokens`` forced tokens the model scores a given text: their
            log-probabilities are the model's own.
        n: number of sequences per prompt.
        grammar: grammar that the text must match; None for any text.
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
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    n: int = 1
    forced: tuple[int, ...] = ()
    grammar: Grammar | None = None

    def end_ids(self, eos: frozenset[int]) -> frozenset[int]:
        """Return the ids of all tokens that end a sequence.

        Args:
            eos: the model's own end tokens.
        """
        return (frozenset() if self.ignore_eos else eos).union(self.stop_token_ids)

    def bias(self, forced: Sequence[int], ahead: int) -> tuple[tuple[int, float], ...]:
        """Return the logit bias of a token to sample.

        Args:
            forced: the tokens that must come next.
            ahead: the token's position behind the last known one, from 0.

        Returns:
            (token id, number to add to its logit).
        """
        return ((forced[ahead], _FORCING_BIAS),) if ahead < len(forced) else self.logit_bias


@dataclass(frozen=True, slots=True)
class Job:
    """One tokenized prompt with its sampling parameters.

    Args:
        token_ids: the prompt's token ids.
        params: the sampling parameters.
        background: whether this is a background job. Interactive jobs are admitted before it and may preempt it;
            preemption does not change its result.
        field: the request's field that holds the prompt, for error messages.
        continuations: texts to score, one sequence each, by their token ids; they share the computation of the prompt.
            ``params`` has their number as ``n`` and the longest one's length as ``max_new_tokens``. Empty if the model
            generates the texts.
        cache_salt: only jobs with the same text share cached prefixes.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    background: bool = False
    field: str = "prompt"
    continuations: tuple[tuple[int, ...], ...] = ()
    cache_salt: str = ""

    def sequence_params(self, number: int) -> SamplingParams:
        """Return the sampling parameters of one sequence.

        Args:
            number: the sequence's number within the job, from 0.
        """
        if not self.continuations:
            return self.params
        forced = self.continuations[number]
        return replace(self.params, forced=forced, max_new_tokens=len(forced))


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of one sequence.

    Args:
        sequence: index of the sequence in the request: job number x n + number within the job.
        id: the token's id.
        text: the text that is final with this token; empty while a character or a possible stop string is incomplete.
        finish_reason: why the sequence ended; set on its last token only.
        logprob: the token's log-probability, if requested.
        top_logprobs: (token id, logprob) of the most likely tokens, best first, if requested.
        cached_tokens: number of prompt tokens found in the prefix cache; set on a prompt's first token only.
        stop: the stop string that ended the sequence; set on its last token, None if it ended for another reason.
    """

    sequence: int
    id: int
    text: str
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    cached_tokens: int = 0
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Metadata of a loaded model. Times are in seconds, memory is in bytes.

    ``active_parameters`` are those with which a token is computed: all but the experts that are not chosen for it; None
    if that is not known. ``weight_types`` are the number types of the weight matrices, those with the most bytes first.
    ``kv_bytes`` is the maximum size of the KV cache, ``kv_dtype`` its number type, and ``kv_tokens`` how many tokens it
    holds; 0 for no limit.
    ``sampling_defaults`` are the values of sampling parameters, by name, that OpenAI's routes use where a request has
    none, in place of OpenAI's own. ``fingerprint`` identifies everything that determines the bits of
    a result: the weights, the tokenizer and its chat template, the dtypes, and the code that computes.
    ``encoder`` says what the model computes from a text beside generating; None for nothing. ``generates`` is False
    for a model that is only an encoder.
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
    active_parameters: int | None = None
    weight_types: tuple[str, ...] = ()
    kv_bytes: int = 0
    kv_dtype: str = ""
    kv_tokens: int = 0
    sampling_defaults: tuple[tuple[str, float], ...] = ()
    fingerprint: str = ""
    encoder: EncoderInfo | None = None
    generates: bool = True

    @property
    def system_fingerprint(self) -> str | None:
        """OpenAI's ``system_fingerprint``: it changes with ``fingerprint``; None if that is not known."""
        return f"fp_{self.fingerprint[:16]}" if self.fingerprint else None


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How the response cache was used for one response.

    Args:
        status: ``hit``: read from the cache; ``miss``: computed and stored; ``shared``: taken from an identical request
            in flight; ``bypass``: computed without a cache lookup.
        key: the cache key; None if the response is not cached.
        age_seconds: age of a cached response.
    """

    status: Literal["hit", "miss", "shared", "bypass"]
    key: str | None = None
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Token counts of a generation, and how the response cache was used. They can be added.

    Args:
        prompt_tokens: tokens of all prompts, of which ``cached_tokens`` were found in the prefix cache.
        completion_tokens: generated tokens.
        cache: how the response cache was used; None without a cache.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache: CacheUse | None = None

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache if other.cache is None else other.cache,
        )

    def openai(self) -> dict[str, Any]:
        """Return OpenAI's usage object; if there is a response cache, with the additional member ``cache``."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if (use := self.cache) is not None:
            usage["cache"] = {"status": use.status, "age_seconds": use.age_seconds, "key": use.key}
        return usage


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of a request.

    Args:
        id: the API key's id; stable and safe to log.
        name: display name.
        scopes: operations the caller may use; ``*`` stands for all non-admin operations, ``admin`` for the admin ones.
        requests_per_minute: the caller's own limit; None for the default limit, 0 for no limit.
        tokens_per_minute: likewise.
    """

    id: str
    name: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
