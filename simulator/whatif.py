"""What if the hardware were another: the same model planned, replayed and priced elsewhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from hardware.catalog import instance_cluster
from hardware.cluster import Cluster
from hardware.errors import InfeasibleError
from hardware.instances import Instance
from hardware.prices import Market, PriceBook
from scheduler.cost_model.costs import CostTable, cost_table, rescale
from scheduler.ir.batch_size import with_samples
from scheduler.ir.graph import Graph, sharing_weights
from scheduler.plan import Plan
from scheduler.portfolio import solve
from scheduler.problem import Problem
from scheduler.report import Report
from simulator.billing import Cost, cost_at_full_load
from simulator.replay import replay
from simulator.serving import ServiceTimes

Tell = Callable[[float], None]


@dataclass(frozen=True)
class Outcome:
    """What one instance would do, or the reason why it cannot."""

    name: str
    plan: Plan | None = None
    report: Report | None = None
    cost: Cost | None = None
    provenance: str = ""
    reason: str = ""


def best_plan(problem: Problem) -> tuple[Problem, Plan]:
    """Plan with the problem's micro-batches, and with whole batches; the better of the two.

    Raises:
        InfeasibleError: neither fits.
    """
    if problem.num_micro_batches == 1 or problem.graph.mode != "inference":
        return problem, solve(problem).best
    whole = replace(
        problem,
        graph=with_samples(problem.graph, problem.batch),
        costs=cost_table(with_samples(problem.graph, problem.batch), problem.cluster),
        num_micro_batches=1,
    )
    answers: list[tuple[Problem, Plan]] = []
    for candidate in (problem, whole):
        try:
            answers.append((candidate, solve(candidate).best))
        except InfeasibleError as refusal:
            last = refusal
    if not answers:
        raise last
    return min(answers, key=lambda answer: answer[1].value)


def try_instance(
    graph: Graph,
    num_micro_batches: int,
    instance: Instance,
    prices: PriceBook,
    objective: str = "throughput",
    market: Market = "on_demand",
    region: str | None = None,
    replicate: bool = True,
) -> Outcome:
    """Plan, replay and price a model (`graph`: one micro-batch) on one instance.

    Stages are replicated where that pays and `replicate` allows it. Without a region the first
    one that offers the instance is taken.
    """
    try:
        price = prices.find(instance.name, market, region)
        cluster = instance_cluster(instance)
        problem = Problem(
            graph,
            cluster,
            cost_table(graph, cluster),
            objective,  # type: ignore[arg-type]
            usd_per_hour=price.usd_per_hour,
            num_micro_batches=num_micro_batches,
            colocated=sharing_weights(graph) if graph.mode == "training" else (),
            replicate=replicate,
        )
        problem, plan = best_plan(problem)
    except (InfeasibleError, ValueError) as refusal:
        return Outcome(instance.name, reason=str(refusal))
    report = replay(problem, plan)
    cost = cost_at_full_load(price.usd_per_hour, report.throughput_per_s, str(price))
    return Outcome(instance.name, plan, report, cost, problem.costs.levels_of(plan.devices))


def compare_instances(
    graph: Graph,
    num_micro_batches: int,
    instances: list[Instance],
    prices: PriceBook,
    objective: str,
    market: Market,
    tell: Tell,
    replicate: bool = True,
) -> list[Outcome]:
    """Try every instance; sorted by USD per 1,000 inferences, the impossible last."""
    outcomes = []
    for number, instance in enumerate(instances):
        outcome = try_instance(
            graph, num_micro_batches, instance, prices, objective, market, replicate=replicate
        )
        outcomes.append(outcome)
        tell((number + 1) / len(instances))
    return sorted(outcomes, key=lambda o: o.cost.usd_per_1k if o.cost else math.inf)


def service_times(
    graph: Graph,
    cluster: Cluster,
    max_batch: int,
    measured: CostTable | None = None,
    replicate: bool = True,
) -> ServiceTimes:
    """Latency and period of a replica of a cluster for batches of 1, 2, 4, ... max_batch.

    Raises:
        InfeasibleError: the model does not fit.
        ValueError: a device does not support the dtype.
    """
    return times_of(reports_by_batch(graph, cluster, max_batch, measured, replicate))


def times_of(reports: dict[int, Report]) -> ServiceTimes:
    """Latency and period of a replica from its replay with batches of several sizes."""
    return ServiceTimes(
        tuple(reports),
        tuple(report.latency_s.mean for report in reports.values()),
        tuple(size / report.throughput_per_s for size, report in reports.items()),
    )


def reports_by_batch(
    graph: Graph,
    cluster: Cluster,
    max_batch: int,
    measured: CostTable | None = None,
    replicate: bool = True,
) -> dict[int, Report]:
    """Replay a replica of a cluster with batches of 1, 2, 4, ... max_batch.

    Each size is planned for throughput, with stages replicated where that pays and `replicate`
    allows it. `measured` are measured times of `graph`; other sizes
    follow from them in proportion to the cost model's.

    Raises:
        InfeasibleError: the model does not fit.
        ValueError: a device does not support the dtype.
    """
    sizes = sorted({*(2**i for i in range(max_batch.bit_length()) if 2**i < max_batch), max_batch})
    base = cost_table(graph, cluster)
    reports = {}
    for size in sizes:
        varied = with_samples(graph, size)
        costs = cost_table(varied, cluster)
        if measured is not None:
            costs = rescale(measured, base, costs)
        problem = Problem(varied, cluster, costs, replicate=replicate)
        reports[size] = replay(problem, solve(problem).best)
    return reports
