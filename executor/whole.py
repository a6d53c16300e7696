"""Running the unsplit model on this machine: whole, and operator by operator."""

import statistics
from dataclasses import dataclass

import numpy as np

from executor import cache
from executor.capture import is_op
from executor.devices import LocalDevice, machine_name
from executor.loaded import LoadedModel
from executor.measure import measure_ops, measure_pass
from executor.program import Program
from executor.split import cut
from executor.stages import Job, Tensors, load_job, load_kept, run_job, save_stages
from executor.updates import updates_parameters
from executor.workers import Tell, Workers
from hardware.documents import STRICT
from hardware.profile import Provenance
from scheduler.cost_model.costs import CostTable
from scheduler.evaluation.timeline import Span
from scheduler.ir.graph import Graph
from scheduler.plan import Stage
from scheduler.report import Report, quantiles

SECONDS_PER_BASELINE = 2.5
OP_TIMES_BUDGET_S = 5.0


@dataclass(frozen=True)
class OpTimes:
    """Measured median seconds by operator, and when and where they were measured."""

    __pydantic_config__ = STRICT

    seconds: dict[str, float]
    provenance: Provenance


def whole_is_faster(workers: Workers, model: LoadedModel, tell: Tell) -> bool:
    """Whether the devices together, all at work, run whole batches faster than micro-batches."""
    parts = len(model.micro_batches) // len(model.batches)
    seconds: list[dict[str, float]] = []
    for step, (program, inputs) in enumerate(
        ((model.whole, model.batches), (model.micro, model.micro_batches))
    ):
        stages = save_whole(workers, program, inputs, next(iter(workers.devices)))
        args = dict.fromkeys(workers.devices, (workers.folder, len(stages)))
        seconds.append(workers.call_all(measure_pass, args))
        tell((step + 1) / 2)
    whole, micro = seconds
    return sum(1 / s for s in whole.values()) > sum(1 / (parts * s) for s in micro.values())


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
        stages = save_whole(workers, model.micro, model.micro_batches, next(iter(names)))
        args = dict.fromkeys(names, (workers.folder, len(stages), OP_TIMES_BUDGET_S))
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
    """Write a program as one stage; a training step's updates are a second one."""
    ops = [node for node in program.graph.nodes if is_op(node)]
    last = [node.name for node in ops if updates_parameters(node)]
    parts = [[node.name for node in ops if node.name not in set(last)], last]
    stages = [part for part in parts if part]
    save_stages(workers.folder, cut(program, stages), inputs)
    return tuple(Stage(device, tuple(part)) for part in stages)


def first_steps(workers: Workers, device: str, model: LoadedModel) -> dict[int, Tensors]:
    """Losses and gradients of the first two training steps, unsplit, by micro-batch.

    On the micro-batches of the plan, so that they are those of the plan but for rounding.
    """
    stages = save_whole(workers, model.micro, model.micro_batches, device)
    m = len(model.micro_batches) // len(model.batches)
    first = [(k, 0) for k in range(m)] + [(m - 1, 1)]
    order = {device: first + [(k + m, i) for k, i in first]}
    job, keep = Job(workers.folder, (stages,), order, 1), model.micro.kept
    workers.call(device, load_job, job)
    workers.call(device, run_job, job, {}, keep)
    return load_kept(workers.folder, [device], keep)


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
        order = [(k, i) for k in range(num) for i in range(len(stages))]
        job = Job(workers.folder, (stages,), {device: order}, 1)
        spans: list[Span] = workers.call(device, run_job, job, {}, keep, tell=tell)
        seconds = [span.duration_s for span in spans if span.kind == "stage"]
        return [sum(seconds[k : k + len(stages)]) for k in range(0, len(seconds), len(stages))]

    workers.call(device, load_job, Job(workers.folder, (stages,), {}, 1))
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
