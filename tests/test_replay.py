from dataclasses import replace

import numpy as np
import pytest
from conftest import make_cluster, make_graph, make_op, make_problem
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_scheduler import problems

from hardware.cluster import Cluster, Link
from scheduler.evaluation.evaluate import finish_plan
from scheduler.evaluation.timeline import makespan, run_stages, stage_makespan, stage_timeline
from scheduler.ir.graph import Graph, Tensor
from scheduler.plan import cut_runs
from scheduler.portfolio import solve
from simulator.agenda import agenda_of
from simulator.fast_pipeline import run_fast
from simulator.pipeline import run_operators
from simulator.replay import ReplayChoice, replay, replayed, simulate

FIFO, FAIR = ReplayChoice("fast", "fifo"), ReplayChoice("fast", "fair")


def by_hand(problem, placement):
    return finish_plan(problem, "by hand", placement, 0.0, 0.0)


def training_problem(num_devices, num_micro_batches, pipeline="1f1b", forward_s=1.0, **changes):
    """A layer on each device; layer i's backward reads what went into its forward."""
    ops = []
    for i in range(num_devices):
        ops.append(make_op(f"f{i}", [f"t_f{i - 1}" if i else "x"], 400, {f"w{i}": 40}))
    for i in reversed(range(num_devices)):
        above = f"t_b{i + 1}" if i + 1 < num_devices else f"t_f{i}"
        below = f"t_f{i - 1}" if i else "x"
        op = make_op(f"b{i}", [above, below, f"t_f{i}"], 40, {f"w{i}": 40}, phase="backward")
        ops.append(replace(op, outputs=(*op.outputs, Tensor(f"g{i}", (10,), "float32"))))
    for i in range(num_devices):
        ops.append(make_op(f"u{i}", [f"g{i}"], 4, {f"w{i}": 40}, phase="optimizer"))
    inputs = (Tensor("x", (1, 100), "float32"),)
    graph = Graph("net", tuple(ops), inputs, ("t_b0",), mode="training")
    seconds = {"f": forward_s, "b": 2 * forward_s, "u": 0.5}
    names = "abcdefgh"[:num_devices]
    return make_problem(
        graph,
        [[seconds[op.name[0]]] * num_devices for op in ops],
        make_cluster(names, bytes_per_s=1e15),
        objective="latency",
        num_micro_batches=num_micro_batches,
        pipeline=pipeline,
        **changes,
    )


def one_layer_each(problem):
    return by_hand(problem, {op.name: "abcdefgh"[int(op.name[1])] for op in problem.graph.ops})


@st.composite
def placed(draw):
    """A problem with few devices, shared or private media, and any placement."""
    n = draw(st.integers(2, 9))
    parents = {
        f"o{i}": sorted({f"o{p}" for p in draw(st.lists(st.integers(0, i - 1), max_size=3))})
        if i
        else []
        for i in range(n)
    }
    phases = sorted(
        draw(st.lists(st.sampled_from(["forward", "backward"]), min_size=n, max_size=n)),
        reverse=True,
    )
    graph = make_graph(parents)
    training = draw(st.booleans())
    if training:
        ops = tuple(replace(op, phase=p) for op, p in zip(graph.ops, phases, strict=True))
        graph = replace(graph, ops=ops, mode="training")
    times = st.sampled_from([0.0, 0.1, 0.3, 1.0, 1 / 3, 7.0])
    seconds = [[draw(times) for _ in "abc"] for _ in range(n)]
    medium = draw(st.sampled_from(["", "bus"]))
    cluster = make_cluster("abc", draw(st.sampled_from([40, 130.0])), draw(times), medium=medium)
    problem = make_problem(
        graph,
        seconds,
        cluster,
        objective=draw(st.sampled_from(["latency", "throughput"])),
        num_micro_batches=draw(st.integers(1, 5)),
        pipeline=draw(st.sampled_from(["1f1b", "gpipe"])),
    )
    devices = draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    return problem, by_hand(problem, {op.name: d for op, d in zip(graph.ops, devices, strict=True)})


@settings(max_examples=150, deadline=None)
@given(placed(), st.sampled_from(["fair", "fifo"]), st.integers(0, 4))
def test_both_engines_give_the_same_times_to_the_last_bit(case, sharing, more):
    problem, plan = case
    m = plan.num_micro_batches + (0 if problem.trains_in_parts else more)
    planned = run_stages(problem, plan.stages, plan.in_flight, m)
    agenda = agenda_of(planned, plan.in_flight, sharing)
    slow, op_end_s = run_operators(planned.work, agenda, m)
    fast = run_fast(planned.work, agenda, m)
    for a, b in zip(slow, fast, strict=True):
        np.testing.assert_array_equal(a, b)
    stage = np.repeat(np.arange(len(plan.stages)), np.diff(planned.work.op_start))
    np.testing.assert_array_equal(op_end_s, fast.start_s[:, stage] + planned.work.end_s)
    if sharing == "fifo" or not problem.cluster.links[0].medium:
        for a, b in zip(slow, planned.times, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_without_contention_the_replay_is_the_schedulers_timeline(problem):
    for plan in solve(problem).plans:
        planned = stage_timeline(problem, plan.stages, plan.in_flight, plan.num_micro_batches)
        assert makespan(simulate(problem, plan, plan.num_micro_batches, FIFO)) == makespan(planned)
        if problem.objective == "latency":
            assert makespan(planned) == plan.value


@settings(max_examples=40, deadline=None)
@given(placed())
def test_a_latency_plan_is_replayed_operator_by_operator(case):
    problem, plan = case
    problem = replace(problem, num_micro_batches=1)
    stages = cut_runs(problem.graph, plan.placement)
    assume(stage_makespan(problem, stages) > 0)
    report = replay(problem, replace(plan, stages=stages, in_flight=1, num_micro_batches=1), FIFO)
    assert report.latency_s.mean == stage_makespan(problem, stages)
    ends = {span.name: span.end_s for span in report.spans if span.kind == "op"}
    arrived = {(s.name, s.resource): s.end_s for s in report.spans if s.kind == "transfer"}
    graph, place = problem.graph, plan.placement
    for span in report.spans:
        for tensor in graph.by_name[span.name].inputs if span.kind == "op" else ():
            maker = graph.producer.get(tensor)
            if maker and place[maker] == place[span.name]:
                assert ends.get(maker, 0.0) <= span.start_s
            elif maker:
                assert arrived[tensor, f"{place[maker]}->{place[span.name]}"] <= span.start_s


@pytest.mark.parametrize("engine", ["simpy", "fast"])
@pytest.mark.parametrize(("num_stages", "m"), [(1, 1), (3, 8), (4, 5)])
def test_an_even_pipeline_takes_m_plus_n_minus_one_steps(engine, num_stages, m):
    graph = make_graph({f"o{i}": [f"o{i - 1}"] if i else [] for i in range(num_stages)})
    names = "abcd"[:num_stages]
    cluster = make_cluster(names, bytes_per_s=1e300)
    problem = make_problem(
        graph, np.full((num_stages, num_stages), 0.5), cluster,
        objective="latency", num_micro_batches=m,
    )  # fmt: skip
    plan = by_hand(problem, dict(zip(graph.by_name, names, strict=True)))
    assert makespan(simulate(problem, plan, m, ReplayChoice(engine))) == (m + num_stages - 1) * 0.5


@pytest.mark.parametrize("engine", ["simpy", "fast"])
def test_two_transfers_that_share_a_medium_take_twice_as_long(engine):
    """40 B at 10 B/s each: 4 s after 1 s of latency alone, together 8 s, or one after the other."""
    graph = make_graph({"p": [], "q": [], "r": ["p", "q"]})

    def moved(medium, sharing):
        cluster = make_cluster("abc", 10, 1.0, medium=medium)
        problem = make_problem(graph, np.ones((3, 3)), cluster, objective="latency")
        plan = by_hand(problem, {"p": "a", "q": "b", "r": "c"})
        spans = simulate(problem, plan, 1, ReplayChoice(engine, sharing))
        return sorted(s.end_s - 1 for s in spans if s.kind == "transfer")

    assert moved("", "fair") == moved("", "fifo") == [5, 5]
    assert moved("bus", "fifo") == [5, 10]
    assert moved("bus", "fair") == [9, 9]


def test_a_transfer_that_comes_later_shares_what_is_left():
    """p's 80 B leave at 1, q's 40 B at 5, both at 10 B/s: 40 B of p are left when q comes."""
    graph = make_graph({"p": [], "q": [], "r": ["p", "q"]}, out_bytes=40)
    wide = replace(graph.ops[0], outputs=(Tensor("t_p", (1, 20), "float32"),))
    graph = replace(graph, ops=(wide, *graph.ops[1:]))
    cluster = make_cluster("abc", 10, 0.0, medium="bus")
    problem = make_problem(graph, [[1] * 3, [5] * 3, [1] * 3], cluster, objective="latency")
    plan = by_hand(problem, {"p": "a", "q": "b", "r": "c"})
    spans = {s.name: s for s in simulate(problem, plan, 1) if s.kind == "transfer"}
    assert (spans["t_p"].end_s, spans["t_q"].end_s) == (13, 13)
    assert spans["t_q"].start_s == 5


def test_compute_overlaps_transfers_unless_communication_is_serialised():
    graph = make_graph({"p": [], "q": ["p"], "r": ["p"]})
    cluster = make_cluster("ab", 10, 0.0)
    devices = {name: replace(d, kind="gpu") for name, d in cluster.devices.items()}
    cluster = Cluster("c", devices, cluster.links)
    seconds = [[1, 1], [6, 6], [1, 1]]

    def ends(communication):
        problem = make_problem(
            graph, seconds, cluster, objective="latency", communication=communication
        )
        plan = by_hand(problem, {"p": "a", "q": "a", "r": "b"})
        return {s.name: s.end_s for s in replay(problem, plan).spans if s.kind == "op"}

    assert ends("overlapped") == {"p": 1, "q": 7, "r": 6}
    assert ends("serialised") == {"p": 1, "q": 11, "r": 10}


def test_event_log_of_a_small_case():
    """Two micro-batches: a runs p (2 s), 4 s on the way, b runs q (3 s)."""
    graph = make_graph({"p": [], "q": ["p"]})
    problem = make_problem(
        graph, [[2, 9], [9, 3]], make_cluster("ab", 40, 3.0), objective="latency",
        num_micro_batches=2,
    )  # fmt: skip
    plan = by_hand(problem, {"p": "a", "q": "b"})
    log = [
        (s.micro_batch, s.name, s.resource, s.start_s, s.end_s) for s in replay(problem, plan).spans
    ]
    assert log == [
        (0, "p", "a", 0, 2),
        (1, "p", "a", 2, 4),
        (0, "t_p", "a->b", 2, 6),
        (0, "q", "b", 6, 9),
        (1, "t_p", "a->b", 6, 10),
        (1, "q", "b", 10, 13),
    ]


def test_gpipe_and_1f1b_run_the_same_work_in_their_own_orders():
    logs = {}
    for pipeline in ("gpipe", "1f1b"):
        problem = training_problem(2, 3, pipeline)
        plan = one_layer_each(problem)
        spans = [s for s in replay(problem, plan).spans if s.resource == "a"]
        logs[pipeline] = " ".join(f"{s.name}{s.micro_batch}" for s in spans if s.kind == "op")
    assert logs["gpipe"] == "f00 f01 f02 b00 b01 b02 u02"
    assert logs["1f1b"] == "f00 f01 b00 f02 b01 b02 u02"


@pytest.mark.parametrize("pipeline", ["gpipe", "1f1b"])
def test_an_even_training_pipeline_takes_m_plus_n_minus_one_rounds(pipeline):
    """(m + n - 1) forward and backward passes, then the optimizer."""
    problem = training_problem(4, 6, pipeline)
    assert replay(problem, one_layer_each(problem)).latency_s.mean == pytest.approx(9 * 3 + 0.5)


def test_1f1b_keeps_fewer_micro_batches_alive():
    """On device k (from 0) of n: GPipe keeps the activations of all m, 1F1B those of n - k."""
    n, m = 4, 8
    alive = {}
    for pipeline in ("gpipe", "1f1b"):
        problem = training_problem(n, m, pipeline)
        report = replay(problem, one_layer_each(problem))
        alive[pipeline] = [
            max(h.micro_batches for h in report.memory[d].peak.held if h.tensor == f"t_f{k}")
            for k, d in enumerate("abcd")
        ]
    assert alive == {"gpipe": [8, 8, 8, 8], "1f1b": [4, 3, 2, 1]}


def test_the_planner_expects_the_activations_that_the_replay_finds():
    for pipeline in ("gpipe", "1f1b"):
        problem = training_problem(3, 5, pipeline)
        plan = one_layer_each(problem)
        for device, use in replay(problem, plan).memory.items():
            assert use.peak.num_bytes <= plan.memory[device].num_bytes
            assert use.peak.num_bytes >= 0.6 * plan.memory[device].num_bytes


def test_memory_over_time_of_a_small_case():
    """p makes 40 B from x (40 B) for 2 s; q reads them for 3 s and makes 40 B, the output."""
    graph = make_graph({"p": [], "q": ["p"]}, weights={"w": 100})
    problem = make_problem(graph, [[2.0], [3.0]], make_cluster("a"), objective="latency")
    use = replay(problem, by_hand(problem, {"p": "a", "q": "a"})).memory["a"]
    assert use.param_bytes == 100
    assert (use.times_s, use.activation_bytes) == ((0, 2, 5), (80, 80, 0))
    assert (use.peak.at_s, use.peak.num_bytes) == (0, 180)
    assert {h.tensor for h in use.peak.held} == {"x", "t_p"}
    assert use.overflow is None


def test_running_out_of_memory_is_said_with_the_moment_and_the_tensors():
    problem = training_problem(2, 4, "1f1b")
    plan = one_layer_each(problem)
    tight = 1.01 * max(need.num_bytes for need in plan.memory.values())
    cluster = make_cluster("ab", 1e15, memory_bytes=tight)
    changed = replace(problem, cluster=cluster, pipeline="gpipe", memory_headroom=0.0)
    assert replay(problem, plan).memory["a"].overflow is None
    moment = replay(changed, replace(plan, in_flight=4)).memory["a"].overflow
    assert moment.num_bytes > tight
    assert moment.at_s == 2.0
    assert ("t_f0", 3) in {(h.tensor, h.micro_batches) for h in moment.held}


def test_a_link_carries_one_tensor_at_a_time_and_shares_only_with_others():
    graph = make_graph({"p": [], "q": [], "r": ["p"], "s": ["q"]})
    links = tuple(
        replace(link, medium="bus") if link.src != "c" else link
        for link in make_cluster("abc", 10, 0.0).links
    )
    cluster = Cluster("c", make_cluster("abc").devices, links)
    assert all(isinstance(link, Link) for link in links)
    problem = make_problem(graph, np.zeros((4, 3)), cluster, objective="latency")
    plan = by_hand(problem, {"p": "a", "q": "a", "r": "b", "s": "b"})
    spans = [s for s in simulate(problem, plan, 1) if s.kind == "transfer"]
    assert [(s.start_s, s.end_s) for s in spans] == [(0, 4), (4, 8)]


def test_auto_takes_either_engine_with_the_same_report():
    problem = training_problem(3, 4)
    plan = one_layer_each(problem)
    reports = [replay(problem, plan, ReplayChoice(engine)) for engine in ("auto", "simpy", "fast")]
    assert reports[0] == reports[1] == reports[2]
    assert replayed(problem, plan, 4).times.start_s.shape == (4, len(plan.stages))
