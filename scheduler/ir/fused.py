"""A graph as inference servers run it: fewer, larger kernels than eager PyTorch launches.

    q_proj  k_proj  v_proj        products of one input: one product
    add -> rms_norm               pointwise operators after one another: one kernel

A fused kernel reads what comes from outside and writes what is read outside; what stays inside
never reaches memory. Sources: Ansel et al., "PyTorch 2", ASPLOS 2024, doi:10.1145/3620665.3640366
(fusion of pointwise operators); Kwon et al., SOSP 2023 (vLLM, which joins the projections).
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace

from scheduler.ir.graph import Graph, Op

POINTWISE = frozenset({"elementwise", "copy", "norm", "view"})


def fused(graph: Graph, label: Mapping[str, Hashable]) -> Graph:
    """The graph with its kernels fused, each named after its first operator. O(tensor uses).

    Args:
        graph: of inference or generation.
        label: by operator; only operators of one label fuse, e.g. those of one device.
    """
    joined = _with_joined_products(graph, label)
    ops: list[Op] = []
    run: list[Op] = []
    for op in joined.ops:
        fits = op.kind in POINTWISE and not op.state_bytes
        if run and not (fits and label[op.name] == label[run[0].name]):
            ops.append(_one_kernel(joined, run))
            run = []
        if fits:
            run.append(op)
        else:
            ops.append(op)
    if run:
        ops.append(_one_kernel(joined, run))
    return replace(joined, ops=tuple(ops))


def _with_joined_products(graph: Graph, label: Mapping[str, Hashable]) -> Graph:
    """Products of one input with weights of one depth become one, where the first stands."""
    groups: dict[Hashable, list[Op]] = {}
    for op in graph.ops:
        alike = (op.inputs, label[op.name], *(op.dims.get(k) for k in ("batch", "m", "k")))
        is_plain = op.kind == "matmul" and op.weights and len(op.inputs) == 1 and "n" in op.dims
        groups.setdefault(alike if is_plain else op.name, []).append(op)
    return replace(graph, ops=tuple(_one_product(ops) for ops in groups.values()))


def _one_product(ops: list[Op]) -> Op:
    first = ops[0]
    if len(ops) == 1:
        return first
    return replace(
        first,
        flops=sum(op.flops for op in ops),
        bytes_written=sum(op.bytes_written for op in ops),
        weights={name: size for op in ops for name, size in op.weights.items()},
        outputs=tuple(tensor for op in ops for tensor in op.outputs),
        dims={**first.dims, "n": sum(op.dims["n"] for op in ops)},
    )


def _one_kernel(graph: Graph, run: list[Op]) -> Op:
    """One operator that reads and writes only what crosses the run's border."""
    if len(run) == 1:
        return run[0]
    names, outputs = {op.name for op in run}, set(graph.outputs)
    inside = {tensor.name for op in run for tensor in op.outputs}
    made = {tensor.name for op in run if op.kind != "view" for tensor in op.outputs}
    working = [name for op in run if op.kind != "view" for name in op.inputs]
    read = {name for name in working if graph.storage[name] not in made}
    left = [
        tensor
        for op in run
        for tensor in op.outputs
        if tensor.name in outputs or not names.issuperset(graph.consumers.get(tensor.name, ()))
    ]
    written = {graph.storage[tensor.name] for tensor in left} & made
    kinds = {op.kind for op in run}
    kind = next(k for k in ("norm", "elementwise", "copy", "view") if k in kinds)
    main = max((op for op in run if op.kind == kind), key=lambda op: op.bytes_moved)
    return replace(
        main,
        name=run[0].name,
        flops=sum(op.flops for op in run),
        bytes_read=float(sum(graph.tensors[name].num_bytes for name in read)),
        bytes_written=float(sum(graph.tensors[name].num_bytes for name in written)),
        weights={name: size for op in run for name, size in op.weights.items()},
        inputs=tuple(dict.fromkeys(n for op in run for n in op.inputs if n not in inside)),
        outputs=tuple(left),
    )
