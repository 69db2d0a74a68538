"""The result of a step for a sequence: which of its sampled tokens count, and whether they end it."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from runtime.engine.sequence import Row, Sampled, Sequence
from runtime.errors import ServiceError
from runtime.types import FinishReason


@dataclass(slots=True)
class StepResult:
    """The result of one step for one sequence.

    Args:
        sequence: the sequence, already extended by the new tokens.
        tokens: the new tokens, at least one unless the sequence failed.
        reason: the finish reason, or None. Stop strings are detected by the engine, not here.
        error: the failure, or None. With a reason or an error the sequence has been removed from the scheduler.
    """

    sequence: Sequence
    tokens: list[Sampled]
    reason: FinishReason | None = None
    error: ServiceError | None = None


def append_sampled(row: Row, choices: Items[Sampled]) -> StepResult:
    """Append the sampled tokens that are valid: up to the first rejected draft or the end of the sequence.

    Args:
        row: the row, whose sequence is extended.
        choices: the sampled tokens, at least one.
    """
    sequence, params = row.sequence, row.sequence.params
    tokens, limit = sequence.tokens, len(sequence.prompt) + params.max_new_tokens
    drafts = row.token_ids[len(row.token_ids) - row.drafts :]
    result = StepResult(sequence, [])
    for choice, draft in zip(choices, (*drafts, None), strict=False):  # no choices after a failed one
        tokens.append(choice.id)
        result.tokens.append(choice)
        if choice.id in sequence.end_ids and sequence.generated > len(params.forced):
            result.reason = "stop"
        elif len(tokens) >= limit:
            result.reason = "length"
        if result.reason is not None or choice.id != draft:
            break
    if sequence.penalized:
        sequence.counts.update(choice.id for choice in result.tokens)
    sequence.computed = len(tokens) - 1
    return result


def advance_grammar(result: StepResult, eos: frozenset[int]) -> None:
    """Advance a sequence's grammar, if it has one, by the tokens of a step. Where it then leaves no choice until
    the end, append the last tokens without computing them.

    Args:
        result: the step's result from ``append_sampled``, which gets the appended tokens.
        eos: token ids that end a sequence, one of which is the last token appended.

    Raises:
        ServiceError: the grammar became too complex.
    """
    sequence, params = result.sequence, result.sequence.params
    if sequence.grammar is None:
        return
    sequence.grammar.accept([choice.id for choice in result.tokens])
    if (
        result.reason is not None
        or params.logprobs is not None
        or not sequence.grammar.ends
        or not sequence.end_ids.isdisjoint(sequence.forced)
    ):
        return
    last = [*sequence.forced, min(eos)]
    added = last[: len(sequence.prompt) + params.max_new_tokens - len(sequence.tokens)]
    sequence.tokens += added
    result.tokens += map(Sampled, added)
    result.reason = "stop" if len(added) == len(last) else "length"
