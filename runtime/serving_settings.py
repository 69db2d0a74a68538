"""The first part of the settings: the model and its engine, the limits of one request, and the response cache."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.setting_types import Host, OptionalPath, PathSetting, RedisUrl, Strings


class ServingSettings(BaseSettings):
    """The part of ``runtime.settings.Settings`` that says what is served and within which limits."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", validate_default=True, env_file=None)

    # Listening address
    host: Host = Field("127.0.0.1", min_length=1, description="Address to listen on, or unix:PATH for a socket file.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")

    # The model
    model_name: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="Catalogue name, hub id with optional @revision, local folder, or .gguf file.",
    )
    models: Strings = Field(
        (),
        description="More models to serve, named as in MODEL_NAME; a JSON array if names contain blanks or commas. "
        "Each is loaded on its first use.",
    )
    model_aliases: Strings = Field(
        (), description="More names of served models, as name=model; they are listed and accepted wherever a model is."
    )
    pinned_models: Strings = Field((), description="Ids of models that are never unloaded to free memory for others.")
    adapters_dir: OptionalPath = Field(
        None, description="Folder of LoRA adapters (PEFT format), each served as model:adapter."
    )
    memory_budget_bytes: int = Field(
        0, ge=0, le=2**50, description="Memory for all loaded models together; 0 derives it from the container's limit."
    )
    idle_unload_seconds: float = Field(
        0,
        ge=0,
        le=31_536_000,
        description="Unload a model that is not pinned after this time without a request; 0 for never.",
    )
    preload: bool = Field(
        True, description="Load the model in the background at start instead of on the first request."
    )
    model_wait_seconds: float = Field(
        120, ge=0, le=3600, description="How long a request waits for a model to load before 503."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N.",
    )
    dtype: Literal["auto", "int8", "int4", "gguf", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the weights; auto: int8 on a CPU with compiled kernels, else 16 bits where they are fast. "
        "On compiled kernels also int4 (4 bits, 8 where 4 lose too much; the codes of AWQ and GPTQ checkpoints) and "
        "gguf (the types of a GGUF file, unchanged): less memory, slower in a batch.",
    )
    engine: Literal["auto", "fast", "reference"] = Field(
        "auto", description="fast, reference (transformers), or auto: fast for the models that it supports."
    )
    kv_cache_bytes: int = Field(
        0, ge=0, le=2**50, description="Memory for the KV cache; 0 derives it from the container's limit."
    )
    kv_dtype: Literal["auto", "float16", "int8"] = Field(
        "auto",
        description="Type of keys and values on compiled kernels; int8 halves their memory. auto: float16, or float32 "
        "with float32 weights.",
    )
    prefix_cache_bytes: int = Field(
        268_435_456, ge=0, le=2**50, description="Part of KV_CACHE_BYTES that the prefix cache may use."
    )
    max_batch: int = Field(64, ge=1, le=1024, description="Maximum number of sequences in a batch; others wait.")
    token_budget: int = Field(
        128,
        ge=1,
        le=65_536,
        description="Maximum tokens per step while sequences are decoding, so that long prompts do not delay them.",
    )
    max_step_tokens: int = Field(1024, ge=16, le=65_536, description="Maximum tokens per step; at least MAX_BATCH.")
    speculate_tokens: int = Field(
        8,
        ge=0,
        le=64,
        description="Draft tokens of speculative decoding per step, taken from the text itself; 0 for none.",
    )
    deterministic: bool = Field(
        True, description="Generate the same tokens alone and in a batch on PyTorch too; compiled kernels always do."
    )
    num_threads: int = Field(
        0, ge=0, le=1024, description="CPU threads for the model; 0 for all cores that the process may use."
    )
    cache_dir: PathSetting = Field(
        Path("~/.cache/warmstart"),
        description="Folder for converted models; hub downloads are kept in the hub client's own cache.",
    )

    generation_config: Literal["openai", "model"] = Field(
        "openai",
        description="Sampling defaults of OpenAI's routes: openai, or model for the model's own generation config.",
    )

    # Limits of one request
    max_prompt_chars: int = Field(
        200_000,
        ge=1,
        le=10_000_000,
        description="Maximum characters of a prompt, or of all messages of a chat together.",
    )
    max_sequences: int = Field(
        2048,
        ge=1,
        le=65_536,
        description="Maximum sequences of one request (prompts x n); they use at most half of MAX_BATCH.",
    )
    max_queue: int = Field(
        256, ge=1, le=100_000, description="Maximum requests that wait for the engine; more are answered 429."
    )
    request_timeout_seconds: float = Field(
        600, gt=0, le=86_400, description="Maximum time of a generation, with its time in the queue, before 504."
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, le=1_073_741_824, description="Maximum size of a request body.")
    header_timeout_seconds: float = Field(15, gt=0, le=3600, description="Deadline for receiving a request's headers.")
    body_timeout_seconds: float = Field(30, gt=0, le=3600, description="Deadline for receiving a request's body.")
    drain_seconds: float = Field(
        30, ge=0, le=3600, description="How long running requests may take to finish after SIGTERM."
    )

    # Answers
    reasoning: Literal["on", "off"] = Field(
        "on", description="on: an answer's reasoning is its reasoning_content; off: it stays in the content."
    )

    # Response cache
    response_cache: Literal["off", "memory", "sqlite", "redis"] = Field(
        "memory", description="Where deterministic answers are cached: off, memory, sqlite or redis."
    )
    response_cache_bytes: int = Field(
        67_108_864,
        ge=0,
        le=2**50,
        description="Maximum size of the cached answers; the least recently used are evicted first.",
    )
    response_cache_ttl_seconds: float = Field(3600, gt=0, le=31_536_000, description="Lifetime of a cached answer.")
    response_cache_per_key: bool = Field(
        True, description="Cache answers per API key, so that timing does not reveal what other callers asked."
    )
    responses_store_bytes: int = Field(
        0,
        ge=0,
        le=2**50,
        description="Memory for responses of /v1/responses that are kept with their input, so that "
        "previous_response_id can name them; 0 keeps none. Each process has its own.",
    )
    responses_store_ttl_seconds: float = Field(
        3600, gt=0, le=31_536_000, description="Lifetime of a response that is kept."
    )
    redis_url: RedisUrl = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="The Redis that replicas share, for the settings that are set to redis.",
    )

    @model_validator(mode="after")
    def _batch_fits_step(self) -> ServingSettings:
        if self.max_batch > self.max_step_tokens:
            raise ValueError(f"MAX_BATCH: {self.max_batch} is more than MAX_STEP_TOKENS ({self.max_step_tokens})")
        return self
