"""Reads all settings from environment variables into one frozen object, and validates them at startup.

Every setting is the environment variable with the field's name in capitals and has a default, a type, a range and one
line of help. Blanks around a value are ignored. A wrong value stops the service with an error that names the setting
(``Settings.load``). No other module reads the environment.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from runtime.batch_settings import BatchSettings
from runtime.errors import SettingsError
from runtime.networks import parse_networks
from runtime.setting_types import Networks, OptionalPath, Origins, Strings, Upper
from runtime.setting_values import shown

MIN_SECRET_CHARS = 32  # characters of AUDIT_KEY: the width of the hash in bytes


ClientIpHeader = Literal["x-forwarded-for", "x-real-ip", "forwarded"]

# Loopback, RFC 1918, RFC 4193 and link-local: clients with these addresses are on the same host or network.
PRIVATE_NETWORKS = parse_networks(
    ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "::1", "fc00::/7", "fe80::/10"],
    strict=True,
    name="PRIVATE_NETWORKS",
)


class Settings(BatchSettings):
    """All settings of the service. Durations are in seconds and sizes in bytes unless the name says otherwise."""

    # Client addresses
    allowed_ips: Networks = Field(
        PRIVATE_NETWORKS, description="Networks whose clients are allowed; host bits are accepted."
    )
    disable_ip_restriction: bool = Field(False, description="Allow clients with any address.")
    trusted_proxies: Networks = Field((), description="Networks of proxies whose forwarding header is used.")
    client_ip_header: ClientIpHeader = Field(
        "x-forwarded-for", description="The one header in which trusted proxies send the client's address."
    )
    trust_unix_peers: bool = Field(False, description="Treat a unix-socket peer as a trusted proxy.")
    cors_origins: Origins = Field(
        (), description="Origins of web pages that may call the API (CORS), or *; none by default."
    )
    forwarded_origin: bool = Field(
        False, description="Take scheme and host from trusted proxies: X-Forwarded-Proto and -Host, or Forwarded."
    )

    # Keys and signatures
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API key records, as printed by warmstart keys create; without records no key is needed.",
    )
    api_keys_file: OptionalPath = Field(None, description="File with more API key records; read again when it changes.")
    open_pages: bool = Field(
        False, description="Serve the web page, the docs and their files without a key; their API calls still need one."
    )
    auth_failures_per_minute: int = Field(
        20,
        ge=2,
        le=1_000_000,
        description="Failed authentications of one address in any minute; more are answered 429.",
    )
    request_signing: Literal["off", "accepted", "required"] = Field(
        "off", description="RFC 9421 signatures: off, accepted in place of an API key, or required of every request."
    )
    signing_window_seconds: int = Field(300, ge=1, le=86_400, description="Maximum age of a signature.")
    signing_authority: str = Field(
        "",
        max_length=255,
        description="Host and port that signatures must be made for; by default those of the Host header.",
    )
    signing_nonces: Literal["memory", "redis"] = Field(
        "memory", description="Where used nonces are stored; use redis if replicas share the traffic."
    )

    # Rate limits
    rate_limit_enabled: bool = Field(False, description="Limit each API key, or each address if no key is needed.")
    rate_limit_requests_per_minute: int = Field(
        120, ge=0, le=10_000_000, description="Requests of one client in any 60 seconds; 0 for no limit."
    )
    rate_limit_tokens_per_minute: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Tokens of one client in any 60 seconds, prompts and answers together; 0 for no limit.",
    )
    rate_limit_burst: float = Field(
        0.5,
        gt=0,
        le=0.95,
        description="Fraction of a minute's limit that may be used at once; the rest is spread evenly over the minute.",
    )
    rate_limit_concurrency: int = Field(
        0, ge=0, le=1_000_000, description="Concurrent requests of one client per process; 0 for no limit."
    )
    rate_limit_store: Literal["memory", "redis"] = Field(
        "memory", description="Where the clients' usage is counted; use redis if replicas share the traffic."
    )
    rate_limit_clients: int = Field(
        100_000,
        ge=100,
        le=100_000_000,
        description="Maximum clients stored in memory; the least recently seen is evicted first.",
    )
    rate_limit_fail: Literal["open", "closed"] = Field(
        "open", description="When Redis is unavailable: open admits every request, closed answers 503."
    )
    rate_limit_legacy_headers: bool = Field(
        False, description="Also send X-RateLimit-Limit, -Remaining and -Reset, beside the IETF draft's headers."
    )

    # Audit log
    audit_log: OptionalPath = Field(
        None, description="File of the hash-chained audit log of all requests; none by default."
    )
    audit_key: SecretStr = Field(
        SecretStr(""), description="Secret key of the audit log's chain and prompt hashes, at least 32 characters."
    )
    audit_max_bytes: int = Field(104_857_600, ge=4096, le=2**40, description="Size at which the audit log is rotated.")
    audit_required: bool = Field(False, description="Answer 503 while the audit log cannot be written.")

    # Events
    events_url: SecretStr = Field(
        SecretStr(""),
        description="Broker of warmstart consume and submit: nats://, redis://, amqp:// or kafka://.",
    )
    events_operations: Strings = Field(
        (), description="Operations that events may call; by default all but the admin operations."
    )
    events_concurrency: int = Field(
        16, ge=1, le=1024, description="Messages that a worker processes concurrently; it fetches no more."
    )
    events_ack_seconds: float = Field(
        30,
        ge=1,
        le=43_200,
        description="A message is redelivered if its worker has not renewed its lease for this long.",
    )
    events_max_deliveries: int = Field(
        5,
        ge=1,
        le=1000,
        description="Maximum deliveries of a message that fails or crashes its worker; then it is dead-lettered.",
    )
    events_reply_prefixes: Strings = Field(
        (),
        description="Allowed prefixes of a message's reply address; by default the broker's inboxes and our own.",
    )
    idempotency: Literal["off", "memory", "sqlite", "redis"] = Field(
        "sqlite",
        description="Where processed events and answers of requests with an Idempotency-Key are recorded: off, memory, "
        "sqlite (in CACHE_DIR) or redis (shared).",
    )
    idempotency_ttl_seconds: float = Field(
        86_400,
        gt=0,
        le=31_536_000,
        description="How long a processed event or request with an Idempotency-Key is answered with its stored result.",
    )

    # Connections
    tls_cert_file: OptionalPath = Field(
        None, description="Certificate chain (PEM) to serve HTTPS with; read again when renewed."
    )
    tls_key_file: OptionalPath = Field(
        None, description="Private key of the certificate, if it is not in the same file."
    )
    tls_client_ca_file: OptionalPath = Field(
        None, description="Require client certificates that are signed by one of these authorities (PEM)."
    )
    max_connections: int = Field(
        1024, ge=1, le=1_000_000, description="Maximum open connections; more are closed immediately."
    )
    max_connections_per_address: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Maximum open connections of one peer that is no trusted proxy; IPv6 peers are counted by /64.",
    )
    keepalive_seconds: float = Field(
        75,
        gt=0,
        le=3600,
        description="How long an idle connection is kept open; should be longer than the proxy in front keeps it.",
    )
    keepalive_requests: int = Field(
        10_000, ge=1, le=10**9, description="Maximum requests on one connection before it is closed."
    )
    max_header_bytes: int = Field(
        8190, ge=512, le=1_048_576, description="Maximum length of the request line and of each header field."
    )
    max_headers: int = Field(100, ge=8, le=10_000, description="Maximum header fields of a request.")
    max_json_depth: int = Field(32, ge=4, le=500, description="Maximum nesting depth of a request's JSON.")
    proxy_protocol: bool = Field(
        False,
        description="Expect a PROXY protocol header (v1 or v2) on each connection, from trusted proxies only.",
    )

    # Tracing and logs
    tracing: bool = Field(
        False, description="Send OpenTelemetry spans (needs warmstart[otel]) to OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json, console, or auto: console on a terminal, json elsewhere."
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Upper] = Field(
        "INFO", description="Minimum level of log lines."
    )
    log_prompts: bool = Field(False, description="Log prompts and messages with each request.")

    @model_validator(mode="after")
    def _settings_agree(self) -> Settings:
        if self.request_signing != "off" and not self.needs_credentials:
            raise ValueError("REQUEST_SIGNING: set API_KEYS_FILE or API_KEYS: signatures are made with their keys")
        if self.audit_log is not None and len(self.audit_key.get_secret_value()) < MIN_SECRET_CHARS:
            raise ValueError(f"AUDIT_KEY: AUDIT_LOG needs a secret of {MIN_SECRET_CHARS} characters or more")
        if self.audit_required and self.audit_log is None:
            raise ValueError("AUDIT_REQUIRED: set AUDIT_LOG, the file to write")
        if self.batch_stream and (self.files_dir is None or not self.events_url.get_secret_value()):
            raise ValueError("BATCH_STREAM: set FILES_DIR and EVENTS_URL, too")
        if self.tls_cert_file is None and (self.tls_key_file or self.tls_client_ca_file):
            raise ValueError("TLS_CERT_FILE: TLS_KEY_FILE and TLS_CLIENT_CA_FILE need it")
        if self.proxy_protocol and self.tls_cert_file is not None:
            raise ValueError("PROXY_PROTOCOL: it cannot be combined with TLS_CERT_FILE; let the proxy terminate TLS")
        if self.proxy_protocol and not self.trusted_proxies:
            raise ValueError("PROXY_PROTOCOL: set TRUSTED_PROXIES, the only peers that it is accepted from")
        return self

    @property
    def needs_credentials(self) -> bool:
        """Whether requests need an API key or a signature."""
        return self.api_keys_file is not None or bool(self.api_keys.get_secret_value().strip())

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
            default_text = default.get_secret_value() if isinstance(default, SecretStr) else shown(default)
            rows.append(
                (
                    name.upper(),
                    default_text if value == default else shown(value),
                    default_text,
                    field.description or "",
                )
            )
        return rows


_SECRETS = frozenset(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr)
