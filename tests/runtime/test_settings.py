"""Settings: read once, checked whole, wrong ones named."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from runtime.errors import SettingsError
from runtime.settings import Settings


def test_defaults() -> None:
    """Loopback, port 8000, the embedded model, preloaded; private networks may call, no proxy is trusted, no CORS."""
    settings = Settings.load()
    assert (settings.host, settings.port, settings.model_name) == ("127.0.0.1", 8000, "smollm2-135m-instruct")
    assert settings.preload
    assert not settings.disable_ip_restriction
    assert settings.trusted_proxies == settings.cors_origins == ()
    assert {ip_network(text) for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")} <= set(
        settings.allowed_ips
    )
    assert {ip_network("::1/128"), ip_network("fc00::/7")} <= set(settings.allowed_ips)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "9000", 9000),
        ("PRELOAD", "false", False),
        ("MODEL_WAIT_SECONDS", "1.5", 1.5),
        ("ALLOWED_IPS", "10.1.2.3/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("ALLOWED_IPS", "", ()),
        ("TRUSTED_PROXIES", "10.0.0.1 10.0.0.2", (ip_network("10.0.0.1"), ip_network("10.0.0.2"))),
        ("CLIENT_IP_HEADER", "forwarded", "forwarded"),
        ("CORS_ORIGINS", "https://a.example,http://b.example", ("https://a.example", "http://b.example")),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("DEVICE", "cuda:1", "cuda:1"),
    ],
)
def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any) -> None:
    """Each kind of value, as an operator would write it."""
    monkeypatch.setenv(name, text)
    assert getattr(Settings.load(), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("PORT", "abc", "PORT: .*integer.*'abc'"),
        ("PORT", "70000", "PORT: .*65535.*'70000'"),
        ("PORT", "", "PORT"),
        ("ALLOWED_IPS", "10.0.0.0/8,not-a-net", "ALLOWED_IPS.*'not-a-net'"),
        ("TRUSTED_PROXIES", "10.1.2.3/8", r"TRUSTED_PROXIES.*'10\.1\.2\.3/8'"),
        ("ALLOWED_IPS", "::ffff:10.0.0.0/80", "ALLOWED_IPS.*::ffff:10"),
        ("CLIENT_IP_HEADER", "x-client", "CLIENT_IP_HEADER"),
        ("CORS_ORIGINS", "example.com", "CORS_ORIGINS.*example.com"),
        ("DEVICE", "tpu", "DEVICE"),
        ("DTYPE", "int3", "DTYPE"),
        ("MODEL_NAME", "", "MODEL_NAME"),
        ("MAX_BODY_BYTES", "1", "MAX_BODY_BYTES"),
        ("REQUEST_TIMEOUT_SECONDS", "nan", "REQUEST_TIMEOUT_SECONDS"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str) -> None:
    """The message holds the setting's name and what was given."""
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=said):
        Settings.load()


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One start is enough to see every mistake."""
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("DTYPE", "y")
    with pytest.raises(SettingsError, match=r"(?s)PORT.*DTYPE"):
        Settings.load()


def test_settings_are_frozen() -> None:
    """Nothing changes them after start."""
    with pytest.raises((ValidationError, dataclasses.FrozenInstanceError)):
        Settings.load().port = 1  # type: ignore[misc]


def test_every_setting_has_help_and_is_described() -> None:
    """`warmstart config` has a line of help for each, and shows current beside default values."""
    rows = {name: (value, default, text) for name, value, default, text in Settings.load(port=1).describe()}
    assert rows.keys() == {name.upper() for name in Settings.model_fields}
    assert all(text.endswith(".") for _, _, text in rows.values())
    assert rows["PORT"][:2] == ("1", "8000")
