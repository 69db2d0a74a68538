"""A serving snapshot: a model as memory-mapped packed weights, with its tokenizer and its properties.

Reading it imports neither torch nor transformers. ``runtime.model.snapshot_folder`` opens one on disk.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import DecoderConfig
from runtime.model.encoder_config import EncoderConfig
from runtime.model.packing import MatrixKind, Packed, SnapshotKind, scale_count
from runtime.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a snapshot's model.

    Args:
        source: the file's name or the hub id; informative only.
        revision: the hub's commit; None if the model is not from the hub.
        architecture: the model's class in transformers.
        parameters: number of parameters, a tied head counted once.
        kind: number type of the packed matrices; ``gguf`` or ``int4`` if each has its own.
        decoder: the decoder's configuration.
        end_ids: ids of all tokens that end a sequence.
        sampling_defaults: the sampling parameters of the model's generation config, as (name, value).
        encoder: what the model computes from a text; None for a model that generates.
    """

    source: str
    revision: str | None
    architecture: str
    parameters: int
    kind: SnapshotKind
    decoder: DecoderConfig
    end_ids: tuple[int, ...]
    sampling_defaults: tuple[tuple[str, float], ...] = ()
    encoder: EncoderConfig | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        """Build the properties from the result of ``dataclasses.asdict``, also after a round trip through JSON text.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        decoder = DecoderConfig.from_json(data["decoder"])
        defaults = tuple((name, value) for name, value in data["sampling_defaults"])
        encoder = None if data["encoder"] is None else EncoderConfig.from_json(data["encoder"])
        tuples = {"end_ids": tuple(data["end_ids"]), "sampling_defaults": defaults}
        return cls(**{**data, "decoder": decoder, "encoder": encoder, **tuples})


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a tensor in ``weights.bin``.

    Args:
        shape: the shape before packing.
        kind: number type of a packed matrix; None for a tensor that is float32 and not packed.
        offset: position in bytes.
        size: size in bytes, without scales.
        scales: position of an int8 matrix's scales in bytes; None for other tensors.
    """

    shape: tuple[int, ...]
    kind: MatrixKind | None
    offset: int
    size: int
    scales: int | None

    @property
    def matrix(self) -> bool:
        """Whether the tensor is a packed matrix."""
        return self.kind is not None


class Snapshot:
    """An open snapshot. Its arrays are read-only views of the mapped file, which stays mapped while any of them exists.

    Args:
        facts: the model's properties.
        tokenizer: the model's tokenizer.
        buffer: the content of ``weights.bin``.
        places: the tensors' positions in ``buffer``, by name.
        digest: SHA-256 of the whole snapshot.
    """

    def __init__(
        self, facts: Facts, tokenizer: Tokenizer, buffer: mmap.mmap, places: Mapping[str, Place], digest: str
    ) -> None:
        self.facts = facts
        self.tokenizer = tokenizer
        self.digest = digest
        self._bytes: NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
        self._bytes.flags.writeable = False
        self._places = places

    @property
    def nbytes(self) -> int:
        """Size of ``weights.bin`` in bytes."""
        return self._bytes.size

    @property
    def step_bytes(self) -> int:
        """Bytes of the weights that a step of one token reads: of experts those that the token is given to.

        Of an embedding that is not the head, too, it reads one row, which is not counted.
        """
        decoder, read = self.facts.decoder, self.nbytes
        for name, place in self._places.items():
            size = place.size + (0 if place.scales is None else 4 * scale_count(*place.shape))
            if name == "embed" and not decoder.tied:
                read -= size
            elif ".experts_" in name and decoder.experts is not None:
                read -= size - size * decoder.experts.per_token // decoder.experts.count
        return read

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def is_matrix(self, name: str) -> bool:
        """Return whether a tensor is a packed matrix."""
        return self._places[name].matrix

    def matrix_kind(self, name: str) -> MatrixKind:
        """Return the number type of a packed matrix.

        Raises:
            KeyError: there is no tensor of that name, or it is not packed.
        """
        kind = self._places[name].kind
        if kind is None:
            raise KeyError(name)
        return kind

    @property
    def weight_types(self) -> tuple[str, ...]:
        """Number types of the packed matrices, those with the most bytes first."""
        sizes: Counter[str] = Counter()
        for place in self._places.values():
            if place.kind is not None:
                sizes[place.kind] += place.size
        return tuple(kind for kind, _ in sizes.most_common())

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape before packing."""
        return self._places[name].shape

    def matrix(self, name: str) -> Packed:
        """Return a packed matrix; its data and its scales begin at 64-byte boundaries.

        Raises:
            KeyError: there is no tensor of that name, or it is not packed.
        """
        place = self._places[name]
        if not place.matrix:
            raise KeyError(name)
        scales = None
        if place.scales is not None:
            scales = self._slice(place.scales, 4 * scale_count(*place.shape)).view(np.float32)
        return Packed(self._slice(place.offset, place.size), scales)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor that is not packed, float32, in its shape.

        Raises:
            KeyError: there is no tensor of that name, or it is a matrix.
        """
        place = self._places[name]
        if place.matrix:
            raise KeyError(name)
        return self._slice(place.offset, place.size).view(np.float32).reshape(place.shape)

    def _slice(self, offset: int, size: int) -> NDArray[np.uint8]:
        return self._bytes[offset : offset + size]
