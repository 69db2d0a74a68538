"""runtime.device: which device, which number type, and the memory held there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from runtime import device
from runtime.errors import ModelUnavailable


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of preference, with each device's presence planted."""
    monkeypatch.setattr(device, "_may_have_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.select_device("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.select_device("auto") == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.select_device("auto") == "cpu"


def test_without_a_driver_torch_is_not_even_asked() -> None:
    """A machine with no more than a CPU decides without importing torch."""
    program = """
import sys
from runtime import device, host
device._may_have_cuda = device._may_have_mps = lambda: False
assert (device.select_device("auto"), device.select_device("cpu")) == ("cpu", "cpu")
assert device.select_dtype("auto", "cpu") and host.resident_memory() and host.memory_limit()
device.release_memory("cpu")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_driver_without_a_device_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is there, starts, and counts; anything else means that there is no CUDA."""

    class Driver:
        def __init__(self, started: int, status: int, devices: int) -> None:
            self.started, self.status, self.devices = started, status, devices

        def cuInit(self, flags: int) -> int:  # the name in CUDA
            return self.started

        def cuDeviceGetCount(self, count: object) -> int:
            count._obj.value = self.devices  # type: ignore[attr-defined]
            return self.status

    for driver, expected in ((Driver(0, 0, 1), True), (Driver(100, 0, 1), False), (Driver(0, 0, 0), False)):
        monkeypatch.setattr(device.ctypes, "CDLL", lambda name, driver=driver: driver)
        assert device._may_have_cuda() is expected

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    assert device._may_have_cuda() is False


def test_a_named_device_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent fallback from what was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.select_device("cuda:0") == device.select_device("cuda") == "cuda:0"
    with pytest.raises(ModelUnavailable, match="DEVICE=cuda:1"):
        device.select_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelUnavailable, match="DEVICE=cuda"):
        device.select_device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2"}, "float32"),
        ({"avx2", "avx512f"}, "float32"),
        ({"avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
    ],
)
def test_a_cpu_gets_16_bits_only_with_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str
) -> None:
    """bfloat16 on AMX or AVX512-BF16, float32 elsewhere."""
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    assert device.select_dtype("auto", "cpu") == expected


def test_a_cpu_with_kernels_for_8_bits_gets_8_bits() -> None:
    """Unless another type is named; other devices are not concerned."""
    assert device.select_dtype("auto", "cpu", int8=True) == "int8"
    assert device.select_dtype("float32", "cpu", int8=True) == "float32"
    assert device.select_dtype("auto", "mps", int8=True) == "float16"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_cuda_gets_bfloat16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    """Older cards take float16 instead of emulating."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert device.select_dtype("auto", "cuda:0") == expected


def test_the_override_is_obeyed_but_for_float16_on_a_cpu() -> None:
    """A named type is taken; the one a CPU does badly is refused with advice."""
    assert device.select_dtype("bfloat16", "cpu") == "bfloat16"
    assert device.select_dtype("int8", "cpu") == "int8"
    assert device.select_dtype("float32", "cuda:0") == "float32"
    with pytest.raises(ModelUnavailable, match="DTYPE=float16"):
        device.select_dtype("float16", "cpu")
