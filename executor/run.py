"""Running a plan on this machine, and what its spans say."""

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from executor.agreement import TOLERANCE, difference_of, step_difference
from executor.loaded import LoadedModel
from executor.split import cut
from executor.stages import Job, Tensors, load_job, load_kept, run_job, save_stages
from executor.workers import Tell, Workers
from scheduler.data_parallel.replicas import copies, cycle
from scheduler.evaluation.timeline import Span, device_order, loads, steady_window
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.report import Report, quantiles

LATENCY_RUNS = 5
WINDOWS = 3
"""Stretches of the steady flow whose rates are compared; each lasts `SECONDS_PER_WINDOW`."""
SECONDS_PER_WINDOW = 3.0
MOST_PER_WINDOW = 2000


@dataclass(frozen=True)
class Execution:
    """A measured report, and how the outputs compare with the unsplit model's.

    Attributes:
        compared: what the difference is of, as a subject: `outputs`, or in training the losses and
            gradients of two steps.
    """

    report: Report
    output_difference: float
    tolerance: float
    compared: str = "outputs"

    @property
    def outputs_agree(self) -> bool:
        """Whether the outputs equal the unsplit model's within the tolerance."""
        return self.output_difference <= self.tolerance


def execute(
    workers: Workers,
    model: LoadedModel,
    plan: Plan,
    problem: Problem,
    reference: dict[int, Tensors],
    tell: Tell,
) -> Execution:
    """Run a plan for real: latency of batches one by one, then one steady flow of micro-batches.

        fills | window | window | window | drains

    Training steps follow one another. The throughput is the median of the windows'. `reference`
    holds the unsplit model's outputs by input variant, or those of `first_steps`.
    """
    pieces = cut(model.micro, [stage.ops for stage in plan.stages])
    save_stages(workers.folder, pieces, model.micro_batches)
    shapes = {
        node.name: (node.meta["val"].shape, node.meta["val"].dtype)
        for node in model.micro.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    }
    keep = model.micro.kept
    trains = problem.graph.mode == "training"
    everyone = dict.fromkeys(workers.devices)
    in_turn = copies(plan.stages)
    job = Job(workers.folder, in_turn, {}, plan.in_flight)
    workers.call_all(load_job, dict.fromkeys(everyone, (job,)))
    steps = 3

    def run(job: Job, step: int) -> tuple[list[Span], dict[int, Tensors]]:
        args = dict.fromkeys(everyone, (job, shapes, keep))
        results = workers.call_all(run_job, args, tell=lambda share: tell((step + share) / steps))
        outputs = load_kept(workers.folder, everyone, keep)
        return [span for spans in results.values() for span in spans], outputs

    m = plan.num_micro_batches
    batch_by_batch = replace(job, copies=in_turn if m > 1 else in_turn[:1], alone=m)
    one_batch = device_order(problem, plan, m)
    alone = _repeated(one_batch, m, LATENCY_RUNS + 2)
    latency_spans, alone_outputs = run(replace(batch_by_batch, order=alone), 0)
    twice = _repeated(one_batch, m, 2)
    traced, _ = run(replace(batch_by_batch, order=twice, traced=True), 1)
    latencies = _latencies(latency_spans, m)[2:]
    if trains:
        per_window = int(np.clip(SECONDS_PER_WINDOW / np.median(latencies), 2, MOST_PER_WINDOW))
        order = _repeated(one_batch, m, WINDOWS * per_window)
        flow, _ = run(replace(batch_by_batch, order=order), 2)
        windows = [range(k, k + m * per_window) for k in m * per_window * np.arange(WINDOWS)]
        rates = [_step_rate(flow, window, m) * problem.graph.samples for window in windows]
        difference = step_difference(alone_outputs, reference, model.micro, m)
    else:
        num = _flow_length(problem, plan)
        flow, outputs = run(replace(job, order=device_order(problem, plan, num)), 2)
        windows = _windows(plan, num)
        rates = [_rate(flow, window) * problem.graph.samples for window in windows]
        difference = max(difference_of(found, reference, m) for found in (alone_outputs, outputs))
    middle = windows[int(np.argsort(rates)[WINDOWS // 2])]
    steady = [span for span in flow if span.micro_batch in middle]
    measured_s = problem.graph.samples / statistics.median(rates)
    busy_s = _busy(steady, len(middle))
    report = Report(
        latency_s=quantiles(latencies),
        throughput_per_s=statistics.median(rates),
        utilization={device: min(1.0, seconds / measured_s) for device, seconds in busy_s.items()},
        busy_s=busy_s,
        link_bytes=_link_bytes(plan),
        latency_band_s=(min(latencies), max(latencies)),
        throughput_band_per_s=(min(rates), max(rates)),
        spans=_from_zero(
            [
                replace(s, micro_batch=s.micro_batch - m)
                for s in _joined(traced)
                if s.micro_batch >= m and s.kind != "stage"
            ]
        ),
        pipeline_spans=_from_zero(_joined(steady)),
    )
    compared = "losses and gradients of two steps" if trains else "outputs"
    return Execution(report, difference, TOLERANCE[model.dtype], compared)


def _repeated(
    order: dict[str, list[tuple[int, int]]], num_micro_batches: int, times: int
) -> dict[str, list[tuple[int, int]]]:
    """The order of one batch, once for each of several batches."""
    offsets = [batch * num_micro_batches for batch in range(times)]
    return {
        d: [(k + offset, i) for offset in offsets for k, i in tasks] for d, tasks in order.items()
    }


def _latencies(spans: list[Span], num_micro_batches: int) -> list[float]:
    """Seconds of every batch that ran alone, from its first stage's start to its last one's end."""
    ends: dict[int, list[float]] = defaultdict(list)
    for span in spans:
        if span.kind == "stage":
            ends[span.micro_batch // num_micro_batches] += [span.start_s, span.end_s]
    return [max(ends[batch]) - min(ends[batch]) for batch in sorted(ends)]


def _step_rate(spans: list[Span], window: range, num_micro_batches: int) -> float:
    """Micro-batches per second of training steps that follow one another."""
    inside = [span for span in spans if span.micro_batch in window]
    return len(window) / sum(_latencies(inside, num_micro_batches))


def _flow_length(problem: Problem, plan: Plan) -> int:
    """Micro-batches of a run that fills, is steady for `WINDOWS` windows, and drains.

    What leaves comes in bursts of up to `in_flight`, which a window must even out.
    """
    turn = cycle(plan.stages)
    period_s = max(loads(problem, plan.stages).values())
    least = max(plan.num_micro_batches, plan.in_flight + 2)
    window = int(np.clip(SECONDS_PER_WINDOW / period_s, least, max(least, MOST_PER_WINDOW)))
    window += -window % turn
    num = 2 * plan.in_flight + 3 + WINDOWS * window
    return num + -num % turn


def _windows(plan: Plan, num: int) -> list[range]:
    """The micro-batches of each window of the steady state."""
    first, last = steady_window(plan.stages, plan.in_flight, num)
    size = (last - first) // WINDOWS
    return [range(first + i * size, first + (i + 1) * size) for i in range(WINDOWS)]


def _rate(spans: list[Span], window: range) -> float:
    """Micro-batches per second, from the end of a window's first to that of the next one's."""
    ends: dict[int, float] = defaultdict(float)
    for span in spans:
        if span.kind == "stage":
            ends[span.micro_batch] = max(ends[span.micro_batch], span.end_s)
    return len(window) / (ends[window.stop] - ends[window.start])


def _busy(spans: list[Span], num: int) -> dict[str, float]:
    busy: dict[str, float] = defaultdict(float)
    for span in spans:
        if span.kind == "stage":
            busy[span.resource] += span.duration_s / num
    return dict(busy)


def _link_bytes(plan: Plan) -> dict[str, float]:
    carried: dict[str, float] = defaultdict(float)
    alike = copies(plan.stages)
    for transfer in (sent for copy in alike for stage in copy for sent in stage.sends):
        carried[f"{transfer.src}->{transfer.dst}"] += transfer.num_bytes / len(alike)
    return dict(carried)


def _joined(spans: list[Span]) -> list[Span]:
    """Join the sender's and the receiver's mark of each transfer into one span."""
    marks: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for span in spans:
        if span.kind == "transfer":
            marks[span.name, span.resource, span.micro_batch].append(span.start_s)
    joined = [
        Span(name, "transfer", resource, min(times), max(times), k)
        for (name, resource, k), times in marks.items()
    ]
    return [span for span in spans if span.kind != "transfer"] + joined


def _from_zero(spans: list[Span]) -> tuple[Span, ...]:
    start_s = min(span.start_s for span in spans)
    moved = (replace(s, start_s=s.start_s - start_s, end_s=s.end_s - start_s) for s in spans)
    return tuple(sorted(moved, key=lambda span: span.start_s))
