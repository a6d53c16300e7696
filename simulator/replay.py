"""Replay of a plan in SimPy: devices run their stages, media carry the transfers between them."""

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence

import simpy

from scheduler.plan import Plan, Stage
from scheduler.problem import Problem
from scheduler.report import Quantiles, Report
from scheduler.timeline import Span, device_order, stage_seconds

Process = Generator[simpy.Event, object, None]


def replay(problem: Problem, plan: Plan) -> Report:
    """Predict one batch alone and the steady state with micro-batches in flight.

    The steady state runs at least 24 micro-batches and is read between the end of the fill and
    the end of the last micro-batch to enter.
    """
    alone = simulate(problem, plan, plan.num_micro_batches)
    num = max(24, 6 * plan.in_flight + 4 * plan.num_micro_batches)
    steady = simulate(problem, plan, num)
    ends = [0.0] * num
    for span in steady:
        ends[span.micro_batch] = max(ends[span.micro_batch], span.end_s)
    fill = min(plan.in_flight + 2, num // 2)
    window = (ends[fill], ends[-1])
    throughput = (num - 1 - fill) * problem.graph.samples / (window[1] - window[0])
    latency_s = max(span.end_s for span in alone)
    placed: dict[str, list[int]] = defaultdict(list)
    for row, op in enumerate(problem.graph.ops):
        placed[plan.placement[op.name]].append(row)
    low, high = problem.costs.band(placed)
    carried: dict[str, float] = defaultdict(float)
    for transfer in plan.transfers:
        carried[f"{transfer.src}->{transfer.dst}"] += transfer.num_bytes
    return Report(
        latency_s=Quantiles(*[latency_s] * 5),
        throughput_per_s=throughput,
        utilization=_utilization(steady, window),
        busy_s=_busy(problem, plan),
        link_bytes=dict(carried),
        latency_band_s=(latency_s * low, latency_s * high),
        throughput_band_per_s=(throughput / high, throughput / low),
        spans=tuple(_op_spans(problem, plan, alone)),
        pipeline_spans=tuple(steady),
    )


def simulate(problem: Problem, plan: Plan, num_micro_batches: int) -> list[Span]:
    """Run micro-batches through a plan; returns the spans of stages and transfers by start.

    Every device runs its stages in the order of the scheduler's timeline; a medium carries one
    transfer at a time, first come first served.
    """
    env = simpy.Environment()
    order = device_order(problem, plan, num_micro_batches)
    seconds = stage_seconds(problem, plan.stages)
    media = {name: simpy.Resource(env) for name in problem.media}
    arrivals = {
        (transfer.tensor, transfer.dst, k): env.event()
        for transfer in plan.transfers
        for k in range(num_micro_batches)
    }
    spans: list[Span] = []
    gate = _Gate(env, len(plan.stages), plan.in_flight)

    def device(name: str, tasks: Sequence[tuple[int, int]]) -> Process:
        for k, i in tasks:
            stage = plan.stages[i]
            yield gate.admitted(k)
            for transfer in stage.receives:
                yield arrivals[transfer.tensor, transfer.dst, k]
            start_s = env.now
            yield env.timeout(seconds[i])
            spans.append(Span(f"stage {i}", "stage", name, start_s, env.now, k))
            for sent in stage.sends:
                env.process(transfer_process(sent.tensor, sent.src, sent.dst, k))
            gate.finished(k)

    def transfer_process(tensor: str, src: str, dst: str, k: int) -> Process:
        with media[problem.medium(src, dst)].request() as turn:
            yield turn
            start_s = env.now
            yield env.timeout(problem.move_s(tensor, src, dst))
        spans.append(Span(tensor, "transfer", f"{src}->{dst}", start_s, env.now, k))
        arrivals[tensor, dst, k].succeed()

    for name, tasks in order.items():
        env.process(device(name, tasks))
    env.run()
    return sorted(spans, key=lambda span: span.start_s)


class _Gate:
    """Lets micro-batch k in when k - in_flight has left."""

    def __init__(self, env: simpy.Environment, num_stages: int, in_flight: int) -> None:
        self.env, self.num_stages, self.in_flight = env, num_stages, in_flight
        self.left: dict[int, int] = {}
        self.entered: dict[int, simpy.Event] = {}

    def admitted(self, k: int) -> simpy.Event:
        """The event of micro-batch k entering."""
        if k not in self.entered:
            self.entered[k] = self.env.event()
            if k < self.in_flight:
                self.entered[k].succeed()
        return self.entered[k]

    def finished(self, k: int) -> None:
        """Count a finished stage of micro-batch k; its last one admits the next in line."""
        self.left[k] = self.left.get(k, self.num_stages) - 1
        if self.left[k] == 0:
            following = self.admitted(k + self.in_flight)
            if not following.triggered:
                following.succeed()


def _op_spans(problem: Problem, plan: Plan, spans: Sequence[Span]) -> list[Span]:
    """Lay the operators of each stage one after the other inside its span; keep the transfers."""
    row = {op.name: i for i, op in enumerate(problem.graph.ops)}
    laid: list[Span] = []
    for span in spans:
        if span.kind == "transfer":
            laid.append(span)
            continue
        stage: Stage = plan.stages[int(span.name.split()[1])]
        at_s = span.start_s
        for name in stage.ops:
            end_s = at_s + problem.costs.seconds[row[name], problem.device_index[stage.device]]
            if end_s > at_s:
                laid.append(Span(name, "op", stage.device, at_s, end_s, span.micro_batch))
            at_s = end_s
    return laid


def _busy(problem: Problem, plan: Plan) -> Mapping[str, float]:
    busy: dict[str, float] = defaultdict(float)
    for stage, seconds in zip(plan.stages, stage_seconds(problem, plan.stages), strict=True):
        busy[stage.device] += seconds
    return dict(busy)


def _utilization(spans: Sequence[Span], window: tuple[float, float]) -> dict[str, float]:
    """Share of a window that each device and link is busy."""
    busy: dict[str, float] = defaultdict(float)
    for span in spans:
        overlap_s = min(span.end_s, window[1]) - max(span.start_s, window[0])
        busy[span.resource] += max(0.0, overlap_s)
    return {name: seconds / (window[1] - window[0]) for name, seconds in busy.items()}
