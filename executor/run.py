"""Running models on this machine: whole, operator by operator, and split by a plan."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from executor import cache
from executor.capture import is_op, to_graph
from executor.devices import LocalDevice, machine_name
from executor.export import export
from executor.measure import measure_ops, measure_pass
from executor.program import Program
from executor.sources import build_model
from executor.split import cut
from executor.stages import Job, Tensors, load_job, load_kept, run_job, save_stages
from executor.workers import Tell, Workers
from hardware.documents import STRICT
from hardware.profile import Provenance
from scheduler.costs import CostTable
from scheduler.graph import Graph
from scheduler.plan import Plan, Stage
from scheduler.problem import Problem
from scheduler.report import Report, quantiles
from scheduler.timeline import Span, device_order, loads

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Largest difference from the unsplit output, relative to its largest magnitude, by dtype."""

LATENCY_RUNS = 5
THROUGHPUT_REPEATS = 3
SECONDS_PER_REPEAT = 3.0
SECONDS_PER_BASELINE = 2.5
OP_TIMES_BUDGET_S = 5.0
MIN_MICRO_BATCH_FLOPS = 1e9
"""Tens of milliseconds on a core, against about 0.2 ms to hand a tensor over."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with real weights, exported for a whole batch and for a micro-batch.

    Attributes:
        batches: two different batches of inputs, by input name.
        micro_batches: the same, cut along the first dimension: 2 * num_micro_batches of them.
    """

    whole: Program
    micro: Program
    batches: list[Tensors]
    micro_batches: list[Tensors]
    dtype: str


@dataclass(frozen=True)
class OpTimes:
    """Measured median seconds by operator, and when and where they were measured."""

    __pydantic_config__ = STRICT

    seconds: dict[str, float]
    provenance: Provenance


@dataclass(frozen=True)
class Execution:
    """A measured report, and how the outputs compare with the unsplit model's."""

    report: Report
    output_difference: float
    tolerance: float

    @property
    def outputs_agree(self) -> bool:
        """Whether the outputs equal the unsplit model's within the tolerance."""
        return self.output_difference <= self.tolerance


def load_model(
    source: str, batch: int, dtype: str, num_micro_batches: int, tokens: int | None = None
) -> LoadedModel:
    """Build a model with weights and export it.

    Raises:
        ValueError: as `build_model` and `export`.
    """
    model = build_model(source, batch, dtype, "cpu", tokens)
    whole = export(model)
    other = model.with_tensors(lambda x: x * 0.5 if x.is_floating_point() else x.flip(-1))
    names = whole.inputs
    batches = [dict(zip(names, m.tensors, strict=True)) for m in (model, other)]
    if num_micro_batches == 1:
        return LoadedModel(whole, whole, batches, batches, dtype)
    chunks = [
        {name: tensor.chunk(num_micro_batches)[k] for name, tensor in values.items()}
        for values in batches
        for k in range(num_micro_batches)
    ]
    part = model.with_tensors(lambda x: x.chunk(num_micro_batches)[0])
    return LoadedModel(whole, export(part, whole.captured_by), batches, chunks, dtype)


def most_micro_batches(source: str, batch: int, dtype: str, tokens: int | None = None) -> int:
    """The most micro-batches, up to four, that a batch can usefully be cut into.

    A batch can be cut where every input and output has it as first dimension, and should be while
    a part still has `MIN_MICRO_BATCH_FLOPS` of work.
    """
    program = export(build_model(source, batch, dtype, "meta", tokens))
    names = {*program.inputs, *program.outputs}
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in names]
    if any(len(shape) == 0 or shape[0] != batch for shape in shapes):
        return 1
    flops = to_graph(program, source, batch).totals()["flops"]
    return next(
        m for m in (4, 3, 2, 1) if m == 1 or (batch % m == 0 and flops / m >= MIN_MICRO_BATCH_FLOPS)
    )


def whole_is_faster(workers: Workers, model: LoadedModel, tell: Tell) -> bool:
    """Whether the devices together, all at work, run whole batches faster than micro-batches."""
    parts = len(model.micro_batches) // len(model.batches)
    seconds: list[dict[str, float]] = []
    for step, (program, inputs) in enumerate(
        ((model.whole, model.batches), (model.micro, model.micro_batches))
    ):
        save_whole(workers, program, inputs, next(iter(workers.devices)))
        args = dict.fromkeys(workers.devices, (workers.folder,))
        seconds.append(workers.call_all(measure_pass, args))
        tell((step + 1) / 2)
    whole, micro = seconds
    return sum(1 / s for s in whole.values()) > sum(1 / (parts * s) for s in micro.values())


def uncut(model: LoadedModel) -> LoadedModel:
    """The model with whole batches as its micro-batches."""
    return replace(model, micro=model.whole, micro_batches=model.batches)


def op_times(
    workers: Workers, model: LoadedModel, graph: Graph, tell: Tell, fresh: bool = False
) -> CostTable:
    """Measure every operator of the model on every device, or take the times from the cache.

    All devices measure at the same time, as they will work in a pipeline: CPU slices share the
    machine's memory bandwidth.
    """
    names = {device: f"ops-{cache.digest(graph)}-{device}" for device in workers.devices}
    known = {device: None if fresh else cache.load(n, OpTimes) for device, n in names.items()}
    if any(t is None or set(t.seconds) != set(graph.by_name) for t in known.values()):
        save_whole(workers, model.micro, model.micro_batches, next(iter(names)))
        args = dict.fromkeys(names, (workers.folder, OP_TIMES_BUDGET_S))
        for device, (medians, whole_s) in workers.call_all(measure_ops, args, tell).items():
            known[device] = _scaled(medians, whole_s)
            cache.store(names[device], known[device])
    times = {device: t for device, t in known.items() if t is not None}
    columns = [[times[device].seconds[op.name] for op in graph.ops] for device in names]
    provenance = {device: times[device].provenance for device in names}
    return CostTable(tuple(names), np.array(columns).T, provenance)


def _scaled(medians: dict[str, float], whole_s: float) -> OpTimes:
    """Operator times whose sum is the whole model's: takes the timers' own cost out."""
    factor = whole_s / sum(medians.values())
    provenance = Provenance("measured", f"operators in place on {machine_name()}", cache.now())
    return OpTimes({name: seconds * factor for name, seconds in medians.items()}, provenance)


def save_whole(
    workers: Workers, program: Program, inputs: list[Tensors], device: str
) -> tuple[Stage, ...]:
    """Write a program as one stage."""
    ops = [node.name for node in program.graph.nodes if is_op(node)]
    save_stages(workers.folder, cut(program, [ops]), inputs)
    return (Stage(device, tuple(ops)),)


def run_whole(
    device: LocalDevice, model: LoadedModel, samples: int, tell: Tell
) -> tuple[Report, dict[int, Tensors]]:
    """Measure the unsplit model on one device, in a worker of its own."""
    with Workers((device,)) as workers:
        return run_whole_in(workers, device.name, model, samples, tell)


def run_whole_in(
    workers: Workers, device: str, model: LoadedModel, samples: int, tell: Tell
) -> tuple[Report, dict[int, Tensors]]:
    """Measure the unsplit model on one device of running workers; also returns its outputs."""
    stages = save_whole(workers, model.whole, model.batches, device)
    keep = tuple(model.whole.outputs)

    def run(num: int) -> list[float]:
        job = Job(workers.folder, stages, {device: [(k, 0) for k in range(num)]}, 1)
        spans: list[Span] = workers.call(device, run_job, job, {}, keep, tell=tell)
        return [span.duration_s for span in spans if span.kind == "stage"]

    workers.call(device, load_job, Job(workers.folder, stages, {}, 1))
    (first_s,) = run(1)
    times = run(1 + int(np.clip(SECONDS_PER_BASELINE / first_s, 3, 200)))[1:]
    busy_s = statistics.median(times)
    rates = [samples / seconds for seconds in times]
    report = Report(
        latency_s=quantiles(times),
        throughput_per_s=samples / busy_s,
        utilization={device: 1.0},
        busy_s={device: busy_s},
        link_bytes={},
        latency_band_s=(min(times), max(times)),
        throughput_band_per_s=(min(rates), max(rates)),
    )
    return report, load_kept(workers.folder, [device], keep)


def execute(
    workers: Workers,
    model: LoadedModel,
    plan: Plan,
    problem: Problem,
    reference: dict[int, Tensors],
    tell: Tell,
) -> Execution:
    """Run a plan for real: latency of micro-batches one by one, then the steady state.

    `reference` holds the unsplit model's outputs by input variant.
    """
    pieces = cut(model.micro, [stage.ops for stage in plan.stages])
    save_stages(workers.folder, pieces, model.micro_batches)
    shapes = {
        node.name: (node.meta["val"].shape, node.meta["val"].dtype)
        for node in model.micro.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    }
    keep = tuple(model.micro.outputs)
    everyone = dict.fromkeys(workers.devices)
    job = Job(workers.folder, plan.stages, {}, plan.in_flight)
    workers.call_all(load_job, dict.fromkeys(everyone, (job,)))
    steps = THROUGHPUT_REPEATS + 2

    def run(job: Job, step: int) -> tuple[list[Span], dict[int, Tensors]]:
        args = dict.fromkeys(everyone, (job, shapes, keep))
        results = workers.call_all(run_job, args, tell=lambda share: tell((step + share) / steps))
        outputs = load_kept(workers.folder, everyone, keep)
        return [span for spans in results.values() for span in spans], outputs

    m = plan.num_micro_batches
    alone = _repeated(device_order(problem, plan, m), m, LATENCY_RUNS + 2)
    latency_spans, _ = run(replace(job, order=alone, alone=m), 0)
    twice = _repeated(device_order(problem, plan, m), m, 2)
    traced, _ = run(replace(job, order=twice, alone=m, traced=True), 1)
    latencies = [
        _extent(latency_spans, range(b * m, b * m + m)) for b in range(2, LATENCY_RUNS + 2)
    ]
    period_s = max(loads(problem, plan.stages).values())
    num = int(np.clip(SECONDS_PER_REPEAT / period_s, max(12, 2 * m), 2000))
    order = device_order(problem, plan, num)
    repeats = [run(replace(job, order=order), 2 + r) for r in range(THROUGHPUT_REPEATS)]
    rates = [_rate(spans, plan, num) * problem.graph.samples for spans, _ in repeats]
    middle = repeats[int(np.argsort(rates)[len(rates) // 2])][0]
    difference = max(_difference(outputs, reference, m) for _, outputs in repeats)
    measured_s = problem.graph.samples / statistics.median(rates)
    busy_s = _busy(middle, num)
    report = Report(
        latency_s=quantiles([end - start for start, end in latencies]),
        throughput_per_s=statistics.median(rates),
        utilization={device: min(1.0, seconds / measured_s) for device, seconds in busy_s.items()},
        busy_s=busy_s,
        link_bytes=_link_bytes(plan),
        latency_band_s=(min(b - a for a, b in latencies), max(b - a for a, b in latencies)),
        throughput_band_per_s=(min(rates), max(rates)),
        spans=_from_zero(
            [
                replace(s, micro_batch=s.micro_batch - m)
                for s in _joined(traced)
                if s.micro_batch >= m and s.kind != "stage"
            ]
        ),
        pipeline_spans=_from_zero(_joined(middle)),
    )
    return Execution(report, difference, TOLERANCE[model.dtype])


def _repeated(
    order: dict[str, list[tuple[int, int]]], num_micro_batches: int, times: int
) -> dict[str, list[tuple[int, int]]]:
    """The order of one batch, once for each of several batches."""
    offsets = [batch * num_micro_batches for batch in range(times)]
    return {
        d: [(k + offset, i) for offset in offsets for k, i in tasks] for d, tasks in order.items()
    }


def _extent(spans: list[Span], micro_batches: range) -> tuple[float, float]:
    mine = [span for span in spans if span.micro_batch in micro_batches and span.kind == "stage"]
    return min(s.start_s for s in mine), max(s.end_s for s in mine)


def _rate(spans: list[Span], plan: Plan, num: int) -> float:
    """Micro-batches per second between the end of the fill and the end of the last to enter."""
    fill = min(plan.in_flight + 2, num // 2)
    ends = [0.0] * num
    for span in spans:
        if span.kind == "stage":
            ends[span.micro_batch] = max(ends[span.micro_batch], span.end_s)
    return (num - 1 - fill) / (ends[-1] - ends[fill])


def _busy(spans: list[Span], num: int) -> dict[str, float]:
    busy: dict[str, float] = defaultdict(float)
    for span in spans:
        if span.kind == "stage":
            busy[span.resource] += span.duration_s / num
    return dict(busy)


def _link_bytes(plan: Plan) -> dict[str, float]:
    carried: dict[str, float] = defaultdict(float)
    for transfer in plan.transfers:
        carried[f"{transfer.src}->{transfer.dst}"] += transfer.num_bytes
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


def _difference(
    outputs: dict[int, Tensors], reference: dict[int, Tensors], num_micro_batches: int
) -> float:
    """Largest difference, relative to the reference's largest magnitude; NaN never agrees."""
    worst = 0.0
    for batch, tensors in reference.items():
        mine = range(batch * num_micro_batches, (batch + 1) * num_micro_batches)
        for expected, *parts in zip(
            tensors.values(), *(outputs[k].values() for k in mine), strict=True
        ):
            got = torch.cat(parts) if num_micro_batches > 1 else parts[0]
            scale = float(expected.abs().max()) or 1.0
            distance = float((got.float() - expected.float()).abs().max())
            worst = max(worst, float("inf") if math.isnan(distance) else distance / scale)
    return worst
