"""Decision questions as the model reads them, and answers from the probabilities of their labels.

Each option of a question has a label, as in vLLM's Decisions API: a letter, or two letters each if there are more than
26 options. The model's probabilities of the labels at the start of its answer are those of the options.
"""

from __future__ import annotations

import itertools
import json
import math
import string
from collections.abc import Sequence
from typing import Any

from handlers.schemas.decisions import ChoiceQuestion, DecisionQuestion, DecisionText, PredicateQuestion


def plain_text(content: DecisionText) -> str:
    """Return a text or the parts of one, each on a line of its own."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def labels(count: int) -> list[str]:
    """Return the labels of a question's options, all of the same length, so that none is the start of another."""
    length = 1 if count <= len(string.ascii_uppercase) else 2
    letters = itertools.product(string.ascii_uppercase, repeat=length)
    return ["".join(label) for label in itertools.islice(letters, count)]


def options(question: DecisionQuestion) -> list[tuple[str, str | None]]:
    """Return the options of a question: the text of each, and its description if it has one."""
    if isinstance(question, PredicateQuestion):
        return [("true", None), ("false", None)]
    if isinstance(question, ChoiceQuestion):
        return [
            (value if isinstance(value := choice.value, str) else json.dumps(value), choice.description)
            for choice in question.choices
        ]
    return [(level.label, level.description) for level in question.levels]


def question_text(question: DecisionQuestion) -> str:
    """Return the text that asks a question and lists its options by their labels."""
    listed = options(question)
    lines = [
        f"{label}. {text}" + (f" ({description})" if description else "")
        for label, (text, description) in zip(labels(len(listed)), listed, strict=True)
    ]
    task = "Is this statement true or false?\n" if isinstance(question, PredicateQuestion) else ""
    asked = task + plain_text(question.instructions)
    return "\n".join([asked, *lines, "Reply only with the letters before the right option, nothing else."])


def answer(question: DecisionQuestion, logprobs: Sequence[float]) -> dict[str, Any]:
    """Return the answer to a question.

    Args:
        question: the question.
        logprobs: the log-probability of each option's label.
    """
    best = max(range(len(logprobs)), key=logprobs.__getitem__)
    weights = [math.exp(logprob - logprobs[best]) for logprob in logprobs]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    head = {"type": question.type, "name": question.name}
    if isinstance(question, PredicateQuestion):
        return head | {"probability": probabilities[0]}
    confidence = {"confidence": math.exp(logprobs[best])}
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        listed = [
            {"value": value, "probability": probability}
            for value, probability in zip(values, probabilities, strict=True)
        ]
        return head | {"choice": values[best], "probabilities": listed} | confidence
    levels = [
        {"value": index, "label": level.label, "probability": probability}
        for index, (level, probability) in enumerate(zip(question.levels, probabilities, strict=True))
    ]
    score = math.fsum(index * probability for index, probability in enumerate(probabilities))
    return head | {"score": score, "probabilities": levels} | confidence
