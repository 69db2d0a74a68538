"""Selects the number types of weights, and computes fingerprints of everything that affects a model's results."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from runtime.device import select_dtype
from runtime.engine.native import build
from runtime.errors import ModelUnavailable
from runtime.loading import kernels
from runtime.model.catalogue import ModelSpec
from runtime.model.packing import MIXED_KINDS, SnapshotKind
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings

_KINDS: dict[str, SnapshotKind] = {
    "gguf": "gguf",
    "int4": "int4",
    "int8": "int8",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float16": "float32",  # bfloat16 could not represent it exactly
}


def serving_dtype(settings: Settings, device: str) -> str:
    """Return the weights' number type in the fast engine.

    Args:
        settings: the service's settings; ``DTYPE`` and ``CACHE_DIR`` are used.
        device: the device, from ``select_device``.

    Raises:
        ModelUnavailable: the device cannot run the type that ``DTYPE`` names.
    """
    compiled = device == "cpu" and kernels.host_kernels(settings.cache_dir) is not None
    if settings.dtype in MIXED_KINDS and not compiled:
        raise type_refused(settings.dtype, "needs the compiled kernels, which this device does not use")
    return select_dtype(settings.dtype, device, int8=compiled)


def check_file_types(spec: ModelSpec, dtype: str) -> None:
    """Check that a model can be served in the types of its file, if ``DTYPE=gguf`` says so.

    Args:
        spec: the model.
        dtype: the weights' number type, from ``serving_dtype``.

    Raises:
        ModelUnavailable: the model is not a GGUF file, or its weights are changed by an adapter.
    """
    if dtype != "gguf":
        return
    if not spec.location.lower().endswith(".gguf"):
        raise type_refused(dtype, f"serves GGUF files in their own types, which {spec.id} is not")
    if spec.adapter is not None:
        raise type_refused(dtype, f"keeps the file's own weights, which the adapter of {spec.id} changes")


def type_refused(dtype: str, reason: str) -> ModelUnavailable:
    """Return the error for a model that cannot be served in the type that ``DTYPE`` names.

    Args:
        dtype: the value of ``DTYPE``.
        reason: what the setting does or needs, and why that does not fit.
    """
    return ModelUnavailable(f"DTYPE={dtype} {reason}; set DTYPE=auto")


def reference_dtype(settings: Settings, device: str) -> str:
    """Return the weights' number type in the reference engine, which has no quantized weights.

    Arguments and errors are those of ``serving_dtype``.
    """
    return select_dtype("auto" if settings.dtype in ("int8", *MIXED_KINDS) else settings.dtype, device)


def check_kv_dtype(settings: Settings) -> None:
    """Check that ``KV_DTYPE`` leaves the type of keys and values to torch, which has them in its type of computation.

    Raises:
        ModelUnavailable: it names a type.
    """
    if settings.kv_dtype != "auto":
        raise ModelUnavailable(
            f"KV_DTYPE={settings.kv_dtype} needs the compiled kernels, which this model or device does not use; "
            "set KV_DTYPE=auto"
        )


def weight_kind(dtype: str) -> SnapshotKind:
    """Return the number type in which a snapshot stores matrices for a type from ``serving_dtype``."""
    return _KINDS[dtype]


def fast_fingerprint(snapshot: Snapshot, device: str, dtype: str, settings: Settings, *, level: str | None) -> str:
    """Return a hash of everything that affects the numerical results of a model in the fast engine.

    Args:
        snapshot: the model's snapshot, whose digest covers its weights, tokenizer and chat template.
        device: the device on which it runs.
        dtype: the weights' number type, from ``serving_dtype``.
        settings: the service's settings; ``KV_DTYPE`` affects the kernels' results, ``DETERMINISTIC`` torch's.
        level: level of the compiled kernels; None if torch computes.
    """
    native = {"level": level, "sources": build.digest(), "kv_dtype": settings.kv_dtype}
    code = native if level else _torch(device, settings)
    return _hash(snapshot.digest, snapshot.facts.kind, device, dtype, code)


def reference_fingerprint(identity: str, device: str, dtype: str, settings: Settings) -> str:
    """Return a hash of everything that affects the numerical results of a model in the reference engine.

    Args:
        identity: the identity of the model's source, from ``runtime.loading.model_files``.
        device: the device on which it runs.
        dtype: the weights' number type, from ``reference_dtype``.
        settings: the service's settings; ``DETERMINISTIC`` affects torch's results.
    """
    import transformers

    return _hash(identity, device, dtype, {"transformers": transformers.__version__, **_torch(device, settings)})


def _torch(device: str, settings: Settings) -> dict[str, Any]:
    """Return the properties of torch and its device that affect numerical results."""
    import torch

    processor = torch.backends.cpu.get_cpu_capability()
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(torch.device(device))
    return {
        "torch": torch.__version__,
        "processor": processor,
        "threads": torch.get_num_threads(),
        "deterministic": settings.deterministic,
        "logits": "float32",  # earlier versions returned them in the weights' type
    }


def _hash(*facts: Any) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
