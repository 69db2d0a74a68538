"""Fixtures of the whole suite. The environment's settings must not change what is tested."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from runtime.settings import Settings
from tests.support.models import save_tiny_gguf, save_tiny_gpt2, save_tiny_llama
from tests.support.time_limits import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.support.time_limits import pytest_runtest_makereport as pytest_runtest_makereport
from tests.support.time_limits import pytest_runtest_teardown as pytest_runtest_teardown
from tests.support.time_limits import pytest_sessionfinish as pytest_sessionfinish

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Tests and the services they start share the cores, and torch's threads would take them from each other by waiting in a
# loop, which makes a model twenty times slower. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example's time depends on what else the machine does; ``tests/support/time_limits.py`` limits whole tests.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

# A shell starts background commands with SIGINT ignored, and the programs under test would inherit that from this one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _objects_of_earlier_modules() -> None:
    """Leave what was imported so far out of later collections: each unloaded model runs one, which took a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        if name != "cache_dir":  # the embedded model's conversion is shared by all runs on a machine
            monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """What a program under test sets up for its logs ends with the test, whose standard error that is."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def patient_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the shared Redis may take five seconds instead of half of one: other tests hold the machine up."""
    monkeypatch.setattr("runtime.storage.redis._SLICES", 100)
    monkeypatch.setattr("runtime.response_cache.redis._TIMEOUT_SECONDS", 5)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GPT-2."""
    return save_tiny_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def wide_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 GGUF file with widths of whole blocks."""
    folder = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_tiny_gguf(folder / "wide.gguf", save_tiny_llama(folder / "llama", head_dim=64, **shape))


@pytest.fixture(scope="session")
def mixed_gguf(wide_gguf: Path) -> Path:
    """A GGUF file in which every matrix has another type, of all that are served as they are."""
    from tests.support.gguf_models import save_mixed

    return save_mixed(wide_gguf, wide_gguf.with_name("mixed.gguf"))


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file; tests that change it copy it first."""
    return save_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama)
