"""A fake engine that also encodes, without a model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import EncoderInfo, EncoderInput, Truncation
from runtime.errors import ContextLengthExceeded, InvalidRequest
from runtime.types import ModelInfo
from tests.support.fakes import INFO, FakeEngine

ENCODER = EncoderInfo(
    tasks=("embed", "classify", "rerank"),
    width=4,
    max_tokens=100,
    normalized=True,
    dimensions=(2,),
    prompts={"query": "Q: ", "title": "T: "},
    labels=("good", "bad"),
    activation="sigmoid",
)


@dataclass
class FakeEncoder(FakeEngine):
    """A fake engine whose vectors and logits depend on the tokens of an input only, and which records its calls.

    A token is a character, of which each text has two more at its ends; the vector of a text says how often its
    characters occur, by their code modulo 4. The logits of a class are the number of its tokens, negated for the second
    class; of a pair, the number of the document's tokens that the query has, too.

    Args:
        failure_to_encode: raised instead of computing.
    """

    info: ModelInfo = field(default_factory=lambda: replace(INFO, encoder=ENCODER))
    failure_to_encode: Exception | None = None
    embedded: list[list[EncoderInput]] = field(default_factory=list)
    classified: list[list[EncoderInput]] = field(default_factory=list)
    tokenized: list[list[str | tuple[str, str]]] = field(default_factory=list)

    async def tokenize_inputs(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        prompt: str = "",
        max_tokens: int | None = None,
        truncate: Truncation = "none",
        background: bool = False,
        field: str = "input",
    ) -> list[EncoderInput]:
        self.tokenized.append(list(texts))
        limit = max_tokens or (self.info.encoder or ENCODER).max_tokens
        found = []
        for number, text in enumerate(texts):
            before, last = ("", prompt + text) if isinstance(text, str) else (f"{text[0]}\2", text[1])
            whole = "\1" + before + last + "\2"
            room = len(last) - max(0, len(whole) - limit)
            if room < len(last) and truncate == "none":
                name = field if len(texts) == 1 else f"{field}.{number}"
                raise ContextLengthExceeded(f"the limit is {limit} tokens; {name} has {len(whole)} tokens", param=name)
            last = last[:room] if truncate == "end" else last[len(last) - room :]
            found.append(EncoderInput(tuple(ord(char) % 256 for char in "\1" + before + last + "\2")))
        return found

    async def embed(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        self._check(inputs, field)
        self.embedded.append(list(inputs))
        counts = [np.bincount(np.array(given.ids) % 4, minlength=4) for given in inputs]
        return [(count / np.linalg.norm(count)).astype(np.float32) for count in counts]

    async def classify(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        self._check(inputs, field)
        self.classified.append(list(inputs))
        found = []
        for given in inputs:
            if 2 in given.ids[:-1]:  # a pair
                end = given.ids.index(2)
                found.append([float(sum(token in given.ids[1:end] for token in given.ids[end + 1 : -1]))])
            else:
                found.append([float(zlib.crc32(repr(given.ids).encode()) % 7), -float(len(given.ids))])
        return [np.array(logits, np.float32) for logits in found]

    def _check(self, inputs: Sequence[EncoderInput], field: str) -> None:
        if self.failure_to_encode is not None:
            raise self.failure_to_encode
        for number, given in enumerate(inputs):
            if any(token >= self.info.vocabulary_size for token in given.ids):
                name = field if len(inputs) == 1 else f"{field}.{number}"
                raise InvalidRequest(f"{name}: the model does not have this token", param=name)
