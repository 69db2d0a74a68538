"""handlers.generation.decision_questions: what the model reads, and answers from the labels' probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter

from handlers.generation.decision_questions import answer, labels, question_text
from handlers.schemas.decisions import DecisionQuestion

QUESTION: TypeAdapter[Any] = TypeAdapter(DecisionQuestion)
PREDICATE = {"type": "predicate", "instructions": "It is broken."}
CHOICE = {
    "type": "choice",
    "name": "team",
    "instructions": "Which team?",
    "choices": [{"value": "true", "description": "The first"}, {"value": True}, {"value": "b"}],
}
SCORE = {"type": "score", "instructions": "How bad?", "levels": [{"label": "fine"}, {"label": "bad"}, {"label": "bad"}]}


def question(payload: dict[str, Any]) -> Any:
    return QUESTION.validate_python(payload)


@pytest.mark.parametrize("count", [2, 26, 27, 255])
def test_labels(count: int) -> None:
    """There is a label for each option, and none is the start of another."""
    found = labels(count)
    assert len(set(found)) == count
    assert not [one for one in found for other in found if one is not other and other.startswith(one)]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (PREDICATE, "Is this statement true or false?\nIt is broken.\nA. true\nB. false\n"),
        (CHOICE, "Which team?\nA. true (The first)\nB. true\nC. b\n"),
        (SCORE, "How bad?\nA. fine\nB. bad\nC. bad\n"),
        (
            PREDICATE
            | {"instructions": [{"type": "input_text", "text": "é"}, {"type": "input_json", "data": {"a": [1, "é"]}}]},
            'Is this statement true or false?\né\n{"a":[1,"é"]}\nA. true\nB. false\n',
        ),
    ],
)
def test_text(payload: dict[str, Any], text: str) -> None:
    """The model reads the instructions, and all options with their labels and descriptions."""
    assert question_text(question(payload)).startswith(text)


def test_probability() -> None:
    """A predicate's probability is that of true among both labels."""
    found = answer(question(PREDICATE), [math.log(0.3), math.log(0.1)])
    assert found == {"type": "predicate", "name": None, "probability": pytest.approx(0.75)}


def test_choice() -> None:
    """A choice has the value as it was sent, the probabilities in order, and the label's own probability."""
    found = answer(question(CHOICE), [math.log(0.1), math.log(0.3), math.log(0.1)])
    assert found["choice"] is True
    assert [(one["value"], round(one["probability"], 6)) for one in found["probabilities"]] == [
        ("true", 0.2),
        (True, 0.6),
        ("b", 0.2),
    ]
    assert (found["name"], found["confidence"]) == ("team", pytest.approx(0.3))


def test_score() -> None:
    """A score is the mean index of the levels."""
    found = answer(question(SCORE), [math.log(0.1), math.log(0.1), math.log(0.2)])
    assert found["score"] == pytest.approx(0.25 + 2 * 0.5)
    assert [one["value"] for one in found["probabilities"]] == [0, 1, 2]
    assert [one["label"] for one in found["probabilities"]] == ["fine", "bad", "bad"]
    assert found["confidence"] == pytest.approx(0.2)


def test_impossible_labels() -> None:
    """Labels that the model practically excludes still have probabilities, whose sum is 1."""
    found = answer(question(CHOICE), [-2000.0, -1000.0, -3000.0])
    assert [one["probability"] for one in found["probabilities"]] == [0, 1, 0]
    assert found["confidence"] == 0
