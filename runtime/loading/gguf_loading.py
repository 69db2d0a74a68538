"""Patches transformers' GGUF readers to read split files, parse each file once, and report tensors that they ignore.

transformers has two readers: its own for a few architectures (``transformers.integrations.gguf``), and an older one for
all others, based on the ``gguf`` package. Inside ``reading``, both read through this module.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from transformers import modeling_gguf_pytorch_utils as older
from transformers.integrations import gguf as newer
from transformers.integrations.gguf.reader import GgufHeader, TensorInfo, load_gguf_state_dict, read_gguf_metadata
from transformers.quantizers import quantizer_gguf

from runtime.model.gguf_split import parts

# Tensors of rotary scaling, which are not parameters of the model but are read into its configuration.
_PASSED_OVER = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


class GgufTensors:
    """Records which tensors of a file the older reader used; the reader itself silently ignores unknown ones.

    Attributes:
        unused: GGUF names of tensors for which the model has no parameter.
    """

    def __init__(self) -> None:
        self.unused: set[str] = set()
        self._parameters: dict[
            str, str
        ] = {}  # by GGUF name, mostly without ".weight" where several tensors fill one parameter
        self._present: set[str] = set()

    def half_filled(self) -> set[str]:
        """Return the GGUF names of missing tensors that fill a part of a parameter, where the reader leaves zeros."""
        count = Counter(self._parameters.values())
        expected = {name for name, parameter in self._parameters.items() if count[parameter] > 1}
        return {name for name in expected if not {name, f"{name}.weight"} & self._present}

    def gguf_names(self, parameters: set[str]) -> set[str]:
        """Return the GGUF names of parameters; for a parameter without one, its own name."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        return {names.get(parameter, parameter) for parameter in parameters}

    def read(self, reader: JoinedReader) -> JoinedReader:
        """Record the names of the tensors in the file, and return the reader."""
        self._present = {tensor.name for tensor in reader.tensors}
        return reader

    def mapped(self, parameters: dict[str, str]) -> dict[str, str]:
        """Return the mapping of GGUF names to parameters as a dictionary that records failed look-ups in ``unused``."""
        self._parameters = parameters
        return _Noting(parameters, self.unused)


class _Noting(dict[str, str]):
    """A dictionary that adds the names of failed membership tests to a set."""

    def __init__(self, mapping: Mapping[str, str], unused: set[str]) -> None:
        super().__init__(mapping)
        self._unused = unused

    def __contains__(self, name: object) -> bool:
        found = super().__contains__(name)
        if not found and isinstance(name, str) and name not in _PASSED_OVER:
            self._unused.add(name)
        return found


class JoinedReader:
    """Presents the parts of a split GGUF as one ``gguf.GGUFReader``: metadata of the first part, tensors of all.

    Args:
        path: the first part, or a file that is not split.

    Raises:
        ValueError: the parts do not belong together, or the file is one of several parts and was renamed.
        OSError: a part cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.parts = [(file, _Reader(str(file))) for file in parts(Path(path))]
        first = self.parts[0][1]
        self.fields = first.fields
        self.tensors = [tensor for _, reader in self.parts for tensor in reader.tensors]
        count = _number(first, "split.count")
        if len(self.parts) == 1:
            if count > 1:
                raise ValueError(f"the file is one of {count} parts, but not named NAME-00001-of-{count:05}.gguf")
            return
        for number, (file, reader) in enumerate(self.parts):
            if (_number(reader, "split.no"), _number(reader, "split.count")) != (number, len(self.parts)):
                raise ValueError(f"{file.name} is not part {number + 1} of {len(self.parts)}")
        if (expected := _number(first, "split.tensors.count")) != len(self.tensors):
            raise ValueError(f"the {len(self.parts)} parts hold {len(self.tensors)} tensors, not {expected}")


_Reader = gguf.GGUFReader


def _number(reader: Any, key: str) -> int:
    """Return the integer value of a metadata key; 0 if the key is absent."""
    field = reader.fields.get(key)
    return int(field.parts[field.data[0]][0]) if field else 0


@contextlib.contextmanager
def reading() -> Iterator[GgufTensors]:
    """Make transformers read GGUF files through this module inside the block.

    Results that the older reader computes repeatedly are cached: the parsed file (four times) and the table of tensor
    names (once per module). Without that, they take three quarters of a conversion's time.
    """
    tensors = GgufTensors()
    joined = functools.lru_cache(maxsize=1)(JoinedReader)
    names, metadata, load = older.get_gguf_hf_weights_map, read_gguf_metadata, load_gguf_state_dict

    def read_metadata(path: str, *args: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
        return metadata(path, *args)[0], tuple(tensor.name for tensor in joined(path).tensors)

    def header(path: str) -> GgufHeader:
        found = metadata(path)[0]
        infos = [info for _, reader in joined(path).parts for info in _infos(reader)]
        return GgufHeader(path, found["general.architecture"], tuple(infos), 0)

    def load_tensors(header: GgufHeader) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for file, reader in joined(header.path).parts:
            found |= load(header._replace(path=str(file), tensors=_infos(reader)))
        return found

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (gguf, "GGUFReader", lambda path: tensors.read(joined(path))),
            (gguf, "get_tensor_name_map", functools.lru_cache(maxsize=1)(gguf.get_tensor_name_map)),
            (
                older,
                "get_gguf_hf_weights_map",
                lambda *a, **k: tensors.mapped(names(*a, **k)),
            ),  # the last call has the whole table
            (newer, "read_gguf_metadata", read_metadata),
            (GgufHeader, "from_file", header),
            (quantizer_gguf, "load_gguf_state_dict", load_tensors),
        ):
            getattr(owner, name)  # makes a package that loads its modules lazily define the name
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, value)
        yield tensors


def _infos(reader: Any) -> tuple[TensorInfo, ...]:
    """Return a part's tensors in the newer reader's form, with offsets from the beginning of the file."""
    return tuple(
        TensorInfo(
            tensor.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            int(tensor.tensor_type),
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    )
