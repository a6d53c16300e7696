"""Step times and KV room of a server from the cost model: any decoder on any device.

The decode step's graph, for one sequence, tells the work of one token. Its operators are timed for
as many tokens as a step may have; those that only the last token of a prompt needs (final norm, LM
head) for as many sequences; attention over its grid of chunk, past, decodes and context.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardware.cluster import Cluster
from hardware.errors import InfeasibleError
from hardware.profile import DeviceProfile
from hardware.units import format_bytes
from scheduler.cost_model.costs import class_seconds, cost_table
from scheduler.cost_model.features import OpColumns
from scheduler.cost_model.kernels import FORMS
from scheduler.generation import Generation
from scheduler.ir.batch_size import scaled_op
from scheduler.ir.fused import fused
from scheduler.ir.graph import DTYPE_BYTES, Graph, Op
from scheduler.problem import Placement
from simulator.step_times import Array, StepTimes

KERNEL_START_S = FORMS["product"].usual["start_s"]
"""Start of a kernel of a captured (CUDA) graph, in place of a launch from Python."""
CHUNKS = (0, 1, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048)
PASTS = (0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
CONTEXTS = (0, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)


@dataclass(frozen=True)
class ServerModel:
    """A decoder on the devices of one server.

    Attributes:
        generation: captured with a batch of 1.
        placement: device by operator of the decode step.
        memory_headroom: share of memory that stays free.
    """

    generation: Generation
    cluster: Cluster
    placement: Placement
    memory_headroom: float = 0.1

    def __post_init__(self) -> None:
        """Refuse batches: a server makes its own."""
        if self.generation.decode.samples != 1:
            raise ValueError(
                f"serving: a generation under traffic needs model.batch 1, got "
                f"{self.generation.decode.samples}; servers batch by themselves "
                "(serving.continuous.max_sequences)"
            )


def model_step_times(model: ServerModel, token_budget: int, max_sequences: int) -> StepTimes:
    """Predict the steps of a server.

    Raises:
        ValueError: a device does not support the dtype.
    """
    graph, part = _parts(model)
    used = {device: model.cluster.devices[device] for device in _devices(model)}
    cost_table(graph, Cluster(model.cluster.name, used))  # refuses dtypes that they lack
    tokens, sequences = np.array(_points(token_budget)), np.array(_points(max_sequences))
    cluster = replace(
        model.cluster,
        devices={name: _in_graphs(p) for name, p in model.cluster.devices.items()},
    )
    token_s = _seconds(model, graph, part, cluster, "token", tokens)
    token_s += _seconds(model, graph, part, cluster, "once", np.ones(1, np.int64))
    sequence_s = _seconds(model, graph, part, cluster, "sequence", sequences)
    chunk = np.array(_up_to(CHUNKS, token_budget), float)
    axes = (
        chunk,
        np.array(PASTS, float),
        np.array([0, *sequences], float),
        np.array(CONTEXTS, float),
    )
    return StepTimes(
        np.array([0, *tokens], float),
        np.array([token_s[0], *token_s]),
        np.array([0, *sequences], float),
        np.array([0.0, *sequence_s]),
        *axes,
        _attention_grid(model, cluster, axes),
        provenance=cost_table(graph, cluster).levels_of(_devices(model)),
    )


def relative_band(model: ServerModel) -> tuple[float, float]:
    """Factors (low, high) that 90 % of step times over predicted ones lie between."""
    graph, _ = _parts(model)
    rows: dict[str, list[int]] = {device: [] for device in _devices(model)}
    for row, op in enumerate(graph.ops):
        rows[model.placement[op.name]].append(row)
    return cost_table(graph, model.cluster).band(rows)


def kv_blocks(model: ServerModel, token_budget: int, block_tokens: int) -> int:
    """Pages of KV cache beside the weights and the activations of a full step; the least device's.

    Raises:
        InfeasibleError: there is no room for one.
    """
    decode, context = model.generation.decode, model.generation.context
    blocks = []
    for device in _devices(model):
        ops = [op for op in decode.ops if model.placement[op.name] == device]
        page_bytes = sum(op.state_bytes for op in ops) / context * block_tokens
        weights = sum({k: v for op in ops for k, v in op.weights.items()}.values())
        products = (op.bytes_read + op.bytes_written for op in ops if op.kind == "matmul")
        widest = max(products, default=0.0)
        limit = model.cluster.devices[device].memory_bytes * (1 - model.memory_headroom)
        left = limit - weights - widest * token_budget
        if page_bytes and left < page_bytes:
            raise InfeasibleError(
                f"device '{device}': {format_bytes(weights)} of weights and "
                f"{format_bytes(widest * token_budget)} for a step of {token_budget} tokens leave "
                f"no room for keys and values within {format_bytes(limit)}; take a larger device, "
                "a smaller dtype, or a smaller serving.continuous.token_budget"
            )
        if page_bytes:
            blocks.append(int(left / page_bytes))
    return min(blocks)


def with_cache_only(graph: Graph, placement: Placement) -> dict[str, str]:
    """A placement whose devices all hold keys and values.

    What a plan of single tokens puts on other devices, as the host, goes to the device with the
    most of the cache: servers do not send every step's activations there and back.
    """
    cache: dict[str, float] = defaultdict(float)
    for op in graph.ops:
        cache[placement[op.name]] += op.state_bytes
    main = max(cache, key=lambda device: cache[device])
    return {name: device if cache[device] else main for name, device in placement.items()}


def _devices(model: ServerModel) -> list[str]:
    return list(dict.fromkeys(model.placement.values()))


def _in_graphs(profile: DeviceProfile) -> DeviceProfile:
    if profile.kind == "cpu":
        return profile
    return replace(profile, launch_overhead_s=min(profile.launch_overhead_s, KERNEL_START_S))


def _parts(model: ServerModel) -> tuple[Graph, Mapping[str, str]]:
    """The decode step as servers run it, and the part of a step that each operator belongs to.

    An operator of the prefill that writes as much as in the decode step is done for one token of
    the prompt alone.
    """
    decode, prefill = model.generation.decode, model.generation.prefill.by_name
    one_token = model.generation.prompt_tokens == 1
    part = {}
    reached = {tensor.name for tensor in decode.inputs}
    for op in decode.ops:
        same = op.name in prefill and prefill[op.name].bytes_written == op.bytes_written
        if op.kind == "attention" and op.state_bytes:
            part[op.name] = "attention"
        elif reached.isdisjoint(op.inputs):
            part[op.name] = "once"
        elif same and not one_token and op.kind in ("matmul", "norm"):
            part[op.name] = "sequence"
        else:
            part[op.name] = "token"
        if part[op.name] != "once":
            reached.update(tensor.name for tensor in op.outputs)
    eager = {d for d in _devices(model) if model.cluster.devices[d].kind == "cpu"}
    label: dict[str, Hashable] = {
        op.name: op.name
        if model.placement[op.name] in eager
        else (part[op.name], model.placement[op.name])
        for op in decode.ops
    }
    return fused(decode, label), part


def _points(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to the largest."""
    powers = [2**i for i in range(largest.bit_length())]
    return sorted({n for p in powers for n in (p, p + p // 2) if n <= largest} | {largest})


def _up_to(axis: Sequence[int], largest: int) -> list[int]:
    further = range(axis[-1], largest, 512)
    return sorted({n for n in (*axis, *further) if n < largest} | {largest})


def _seconds(
    model: ServerModel,
    graph: Graph,
    part: Mapping[str, str],
    cluster: Cluster,
    name: str,
    counts: NDArray[np.int64],
) -> Array:
    """Seconds (num_counts,) of a part of a step, by its tokens or sequences.

    Operators that are alike, as those of equal layers are, are timed once.
    """
    alike: dict[object, list[Op]] = defaultdict(list)
    for op in graph.ops:
        if part[op.name] == name:
            sizes = (op.flops, op.bytes_read, op.bytes_written, op.params_read)
            dims = tuple(sorted(op.dims.items()))
            alike[(model.placement[op.name], op.kind, op.dtype, sizes, dims)].append(op)
    seconds = np.zeros(len(counts))
    for ops in alike.values():
        first = ops[0]
        scaled = tuple(scaled_op(first, n) if n != 1 else first for n in counts.tolist())
        columns = OpColumns(first.kind, first.dtype, scaled)
        profile = cluster.devices[model.placement[first.name]]
        seconds += len(ops) * class_seconds(columns, profile)[1]
    always_s, each_s = _transfer_seconds(model, graph, part, cluster, name).tolist()
    seconds += always_s + each_s * counts
    return seconds


def _transfer_seconds(
    model: ServerModel, graph: Graph, part: Mapping[str, str], cluster: Cluster, name: str
) -> Array:
    """Seconds (2,), for all and for each token or sequence, of what a part sends on."""
    seconds = np.zeros(2)
    for tensor, readers in graph.consumers.items():
        src = graph.producer.get(tensor)
        if src is None or part[src] != name:
            continue
        there = {model.placement[reader] for reader in readers} - {model.placement[src]}
        for device in there:
            link = cluster.link(model.placement[src], device)
            seconds += link.latency_s, graph.tensors[tensor].num_bytes / link.bytes_per_s
    return seconds


def _attention_grid(model: ServerModel, cluster: Cluster, axes: tuple[Array, ...]) -> Array:
    """Seconds (chunk, past, decodes, context): of the chunk plus of the decoding sequences."""
    chunk, past, decodes, context = axes
    shapes = Counter(
        (model.placement[op.name], op.dtype, tuple(sorted(op.dims.items())))
        for op in model.generation.decode.ops
        if op.kind == "attention" and op.state_bytes
    )
    prefill_s = np.zeros((len(chunk), len(past)))
    decode_s = np.zeros((len(decodes), len(context)))
    for (device, dtype, dims), count in shapes.items():
        profile, sizes = cluster.devices[device], dict(dims)
        prefills = [
            _attention(dtype, sizes, 1, int(c), int(c + p)) for c in chunk[1:] for p in past
        ]
        decoding = [
            _attention(dtype, sizes, int(n), 1, int(x)) for n in decodes[1:] for x in context[1:]
        ]
        for table, ops in ((prefill_s[1:], prefills), (decode_s[1:, 1:], decoding)):
            seconds = class_seconds(OpColumns("attention", dtype, tuple(ops)), profile)[1]
            table += count * seconds.reshape(table.shape)
    decode_s[1:, 0] = decode_s[1:, 1]
    return prefill_s[:, :, None, None] + decode_s


def _attention(dtype: str, sizes: Mapping[str, int], batch: int, queries: int, keys: int) -> Op:
    """Attention of the last `queries` of `keys` tokens, causal, over a cache."""
    heads, kv_heads, depth = sizes["heads"], sizes["kv_heads"], sizes["depth"]
    value_depth, width = sizes.get("value_depth", depth), DTYPE_BYTES[dtype]
    pairs = queries * (keys - queries) + queries * (queries + 1) / 2
    rows = queries * heads * (depth + value_depth) + keys * kv_heads * (depth + value_depth)
    return Op(
        "attention", "attention", 2.0 * batch * heads * pairs * (depth + value_depth),
        float(batch * rows * width), 0.0, dtype, (), (),
        dims={**sizes, "batch": batch, "queries": queries, "keys": keys, "causal": 1},
    )  # fmt: skip
