"""Writes results in the shape of the file that ``vllm bench serve --save-result`` writes."""

from __future__ import annotations

from typing import Any

from loadtests.load.report import Report, StageRun, window_values
from loadtests.load.scenario import Scenario
from loadtests.load.time_line import tokens_by_part


def vllm_result(run: StageRun, report: Report, scenario: Scenario) -> dict[str, Any]:
    """Return one repetition of a stage.

    Its window is the whole stage without the warm-up. Lists have one entry per request that was due in it.
    """
    start, end = run.stage.warmup, run.stage.seconds
    values = window_values(run, start, end, scenario)
    due = [record for record in run.records if start <= record.due < end]
    rate = run.stage.segments[0].mean_rate
    names = (
        *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
        *("request_goodput", "output_throughput", "total_token_throughput", "max_concurrent_requests"),
    )
    return {
        "date": report.started,
        "backend": "openai-chat",
        "label": scenario.name,
        "model_id": report.model,
        "tokenizer_id": None,
        "num_prompts": len(due),
        "request_rate": "inf" if rate is None else rate,
        "burstiness": 1.0 if run.stage.process == "poisson" else "inf",
        "max_concurrency": run.stage.users,
        **{name: values[name] for name in names},
        "max_output_tokens_per_s": max(tokens_by_part(due, 1.0, int(run.stage.seconds) + 1)),
        "input_lens": [record.prompt_tokens for record in due],
        "output_lens": [record.completion_tokens for record in due],
        "ttfts": [record.ttft or 0.0 for record in due],
        "itls": [record.gaps() for record in due],
        "start_times": [record.due for record in due],
        "generated_texts": [""] * len(due),
        "errors": [record.detail if record.failed else "" for record in due],
        **{name: value for name, value in values.items() if name.endswith("_ms") and "late" not in name},
    }
