"""Timelines as a file that Perfetto and Chrome open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardware.documents import write_json
from scheduler.evaluation.timeline import Span
from scheduler.plan import Plan
from scheduler.report import MemoryUse, Report

Event = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One timeline: what was predicted or measured, and the memory of its devices where known."""

    name: str
    spans: Sequence[Span]
    memory: Mapping[str, MemoryUse] = field(default_factory=dict)


def sides_of(word: str, report: Report) -> list[Side]:
    """A batch alone and the steady state of a report, `predicted` or `measured`."""
    return [
        Side(f"{word}, one batch", report.spans),
        Side(f"{word}, steady state", report.pipeline_spans, report.memory),
    ]


def write_trace(path: Path, plan: Plan, sides: Sequence[Side]) -> None:
    """Write timelines in the Trace Event Format.

    A process for every device and link of every side: spans on a thread for each kind of them;
    counters of a device's memory and of the bytes on a link. Times in microseconds. Source: "Trace
    Event Format", Chromium project; https://perfetto.dev/docs/getting-started/other-formats.
    """
    sizes = {sent.tensor: sent.num_bytes for sent in plan.transfers}
    events: list[Event] = []
    for side in sides:
        for resource in dict.fromkeys([*side.memory, *(span.resource for span in side.spans)]):
            pid = 1 + sum(event["name"] == "process_name" for event in events)
            spans = [span for span in side.spans if span.resource == resource]
            events += _names(f"{side.name}: {resource}", pid, spans)
            events += [_slice(span, pid) for span in spans]
            events += _bytes_moving(spans, pid, sizes)
            if resource in side.memory:
                events += _memory(side.memory[resource], pid)
    write_json(path, {"traceEvents": events, "displayTimeUnit": "ms"})


def _names(process: str, pid: int, spans: Sequence[Span]) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    for kind in dict.fromkeys(span.kind for span in spans):
        name = {"op": "operators", "stage": "stages", "transfer": "transfers"}[kind]
        yield {
            "ph": "M", "name": "thread_name", "pid": pid, "tid": _thread(kind),
            "args": {"name": name},
        }  # fmt: skip


def _thread(kind: str) -> int:
    return {"stage": 1, "op": 2, "transfer": 3}[kind]


def _slice(span: Span, pid: int) -> Event:
    return {
        "ph": "X", "name": span.name, "cat": span.kind, "pid": pid, "tid": _thread(span.kind),
        "ts": span.start_s * 1e6, "dur": span.duration_s * 1e6,
        "args": {"micro_batch": span.micro_batch},
    }  # fmt: skip


def _counter(name: str, pid: int, time_s: float, values: Mapping[str, float]) -> Event:
    return {"ph": "C", "name": name, "pid": pid, "ts": time_s * 1e6, "args": dict(values)}


def _bytes_moving(spans: Sequence[Span], pid: int, sizes: Mapping[str, int]) -> Iterator[Event]:
    """The bytes on a link after every start and end of a transfer."""
    moved = [span for span in spans if span.kind == "transfer"]
    changes = [(span.start_s, sizes[span.name]) for span in moved]
    changes += [(span.end_s, -sizes[span.name]) for span in moved]
    moving = 0
    for time_s, change in sorted(changes):
        moving += change
        yield _counter("bytes in flight", pid, time_s, {"bytes": moving})


def _memory(use: MemoryUse, pid: int) -> Iterator[Event]:
    """Bytes held over time; what stays is said at the beginning and the end."""
    stays = {
        "parameters": use.param_bytes,
        "gradients": use.gradient_bytes,
        "states": use.state_bytes,
        "limit": use.limit_bytes,
    }
    points = list(zip(use.times_s, use.activation_bytes, strict=True))
    for number, (time_s, num_bytes) in enumerate(points):
        at_an_end = number in (0, len(points) - 1)
        values = {"activations": num_bytes, **(stays if at_an_end else {})}
        yield _counter("memory (bytes)", pid, time_s, values)
