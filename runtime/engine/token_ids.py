"""Validation of the token ids in a job, shared by all engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from runtime.errors import InvalidRequest
from runtime.types import Job

_MAX_SHOWN_CHARACTERS = 40  # maximum length of a token's text in an error message


def check_token_ids(job: Job, vocabulary_size: int, token_bytes: Callable[[int], bytes]) -> None:
    """Reject a job with a token id for which the model has no embedding or no logit.

    Tokenizers may produce such ids, for example for a padding token that was added without resizing the model.

    Args:
        job: the job; its prompt, forced tokens, stop tokens, allowed tokens and logit bias are checked.
        vocabulary_size: number of rows of the model's embedding and output head.
        token_bytes: function that returns a token's text in UTF-8, for the error message.

    Raises:
        InvalidRequest: a token id is out of range; the message names the request's field, the id, the token's text if
            it is printable, and the vocabulary size.
    """
    check_ids(job.token_ids, job.field, vocabulary_size, token_bytes)
    for text in (job.params.forced, *job.continuations):
        check_ids(text, job.field, vocabulary_size, token_bytes)
    check_ids(job.params.stop_token_ids, "stop_token_ids", vocabulary_size, token_bytes)
    check_ids(job.params.allowed_token_ids, "allowed_token_ids", vocabulary_size, token_bytes)
    check_ids([token for token, _ in job.params.logit_bias], "logit_bias", vocabulary_size, token_bytes)


def known_ids(ids: Iterable[int], vocabulary_size: int) -> tuple[int, ...]:
    """Return the token ids for which the model has an embedding and a logit."""
    return tuple(token for token in ids if 0 <= token < vocabulary_size)


def check_ids(ids: Sequence[int], field: str, vocabulary_size: int, token_bytes: Callable[[int], bytes]) -> None:
    """Reject token ids that are out of range; arguments and errors as for ``check_token_ids``.

    Args:
        ids: the token ids.
        field: the request's field that holds them, for the error message.
    """
    largest, smallest = max(ids, default=0), min(ids, default=0)
    if smallest >= 0 and largest < vocabulary_size:
        return
    token = largest if largest >= vocabulary_size else smallest
    text = token_bytes(token).decode(errors="replace") if token > 0 else ""
    named = f" ({text[:_MAX_SHOWN_CHARACTERS]!r})" if text.isprintable() and text else ""
    raise InvalidRequest(
        f"{field}: {token}{named} is not a token id of this model; its vocabulary has {vocabulary_size} tokens, "
        f"with ids from 0 to {vocabulary_size - 1}",
        param=field,
    )
