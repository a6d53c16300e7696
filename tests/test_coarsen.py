import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.ir.coarsen import coarsen, coarsen_to, expand
from scheduler.ir.graph import Graph, Op, Tensor


def op(name, *inputs, module="", flops=1.0, kind="matmul", weights=None, backward=False):
    return Op(
        name=name,
        kind=kind,
        flops=flops,
        bytes_read=3.0,
        bytes_written=2.0,
        dtype="float32",
        inputs=inputs,
        outputs=(Tensor(name, (2, 2), "float32"),),
        weights=weights or {},
        module=module,
        dims={"m": 2},
        phase="backward" if backward else "forward",
    )


def graph(*ops, outputs=()):
    read = {name for op in ops for name in op.inputs}
    ends = tuple(op.name for op in ops if op.name not in read)
    return Graph("g", ops, (Tensor("x", (2, 2), "float32"),), outputs or ends)


def groups(coarse):
    return [list(op.members or (op.name,)) for op in coarse.ops]


@st.composite
def graphs(draw):
    """A random DAG whose operators have random modules and sometimes share parameters."""
    size = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.05, 0.15, 0.5]))
    modules = ["", "head", *(f"h.{k}.{part}" for k in range(3) for part in "ab"), "h.0", "h.1"]
    ops = []
    for i in range(size):
        inputs = [f"op{j}" for j in range(i) if rng.random() < density] or ["x"]
        ops.append(
            op(
                f"op{i}",
                *inputs,
                module=str(rng.choice(modules)),
                flops=float(rng.integers(0, 9)),
                kind=str(rng.choice(["matmul", "view", "elementwise"])),
                weights={f"w{rng.integers(4)}": 16} if rng.random() < 0.5 else {},
                backward=bool(rng.random() < 0.3),
            )
        )
    return graph(*ops, outputs=(f"op{size - 1}", f"op{size // 2}"))


def coarsenings(fine):
    yield from (coarsen(fine, grain) for grain in ("operators", "chains", "layers", "blocks"))
    yield from (coarsen_to(fine, n) for n in (1, 2, 5, 12, 25))


@given(graphs())
@settings(max_examples=80, deadline=None)
def test_any_graph_keeps_its_sums_inputs_and_outputs_and_gets_no_cycle(fine):
    before = fine.totals()
    for coarse in coarsenings(fine):  # Graph itself refuses a cycle and a wrong order
        after = coarse.totals()
        for key in ("flops", "bytes", "params", "param_bytes"):
            assert after[key] == pytest.approx(before[key])
        assert coarse.outputs == fine.outputs
        assert coarse.inputs == fine.inputs
        assert coarse.weights() == fine.weights()
        assert sorted(n for group in groups(coarse) for n in group) == sorted(fine.by_name)
        edges = {(p, c) for t, p in coarse.producer.items() for c in coarse.consumers.get(t, ())}
        assert nx.is_directed_acyclic_graph(nx.DiGraph(edges))


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_every_dependency_between_groups_remains(fine):
    for coarse in coarsenings(fine):
        group = {name: k for k, names in enumerate(groups(coarse)) for name in names}
        kept = {
            (group[coarse_producer], group[reader])
            for tensor, producer in coarse.producer.items()
            for coarse_producer in [coarse.by_name[producer].members or (producer,)]
            for coarse_producer in coarse_producer[:1]
            for consumer in coarse.consumers.get(tensor, ())
            for reader in (coarse.by_name[consumer].members or (consumer,))[:1]
        }
        needed = {
            (group[fine.producer[name]], group[reader.name])
            for reader in fine.ops
            for name in reader.inputs
            if name in fine.producer and group[fine.producer[name]] != group[reader.name]
        }
        assert kept == needed


@given(graphs(), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_a_target_count_is_met_exactly(fine, target):
    assert len(coarsen_to(fine, target).ops) == min(target, len(fine.ops))


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_a_placement_expands_to_every_operator(fine):
    for coarse in coarsenings(fine):
        assigned = {o.name: "ab"[i % 2] for i, o in enumerate(coarse.ops)}
        placement = expand(assigned, coarse)
        assert set(placement) == set(fine.by_name)
        for o in coarse.ops:
            assert {placement[name] for name in o.members or (o.name,)} == {assigned[o.name]}


def test_chains_end_where_a_tensor_is_read_twice_or_two_meet():
    fine = graph(op("a", "x"), op("b", "a"), op("c", "b"), op("d", "b"), op("e", "c", "d"))
    assert groups(coarsen(fine, "chains")) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_a_layer_whose_operators_wait_for_another_layer_is_two():
    fine = graph(op("a", "x", module="m"), op("b", "a", module="n"), op("c", "a", "b", module="m"))
    assert groups(coarsen(fine, "layers")) == [["a"], ["b"], ["c"]]


def test_an_early_constant_joins_its_layer():
    fine = graph(
        op("a", "x", module="h.0"),
        op("mask", "x", module="h.1"),
        op("b", "a", module="h.0"),
        op("c", "b", "mask", module="h.1"),
    )
    assert groups(coarsen(fine, "layers")) == [["a", "b"], ["mask", "c"]]


def test_blocks_are_the_repeated_elements():
    """The outer Sequential has elements of different shape; the inner list has equal ones."""
    ops = [op("in", "x", module="0")]
    for k in range(3):
        ops += [op(f"n{k}", ops[-1].name, module=f"1.h.{k}.norm")]
        ops += [op(f"f{k}", ops[-1].name, module=f"1.h.{k}.mlp.0")]
    ops += [op("out", ops[-1].name, module="2.fc")]
    coarse = coarsen(graph(*ops), "blocks")
    assert groups(coarse) == [["in"], ["n0", "f0"], ["n1", "f1"], ["n2", "f2"], ["out"]]
    assert [o.name for o in coarse.ops] == ["in", "1.h.0", "1.h.1", "1.h.2", "out"]


def test_backward_operators_are_blocks_of_their_own():
    fine = graph(
        op("a", "x", module="h.0.a"),
        op("b", "a", module="h.1.a"),
        op("gb", "b", module="h.1.a", backward=True),
        op("ga", "gb", "a", module="h.0.a", backward=True),
    )
    coarse = coarsen(fine, "layers")
    assert groups(coarse) == [["a"], ["b"], ["gb"], ["ga"]]
    assert [o.phase for o in coarse.ops] == ["forward"] * 2 + ["backward"] * 2


def test_a_shared_parameter_is_held_once_and_read_twice():
    fine = graph(op("a", "x", weights={"w": 100}), op("b", "a", weights={"w": 100}))
    (both,) = coarsen_to(fine, 1).ops
    assert both.weights == {"w": 100}
    assert both.bytes_read == 3 + 3 + 100


def test_coarsening_twice_remembers_the_first_operators():
    fine = graph(op("a", "x"), op("b", "a"), op("c", "b"))
    twice = coarsen_to(coarsen_to(fine, 2), 1)
    assert groups(twice) == [["a", "b", "c"]]


def test_isolated_operators_can_be_grouped():
    fine = graph(*(op(f"op{i}", "x") for i in range(50)))
    assert len(coarsen(fine, "blocks").ops) == 50
    assert len(coarsen_to(fine, 3).ops) == 3


def test_at_least_one_operator_is_asked_for():
    with pytest.raises(ValueError, match="at least 1 operator, got 0"):
        coarsen_to(graph(op("a", "x")), 0)
