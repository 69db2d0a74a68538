"""Reads all settings from environment variables into one frozen object, and validates them at startup.

Every setting is the environment variable with the field's name in capitals and has a default, a type, a range and one
line of help. Blanks around a value are ignored. A wrong value stops the service with an error that names the setting
(``Settings.load``). No other module reads the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from runtime.errors import SettingsError
from runtime.networks import Network, parse_networks
from runtime.setting_values import bare_host, expanded, shown, words

LEAST_SECRET = 32  # characters of AUDIT_KEY: the width of the hash in bytes


ClientIpHeader = Literal["x-forwarded-for", "x-real-ip", "forwarded"]

# Loopback, RFC 1918, RFC 4193 and link-local: clients with these addresses are on the same host or network.
PRIVATE_NETWORKS = parse_networks(
    ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "::1", "fc00::/7", "fe80::/10"],
    strict=True,
    name="PRIVATE_NETWORKS",
)


_Networks = Annotated[tuple[Network, ...], NoDecode]
_Strings = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """All settings of the service. Durations are in seconds and sizes in bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", validate_default=True, env_file=None)

    # Listening address
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on, or unix:PATH for a socket file.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")

    # The model
    model_name: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="Catalogue name, hub id with optional @revision, local folder, or .gguf file.",
    )
    models: _Strings = Field(
        (),
        description="More models to serve, named as MODEL_NAME; a JSON array where names have blanks or commas. Each "
        "loads on its first use.",
    )
    pinned_models: _Strings = Field((), description="Ids of models that stay loaded when others need the room.")
    adapters_dir: Path | None = Field(
        None, description="Folder of LoRA adapters (PEFT format), each served as model:adapter."
    )
    memory_budget_bytes: int = Field(
        0, ge=0, le=2**50, description="Memory for all loaded models; 0 takes it from the container's limit."
    )
    idle_unload_seconds: float = Field(
        0, ge=0, le=31_536_000, description="Unload a model unused for so long, unless it is pinned; 0 never does."
    )
    preload: bool = Field(True, description="Load the model in the background at start instead of on the first call.")
    model_wait_seconds: float = Field(
        120, ge=0, le=3600, description="How long a call waits for a loading model before 503."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N.",
    )
    dtype: Literal["auto", "int8", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Weights' type; auto is int8 on a CPU with compiled kernels, else 16 bits where they are fast.",
    )
    engine: Literal["auto", "fast", "reference"] = Field(
        "auto", description="fast, reference (transformers), or auto: fast for the models it knows."
    )
    kv_cache_bytes: int = Field(
        0, ge=0, le=2**50, description="Memory for keys and values; 0 takes what the container's limit leaves room for."
    )
    prefix_cache_bytes: int = Field(
        268_435_456, ge=0, le=2**50, description="Of that, what finished texts may hold for prompts that begin alike."
    )
    max_batch: int = Field(64, ge=1, le=1024, description="Sequences that run at once; others wait.")
    token_budget: int = Field(
        128,
        ge=1,
        le=65_536,
        description="Tokens of one step while texts are being written, so that prompts don't stall them.",
    )
    max_step_tokens: int = Field(
        1024, ge=16, le=65_536, description="Tokens of one step at most; not less than MAX_BATCH."
    )
    speculate_tokens: int = Field(
        8, ge=0, le=64, description="Tokens to guess from the text itself while one text is being written; 0 for none."
    )
    deterministic: bool = Field(
        True, description="Same tokens alone and in a batch also through torch; compiled kernels always give that."
    )
    num_threads: int = Field(0, ge=0, le=1024, description="CPU threads for the model; 0 takes the cores it may use.")
    cache_dir: Path = Field(
        Path("~/.cache/warmstart"), description="Folder for converted models (hub downloads stay in the hub's own)."
    )

    # Limits of one request
    max_prompt_chars: int = Field(
        200_000, ge=1, le=10_000_000, description="Longest prompt or chat, in characters, all messages together."
    )
    max_sequences: int = Field(
        2048,
        ge=1,
        le=65_536,
        description="Prompts x sequences of one request; they take turns in half of MAX_BATCH.",
    )
    max_queue: int = Field(256, ge=1, le=100_000, description="Requests waiting for the engine before 429.")
    request_timeout_seconds: float = Field(
        600, gt=0, le=86_400, description="Longest a generation may take, queue included, before 504."
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, le=1_073_741_824, description="Largest request body.")
    header_timeout_seconds: float = Field(15, gt=0, le=3600, description="Deadline for receiving a request's headers.")
    body_timeout_seconds: float = Field(30, gt=0, le=3600, description="Deadline for receiving a request's body.")
    drain_seconds: float = Field(30, ge=0, le=3600, description="How long SIGTERM lets running requests finish.")

    # Response cache
    response_cache: Literal["off", "memory", "sqlite", "redis"] = Field(
        "memory", description="Where answers that must come out the same again are kept: off, memory, sqlite, redis."
    )
    response_cache_bytes: int = Field(
        67_108_864, ge=0, le=2**50, description="Most bytes of kept answers; the least recently used go first."
    )
    response_cache_ttl_seconds: float = Field(
        3600, gt=0, le=31_536_000, description="How long a kept answer is good for."
    )
    response_cache_per_key: bool = Field(
        True, description="Keep each API key's answers apart, so that nobody can tell by timing what others asked."
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="The Redis that replicas share, where one is used."
    )

    # Client addresses
    allowed_ips: _Networks = Field(PRIVATE_NETWORKS, description="Networks that may call; host bits are accepted.")
    disable_ip_restriction: bool = Field(False, description="Let every address call.")
    trusted_proxies: _Networks = Field((), description="Networks whose forwarding header is believed.")
    client_ip_header: ClientIpHeader = Field(
        "x-forwarded-for", description="The one header trusted proxies name the client in."
    )
    trust_unix_peers: bool = Field(False, description="Treat a unix-socket peer as a trusted proxy.")
    cors_origins: _Strings = Field((), description="Origins whose pages may call, or *; none by default.")
    forwarded_origin: bool = Field(
        False, description="Believe trusted proxies on scheme and host: X-Forwarded-Proto and -Host, or Forwarded."
    )

    # Keys and signatures
    api_keys: SecretStr = Field(
        SecretStr(""), description="Keys' records, as warmstart keys create prints them; with none, nobody needs a key."
    )
    api_keys_file: Path | None = Field(None, description="File of more keys' records; read again when it changes.")
    open_pages: bool = Field(
        False, description="Let the page, the docs and their files be loaded without a key; what they call needs one."
    )
    auth_failures_per_minute: int = Field(
        20, ge=2, le=1_000_000, description="Wrong keys and signatures of one address in any minute; then 429."
    )
    request_signing: Literal["off", "accepted", "required"] = Field(
        "off", description="RFC 9421 signatures: off, accepted in place of an API key, or required of every request."
    )
    signing_window_seconds: int = Field(300, ge=1, le=86_400, description="How old a signature may be.")
    signing_authority: str = Field(
        "", max_length=255, description="Host and port that signatures must name, whatever the Host header says."
    )
    signing_nonces: Literal["memory", "redis"] = Field(
        "memory", description="Where used nonces are remembered; redis where replicas share the traffic."
    )

    # Rate limits
    rate_limit_enabled: bool = Field(False, description="Limit each key, or each address where no key is asked for.")
    rate_limit_requests_per_minute: int = Field(
        120, ge=0, le=10_000_000, description="Requests of one client in any 60 seconds; 0 sets no limit."
    )
    rate_limit_tokens_per_minute: int = Field(
        0, ge=0, le=10**9, description="Tokens, prompts and answers, of one client in any 60 seconds; 0 sets no limit."
    )
    rate_limit_burst: float = Field(
        0.5,
        gt=0,
        le=0.95,
        description="Share of a minute's limit that may be used at once; the rest is spread evenly over the minute.",
    )
    rate_limit_concurrency: int = Field(
        0, ge=0, le=1_000_000, description="Requests of one client at the same time, in each process; 0 sets no limit."
    )
    rate_limit_store: Literal["memory", "redis"] = Field(
        "memory", description="Where what clients used is counted; redis where replicas share the traffic."
    )
    rate_limit_clients: int = Field(
        100_000,
        ge=100,
        le=100_000_000,
        description="Clients remembered in memory; who was seen least recently goes first.",
    )
    rate_limit_fail: Literal["open", "closed"] = Field(
        "open", description="When Redis is away: open lets everybody pass, closed answers 503."
    )
    rate_limit_legacy_headers: bool = Field(
        False, description="Send X-RateLimit-Limit, -Remaining and -Reset beside the IETF draft's headers."
    )

    # Audit log
    audit_log: Path | None = Field(None, description="File to record every request in, hash-chained; none by default.")
    audit_key: SecretStr = Field(
        SecretStr(""), description="Secret of the audit log's chain and of its prompt hashes, 32 characters or more."
    )
    audit_max_bytes: int = Field(
        104_857_600, ge=4096, le=2**40, description="Size at which the audit log goes on in a new file."
    )
    audit_required: bool = Field(False, description="Answer 503 while the audit log cannot be written.")

    # Events
    events_url: SecretStr = Field(
        SecretStr(""),
        description="Broker that warmstart consume and submit use: nats://, redis://, amqp:// or kafka://.",
    )
    events_operations: _Strings = Field(
        (), description="Operations that events may call; by default all that are not an admin's."
    )
    events_concurrency: int = Field(
        16, ge=1, le=1024, description="Messages that a worker works on at once; it takes no more."
    )
    events_ack_seconds: float = Field(
        30, ge=1, le=43_200, description="A message whose worker is not heard of for so long is given to another."
    )
    events_max_deliveries: int = Field(
        5, ge=1, le=1000, description="Deliveries of a message that fails, or brings its worker down; then it is dead."
    )
    events_reply_prefixes: _Strings = Field(
        (), description="What a message's own reply address must begin with; by default the broker's inboxes and ours."
    )
    idempotency: Literal["off", "memory", "sqlite", "redis"] = Field(
        "sqlite", description="Where it is kept which events are done: sqlite (in CACHE_DIR), redis for many machines."
    )
    idempotency_ttl_seconds: float = Field(
        86_400, gt=0, le=31_536_000, description="How long a done event is known, and answered without working again."
    )

    # Connections
    tls_cert_file: Path | None = Field(
        None, description="Certificate chain (PEM) to serve HTTPS with; read again when renewed."
    )
    tls_key_file: Path | None = Field(None, description="Its private key, if that is not in the same file.")
    tls_client_ca_file: Path | None = Field(
        None, description="Ask clients for a certificate that one of these authorities (PEM) has signed."
    )
    max_connections: int = Field(1024, ge=1, le=1_000_000, description="Open connections; more are closed at once.")
    max_connections_per_address: int = Field(
        256, ge=1, le=1_000_000, description="Of one peer, unless it is a trusted proxy; IPv6 peers are counted by /64."
    )
    keepalive_seconds: float = Field(
        75, gt=0, le=3600, description="How long an idle connection stays open; longer than a proxy in front keeps it."
    )
    keepalive_requests: int = Field(
        10_000, ge=1, le=10**9, description="Requests on one connection before it is closed."
    )
    max_header_bytes: int = Field(
        8190, ge=512, le=1_048_576, description="Longest request line, and longest header field."
    )
    max_headers: int = Field(100, ge=8, le=10_000, description="Most header fields of a request.")
    max_json_depth: int = Field(32, ge=4, le=500, description="Deepest nesting of a request's JSON.")
    proxy_protocol: bool = Field(
        False,
        description="Expect the PROXY protocol (v1 or v2) in front of each connection, from trusted proxies only.",
    )

    # Tracing and logs
    tracing: bool = Field(
        False, description="Send OpenTelemetry spans (warmstart[otel]); OTEL_EXPORTER_OTLP_ENDPOINT says where to."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json, console, or auto: console on a terminal, json elsewhere."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level logged.")
    log_prompts: bool = Field(False, description="Log prompts and messages with each request.")

    @model_validator(mode="after")
    def _step_holds_batch(self) -> Settings:
        if self.max_batch > self.max_step_tokens:
            raise ValueError(f"MAX_BATCH: {self.max_batch} is more than MAX_STEP_TOKENS ({self.max_step_tokens})")
        return self

    @model_validator(mode="after")
    def _edge_is_whole(self) -> Settings:
        if self.request_signing != "off" and not self.needs_credentials:
            raise ValueError(
                "REQUEST_SIGNING: set API_KEYS_FILE or API_KEYS, which hold the keys that signatures are made with"
            )
        if self.audit_log is not None and len(self.audit_key.get_secret_value()) < LEAST_SECRET:
            raise ValueError(f"AUDIT_KEY: AUDIT_LOG needs a secret of {LEAST_SECRET} characters or more")
        if self.audit_required and self.audit_log is None:
            raise ValueError("AUDIT_REQUIRED: set AUDIT_LOG, the file to write")
        if self.tls_cert_file is None and (self.tls_key_file or self.tls_client_ca_file):
            raise ValueError("TLS_CERT_FILE: TLS_KEY_FILE and TLS_CLIENT_CA_FILE are of use with it only")
        if self.proxy_protocol and self.tls_cert_file is not None:
            raise ValueError("PROXY_PROTOCOL: with TLS_CERT_FILE it would come inside TLS; let the proxy end TLS")
        if self.proxy_protocol and not self.trusted_proxies:
            raise ValueError("PROXY_PROTOCOL: set TRUSTED_PROXIES, whose word it takes")
        return self

    @property
    def needs_credentials(self) -> bool:
        """Whether requests need an API key or a signature."""
        return self.api_keys_file is not None or bool(self.api_keys.get_secret_value().strip())

    @field_validator("allowed_ips", "trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any, field: ValidationInfo) -> Any:
        name = str(field.field_name)
        return parse_networks([str(entry) for entry in words(value)], strict=name != "allowed_ips", name=name.upper())

    @field_validator(
        "cors_origins", "models", "pinned_models", "events_operations", "events_reply_prefixes", mode="before"
    )
    @classmethod
    def _words(cls, value: Any) -> Any:
        return words(value)

    @field_validator("host")
    @classmethod
    def _bare_host(cls, value: str) -> str:
        return bare_host(value)

    @field_validator("redis_url")
    @classmethod
    def _redis_shape(cls, value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            good = parts.scheme in ("redis", "rediss", "unix") and (parts.port or 1) > 0
        except ValueError:  # its message, and the redis client's, may contain part of the password
            good = False
        if not good:
            raise ValueError("not a URL such as redis://:PASSWORD@HOST:6379/0, special characters as %2F")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origin_shape(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ValueError(f"{origin!r} is not an origin such as https://app.example")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator(
        "cache_dir", "adapters_dir", "api_keys_file", "audit_log", "tls_cert_file", "tls_key_file", "tls_client_ca_file"
    )
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return expanded(value) if value else None

    @field_validator(
        "adapters_dir",
        "api_keys_file",
        "audit_log",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        mode="before",
    )
    @classmethod
    def _no_path(cls, value: Any) -> Any:
        return None if value == "" else value  # compose files and .env files leave a setting out that way

    @field_validator("*", mode="before")  # pydantic runs the "before" validator that is defined last first
    @classmethod
    def _strip(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read and validate the settings from the environment.

        Args:
            overrides: values that take precedence over the environment (a command line's options, a test's settings).

        Returns:
            The settings.

        Raises:
            SettingsError: a value is wrong; the message has one line per wrong setting, which starts with its name.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            lines = [
                ": ".join(
                    filter(None, (".".join(map(str, item["loc"])).upper(), item["msg"].removeprefix("Value error, ")))
                )
                + ("" if item["type"] == "value_error" or _SECRETS & {*item["loc"]} else f" (got {item['input']!r})")
                for item in error.errors()
            ]
            raise SettingsError("\n".join(lines)) from None

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Return (NAME, current value, default, help) of every setting; secrets other than the defaults are masked."""
        rows = []
        for name, field in type(self).model_fields.items():
            value, default = getattr(self, name), field.default
            usual = default.get_secret_value() if isinstance(default, SecretStr) else shown(default)
            rows.append((name.upper(), usual if value == default else shown(value), usual, field.description or ""))
        return rows


_SECRETS = frozenset(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr)
