"""The metadata of a model that is loaded from a snapshot."""

from __future__ import annotations

import time

from runtime.loading.precision import fast_fingerprint
from runtime.model.catalogue import ModelSpec
from runtime.model.snapshot import Snapshot
from runtime.model.tensors import active_parameters
from runtime.settings import Settings
from runtime.types import ModelInfo


def snapshot_info(
    spec: ModelSpec,
    snapshot: Snapshot,
    settings: Settings,
    *,
    device: str,
    dtype: str,
    level: str | None,
    optimizations: tuple[str, ...],
    started: float,
) -> ModelInfo:
    """Return the metadata that decoders and encoders have.

    Args:
        spec: the model.
        snapshot: its snapshot.
        settings: the service's settings.
        device: the device, from ``select_device``.
        dtype: the weights' number type.
        level: the instruction set level of the compiled kernels; None if PyTorch computes.
        optimizations: descriptions of the active optimizations.
        started: the time at which the load began, of ``time.perf_counter``.
    """
    facts = snapshot.facts
    return ModelInfo(
        name=spec.id,
        revision=facts.revision or spec.revision,
        source=spec.kind,
        architecture=facts.architecture,
        parameters=facts.parameters,
        active_parameters=active_parameters(facts.decoder, facts.parameters),
        dtype=dtype,
        device=device,
        context_length=facts.decoder.context_length,
        vocabulary_size=facts.decoder.vocabulary,
        chat_template=False,
        load_seconds=time.perf_counter() - started,
        warmup_seconds=0.0,
        weights_bytes=snapshot.nbytes,
        engine="native" if level else "torch",
        optimizations=optimizations,
        weight_types=snapshot.weight_types,
        fingerprint=fast_fingerprint(snapshot, device, dtype, settings, level=level),
    )
