"""Speed of the replay of a plan: operator events a second, by size, plan and engine.

Random layered graphs of width 8, each operator reading one or two of the layer before, placed at
random on devices that share one host link: most tensors cross, so this is the worst case of events
per operator. `operators` plans are cut wherever a tensor comes or leaves (latency), `pipeline`
plans are 8 contiguous stages and 16 micro-batches (throughput), whose operators wait for nothing
within their stage: the compiled engine adds their times up. "replay": from the plan to the times,
with the scheduler's own timeline, whose order is followed. "operator events/s": of the engine
alone; an event is the end of one operator of one micro-batch, the transfers that it causes
included. The best of 14 runs (3 of SimPy) on one core, compilation left out.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np

from hardware.cluster import Cluster, Link
from hardware.profile import DeviceProfile, Provenance
from scheduler.cost_model.costs import CostTable
from scheduler.evaluation.dispatch import Times
from scheduler.evaluation.stage_work import StageWork
from scheduler.evaluation.timeline import run_stages
from scheduler.ir.graph import Graph, Op, Tensor
from scheduler.plan import Plan, cut_runs, cut_stages
from scheduler.problem import Problem
from simulator.agenda import Agenda, Sharing, agenda_of
from simulator.memory import memory_over_time
from simulator.replay import ENGINES, Engine, ReplayChoice, op_ends, replayed

LITERAL = Provenance("literal", "random numbers of this benchmark")
WIDTH = 8
LARGEST_SIMPY = 5000
ENGINE_NAMES: tuple[Engine, ...] = ("simpy", "fast")
Run = Callable[[StageWork, Agenda, int], Times]


def layered(num_ops: int, rng: np.random.Generator) -> Graph:
    """A graph of layers of WIDTH operators."""
    ops = []
    for i in range(num_ops):
        above = (i // WIDTH - 1) * WIDTH + rng.choice(WIDTH, rng.integers(1, 3), replace=False)
        reads = tuple(f"t{j}" for j in above) if i >= WIDTH else ("x",)
        size = int(rng.integers(1, 1000))
        out = (Tensor(f"t{i}", (size,), "float32"),)
        ops.append(Op(f"o{i}", "matmul", 1.0, 0.0, 0.0, "float32", reads, out))
    return Graph("layered", tuple(ops), (Tensor("x", (1,), "float32"),), ())


def problem_of(graph: Graph, num_devices: int, rng: np.random.Generator) -> Problem:
    """Devices that share one host link; an operator takes 1 to 10 us, a tensor about as long."""
    names = [f"gpu{p}" for p in range(num_devices)]
    profile = DeviceProfile("gpu", "gpu", {"float32": 1e12}, 2**36, 1e12, LITERAL)
    pairs = [(p, q) for p in names for q in names if p != q]
    links = tuple(Link(p, q, 1e9, 1e-6, LITERAL, "host") for p, q in pairs)
    cluster = Cluster("random", dict.fromkeys(names, profile), links)
    seconds = rng.uniform(1e-6, 1e-5, (len(graph.ops), num_devices))
    costs = CostTable(tuple(names), seconds, dict.fromkeys(names, LITERAL))
    return Problem(graph, cluster, costs, "latency")


def plan_of(problem: Problem, kind: str, rng: np.random.Generator) -> Plan:
    """A plan by operators, placed at random, or of 8 contiguous stages."""
    names, ops = list(problem.cluster.devices), problem.graph.ops
    if kind == "operators":
        placement = {op.name: names[k] for op, k in zip(ops, _random(ops, names, rng), strict=True)}
        stages, in_flight, m = cut_runs(problem.graph, placement), 1, 1
    else:
        placement = {op.name: names[i * 8 // len(ops) % len(names)] for i, op in enumerate(ops)}
        stages, in_flight, m = cut_stages(problem.graph, placement), 9, 16
    return Plan("layered", kind, "latency", 0, 0, 0, 0, placement, stages, m, in_flight)


def _random(ops: tuple[Op, ...], names: list[str], rng: np.random.Generator) -> list[int]:
    chosen: list[int] = rng.integers(len(names), size=len(ops)).tolist()
    return chosen


def best_s(run: Callable[[], object], times: int) -> float:
    """Least seconds of a run, so that what else the machine does counts least."""
    took_s = []
    for _ in range(times):
        started_s = time.perf_counter()
        run()
        took_s.append(time.perf_counter() - started_s)
    return min(took_s[1:])


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def events(run: Run, work: StageWork, agenda: Agenda, num_micro_batches: int) -> object:
    """The ends of all operators."""
    return op_ends(work, run(work, agenda, num_micro_batches))


def measure(num_ops: int, kind: str) -> None:
    """Print the rows of one plan."""
    rng = np.random.default_rng(0)
    num_devices = 64 if num_ops >= 100_000 and kind == "operators" else 8
    problem = problem_of(layered(num_ops, rng), num_devices, rng)
    plan = plan_of(problem, kind, rng)
    m = plan.num_micro_batches
    planned = run_stages(problem, plan.stages, plan.in_flight, m)
    for engine in ENGINE_NAMES:
        run = ENGINES[engine]
        times = 4 if engine == "simpy" else 15
        if engine == "simpy" and num_ops > LARGEST_SIMPY:
            continue
        for sharing in get_args(Sharing):
            choice = ReplayChoice(engine, sharing)
            agenda = agenda_of(planned, plan.in_flight, sharing)
            engine_s = best_s(partial(events, run, planned.work, agenda, m), times)
            whole_s = best_s(partial(replayed, problem, plan, m, choice), times)
            rate = f"{num_ops * m / engine_s:,.0f}"
            row(f"{num_ops:,}", num_devices, kind, sharing, engine, f"{whole_s * 1e3:.1f} ms", rate)
    seconds = best_s(lambda: memory_over_time(problem, plan, planned), 3)
    row(f"{num_ops:,}", num_devices, kind, "memory over time", "", f"{seconds * 1e3:.0f} ms", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 20_000, 100_000])
    row("operators", "devices", "plan", "sharing", "engine", "replay", "operator events/s")
    row(*["---"] * 7)
    for num_ops in parser.parse_args().sizes:
        for kind in ("operators", "pipeline"):
            measure(num_ops, kind)


if __name__ == "__main__":
    main()
