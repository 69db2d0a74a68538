"""Computes what happened over time in a stage, in one pass over its requests: a soak has many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadtests.load.figures import percentile
from loadtests.load.record import LoadRecord
from loadtests.load.report import StageRun, TimeLine, TimePoint, usage_between

_PARTS = 120


def time_line(run: StageRun) -> TimeLine:
    """Return a repetition over time, in at most 120 equal parts of at least a second."""
    records: list[LoadRecord] = run.records
    end = max([run.stage.seconds, *(record.ended for record in records)])
    length = max(1.0, end / _PARTS)
    count = int(end / length) + 1
    due: list[list[LoadRecord]] = [[] for _ in range(count)]
    for record in records:
        due[min(count - 1, int(record.due / length))].append(record)
    tokens, running = tokens_by_part(records, length, count), most_by_part(records, length, count)
    points = []
    for number, requests in enumerate(due):
        waits = [wait for record in requests if (wait := record.ttft) is not None]
        p50, p99 = percentile(waits, 50), percentile(waits, 99)
        used = usage_between(run.usage, number * length, (number + 1) * length)
        points.append(
            TimePoint(
                at=round(number * length, 3),
                requests=len(requests),
                errors=sum(record.failed for record in requests),
                running=running[number],
                tokens_per_second=round(tokens[number] / length, 2),
                ttft_p50_ms=None if p50 is None else round(p50 * 1000, 2),
                ttft_p99_ms=None if p99 is None else round(p99 * 1000, 2),
                cpu_cores=used["server_cpu_cores"],
                memory_mb=used["server_memory_mb"],
            )
        )
    return TimeLine(stage=run.stage.name, repetition=run.repetition, points=points)


def tokens_by_part(records: Iterable[LoadRecord], length: float, count: int) -> list[float]:
    """Return the tokens that came in each part, assuming that all pieces of a text hold equally many."""
    tokens = [0.0] * count
    for record in records:
        times = record.times or (record.ended,)
        for moment in times:
            tokens[min(count - 1, max(0, int(moment / length)))] += record.completion_tokens / len(times)
    return tokens


def most_by_part(records: Sequence[LoadRecord], length: float, count: int) -> list[int]:
    """Return the greatest number of requests that were running at one moment of each part."""
    changes = sorted([(record.sent, 1) for record in records] + [(record.ended, -1) for record in records])
    most, running, place = [0] * count, 0, 0
    for number in range(count):
        most[number] = running
        while place < len(changes) and changes[place][0] < (number + 1) * length:
            running += changes[place][1]
            most[number] = max(most[number], running)
            place += 1
    return most
