"""Which number types a model is served in, and the name of all that decides the bits of its answers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from runtime.device import select_dtype
from runtime.engine.native import build
from runtime.loading import kernels
from runtime.model.packing import WeightKind
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings

_KINDS: dict[str, WeightKind] = {
    "int8": "int8",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float16": "float32",  # which bfloat16 could not hold
}


def serving_dtype(settings: Settings, device: str) -> str:
    """The weights' number type in the fast engine.

    Args:
        settings: ``DTYPE``.
        device: from ``select_device``.

    Raises:
        ModelUnavailable: see ``select_dtype``.
    """
    return select_dtype(
        settings.dtype, device, int8=device == "cpu" and kernels.host_kernels(settings.cache_dir) is not None
    )


def reference_dtype(settings: Settings, device: str) -> str:
    """The same in the reference engine, which has no 8-bit weights."""
    return select_dtype("auto" if settings.dtype == "int8" else settings.dtype, device)


def weight_kind(dtype: str) -> WeightKind:
    """How a snapshot stores weights of a number type from ``serving_dtype``."""
    return _KINDS[dtype]


def fast_fingerprint(snapshot: Snapshot, device: str, dtype: str, settings: Settings, *, level: str | None) -> str:
    """Names the numerics of a model in the fast engine.

    Args:
        snapshot: the model, whose digest covers its weights, tokenizer and chat template.
        device: where it runs.
        dtype: from ``serving_dtype``.
        settings: threads and ``DETERMINISTIC``, which change bits through torch.
        level: of the compiled kernels that compute; None where torch does.
    """
    code = {"level": level, "sources": build.digest()} if level else _torch(device, settings)
    return _hash(snapshot.digest, snapshot.facts.kind, device, dtype, code)


def reference_fingerprint(identity: str, device: str, dtype: str, settings: Settings) -> str:
    """Names the numerics of a model in the reference engine.

    Args:
        identity: of the source, from ``runtime.loading.model_files``.
        device: where it runs.
        dtype: from ``reference_dtype``.
        settings: threads.
    """
    import transformers

    return _hash(identity, device, dtype, {"transformers": transformers.__version__, **_torch(device, settings)})


def _torch(device: str, settings: Settings) -> dict[str, Any]:
    import torch

    processor = torch.backends.cpu.get_cpu_capability()
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(torch.device(device))
    return {
        "torch": torch.__version__,
        "processor": processor,
        "threads": torch.get_num_threads(),
        "deterministic": settings.deterministic,
        "logits": "float32",  # they came in the weights' type once
    }


def _hash(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
