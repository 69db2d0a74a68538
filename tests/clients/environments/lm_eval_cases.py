"""lm-evaluation-harness: its models for completions and chats, with small tasks of its three kinds of request."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["OPENAI_API_KEY"] = "none-needed"

import lm_eval
from cases import MODEL, URL, main, raises
from lm_eval.tasks import TaskManager

FOLDER = Path(tempfile.mkdtemp())
LINES = [{"q": "The capital of France is", "a": " Paris", "b": " Qux"}, {"q": "One, two,", "a": " three", "b": " zz"}]
(FOLDER / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
target_delimiter: ""
{more}
metadata: {{version: 1}}
"""
KINDS = {
    "choose": ("multiple_choice", 'doc_to_choice: "{{[a, b]}}"\ndoc_to_target: 0\nmetric_list: [{metric: acc}]'),
    "write": (
        "generate_until",
        'doc_to_target: "{{a}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 8, temperature: 0}\n'
        "metric_list: [{metric: exact_match}]",
    ),
    "likely": ("loglikelihood", 'doc_to_target: "{{a}}"\nmetric_list: [{metric: acc}, {metric: perplexity}]'),
}
for name, (kind, more) in KINDS.items():
    (FOLDER / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, folder=FOLDER, more=more))


def _results(model: str, task: str, **fields: Any) -> Any:
    arguments = {"model": MODEL, "base_url": f"{URL}/v1/{'chat/' * ('chat' in model)}completions", **fields}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model,
        model_args={"tokenizer_backend": "remote", "tokenized_requests": True} | arguments,
        tasks=[task],
        task_manager=manager,
        bootstrap_iters=0,
        apply_chat_template="chat" in model,
    )
    return found["results"][task]


def case_choices() -> None:
    assert _results("local-completions", "choose")["acc,none"] == 1


def case_choices_in_batches() -> None:
    assert _results("local-completions", "choose", batch_size=4, num_concurrent=2)["acc,none"] == 1


def case_likelihood() -> None:
    assert _results("local-completions", "likely")["perplexity,none"] > 0


def case_generation() -> None:
    assert "exact_match,none" in _results("local-completions", "write")


def case_chat_generation() -> None:
    assert "exact_match,none" in _results(
        "local-chat-completions", "write", tokenizer_backend=None, tokenized_requests=False
    )


def case_texts() -> None:
    texts = {"tokenized_requests": False, "tokenizer_backend": "remote"}
    assert _results("local-completions", "choose", **texts)["acc,none"] == 1


def case_unknown_model() -> None:
    raises(Exception, lambda: _results("local-completions", "choose", model="nosuch", max_retries=1))


if __name__ == "__main__":
    main(globals())
