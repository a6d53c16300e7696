"""Where requests come faster than servers answer: by how much, and what is reported then."""

import math
from collections.abc import Sequence
from dataclasses import replace

from simulator.arrivals import Slo
from simulator.estimates import student
from simulator.served import Served
from simulator.serving import Replica, Serving
from simulator.serving_report import ServingReport, promise


def growth_per_s(replicas: Sequence[Replica], serving: Serving, rate: float) -> float:
    """Requests per second by which a load exceeds the fleet's capacity; negative below it.

    Round robin sends every server the same, the slow ones too.
    """
    capacities = [r.times.capacity_per_s(r.max_batch(serving)) for r in replicas]
    if serving.routing == "round_robin":
        share = rate / len(replicas)
        if min(capacities) <= share:
            return sum(max(0.0, share - capacity) for capacity in capacities)
    return rate - sum(capacities)


def overloaded(
    growth_per_s: float, rate: float, replicas: Sequence[Replica], serving: Serving, slo: Slo | None
) -> ServingReport:
    """The report of a queue that grows without bound: no run would say more."""
    nothing = {"arrived": 0, "finished": 0, "in_flight": 0, "rejected": 0, "timed_out": 0}
    prices = [replica.usd_per_hour for replica in replicas]
    usd_per_hour = None if None in prices else math.fsum(p for p in prices if p is not None)
    per_s = rate - growth_per_s
    return ServingReport(
        status="complete",
        latency_s=None,
        latency_interval_s=None,
        wait_s=None,
        wait_interval_s=None,
        throughput_per_s=per_s,
        goodput_per_s=0.0 if slo else None,
        promise=promise(slo, replicas, 0, 0),
        utilization=1.0,
        mean_batch=max(replica.max_batch(serving) for replica in replicas),
        requests=nothing,
        retries=0,
        queue_growth_per_s=growth_per_s,
        usd_per_hour=usd_per_hour,
        usd_per_1k=None if usd_per_hour is None else usd_per_hour / 3.6 / per_s,
        kinds=(),
        method="load at or above capacity: not simulated, every batch full",
    )


def excess_per_s(run: Served, serving: Serving) -> float:
    """Requests per second that arrived in a run beyond what its servers could answer while up."""
    able = math.fsum(
        up.replica.times.capacity_per_s(up.replica.max_batch(serving)) * (up.end_s - up.start_s)
        for up in run.servers
    )
    return (len(run.arrival_s) - able) / run.duration_s if run.duration_s else 0.0


def without_bound(report: ServingReport, growths: Sequence[float]) -> ServingReport:
    """The report without percentiles, where the load exceeds what failing servers can answer.

    That is where the mean excess over the runs is positive beyond its confidence interval.
    """
    growth = math.fsum(growths) / len(growths)
    if student(growth, growths)[0] <= 0:
        return report
    kept = report.promise and replace(report.promise, kept=False)
    return replace(
        report,
        latency_s=None,
        latency_interval_s=None,
        wait_s=None,
        wait_interval_s=None,
        promise=kept,
        queue_growth_per_s=growth,
    )
