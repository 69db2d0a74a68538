"""What callers are told of errors that libraries raise while loading: the reason, and nothing that is secret."""

from __future__ import annotations

import pytest

from runtime.model.catalogue import ModelSpec
from runtime.model.load_errors import named, reason, unavailable

SPEC = ModelSpec("mine", "folder", "/srv/My Models/mine")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            ModuleNotFoundError("No module named 'torchao.x'", name="torchao.x"),
            "the Python package torchao is not installed",
        ),
        (ImportError("requires optimum (`pip install optimum`)"), "requires optimum (`pip install optimum`)"),
        (OverflowError("int too big to convert"), "int too big to convert (OverflowError)"),
        (AttributeError("'X' object has no attribute 'vocab_size'"), "'X' object has no attribute 'vocab_size'"),
        (KeyError("num_hidden_layers"), "num_hidden_layers"),
        (ValueError("Expecting value: line 1 column 7 (char 6)"), "Expecting value: line 1 column 7 (char 6)"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (MemoryError(), "there is not enough memory"),
        (MemoryError("99 bytes are too few"), "there is not enough memory: 99 bytes are too few"),
        (
            ValueError("Please pass the argument `trust_remote_code=True`"),
            "(auto_map), which is never run",
        ),
    ],
)
def test_the_reason_is_shown(error: Exception, shown: str) -> None:
    """The library's own words, on one line."""
    assert shown in reason(error)


@pytest.mark.parametrize(
    "text",
    [
        "No such file: /srv/secret/model.bin",
        "config '/srv/my secret/x' is bad",
        '[Errno 2] no: "C:\\Users\\secret\\x"',
        "see ~/secret/x and ../secret/y or ./secret",
        "in (/home/secret), and file:///secret/x",
        "GET https://user:secret@host/x?token=secret failed",
        "redis://:secret@127.0.0.1:6379/0",
        "Authorization: Bearer secret.secret",
        "token hf_secretsecretsecret is not valid",
        "key sk-secret-1234567890",
        "key AK1secret2345AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA is bad",
        "Overflow\nException raised from secret at /x.h:79 (most recent call first):\nframe #0: secret",
        "failed\nTraceback (most recent call last):\n  File secret",
        "The folder /srv/My Models/mine/secret/a.json is no model",
    ],
)
def test_what_is_secret_is_left_out(text: str) -> None:
    """Paths, URLs, credentials and stack traces."""
    assert "secret" not in reason(ValueError(text), {SPEC.location})


@pytest.mark.parametrize("text", ["at '/srv/my x/config.json' is bad", "at /srv/My Models/mine/config.json: is bad"])
def test_the_name_of_a_models_file_stays(text: str) -> None:
    """So that one knows which to mend."""
    shown = reason(ValueError(text), {SPEC.location})
    assert "at config.json" in shown
    assert "is bad" in shown
    assert "srv" not in shown


def test_names_stay() -> None:
    """Hub ids and fractions are no paths, and long names of classes no credentials."""
    text = "owner/name has 1/2 of Qwen2_5OmniThinkerForConditionalGeneration"
    assert text in reason(ValueError(text))


def test_a_long_message_is_cut() -> None:
    """At a blank."""
    shown = reason(ValueError("Model type should be one of " + "SomeConfig, " * 200))
    assert len(shown) < 350
    assert "SomeConfig, ..." in shown


def test_the_error_says_what_to_do() -> None:
    """By its kind, and with the model's name."""
    assert "install that package" in unavailable(SPEC, ImportError("requires optimum")).message
    assert "smaller model" in unavailable(SPEC, MemoryError()).message
    assert "smaller model" in unavailable(SPEC, RuntimeError("can't allocate memory")).message
    other = unavailable(SPEC, OverflowError("too big"))
    assert other.message.startswith("mine cannot be loaded: too big (OverflowError); check its files")
    assert other.status == 503


def test_many_names_are_counted() -> None:
    """The first five are shown, in order."""
    assert named({"b", "a"}) == "a, b"
    assert named([f"layer{i}" for i in range(7)]) == "layer0, layer1, layer2, layer3, layer4 and 2 more"
