"""Devices, number types, cores."""

from __future__ import annotations

import pytest
import torch

from runtime import device
from runtime.errors import ModelUnavailable


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of preference, with each device's presence planted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.select_device("auto") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.select_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.select_device("auto").type == "cpu"


def test_a_named_device_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent fallback from what was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.select_device("cuda:0").index == 0
    with pytest.raises(ModelUnavailable, match="DEVICE=cuda:1"):
        device.select_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelUnavailable, match="DEVICE=cuda"):
        device.select_device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2"}, torch.float32),
        ({"avx2", "avx512f"}, torch.float32),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
    ],
)
def test_a_cpu_gets_16_bits_only_with_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: torch.dtype
) -> None:
    """bfloat16 on AMX or AVX512-BF16, float32 elsewhere."""
    monkeypatch.setattr(device, "_cpu_flags", lambda: flags)
    assert device.select_dtype("auto", torch.device("cpu")) is expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_gets_bfloat16_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    """Older cards take float16 instead of emulating."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert device.select_dtype("auto", torch.device("cuda")) is expected


def test_the_override_is_obeyed_but_for_float16_on_a_cpu() -> None:
    """A named type is taken; the one a CPU does badly is refused with advice."""
    assert device.select_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert device.select_dtype("float32", torch.device("cuda")) is torch.float32
    with pytest.raises(ModelUnavailable, match="DTYPE=float16"):
        device.select_dtype("float16", torch.device("cpu"))


def test_cores_and_memory_are_read() -> None:
    """At least one core, and a process that has imported torch holds more than 50 MB."""
    assert device.usable_cores() >= 1
    assert device.memory_in_use(torch.device("cpu")) > 50_000_000
