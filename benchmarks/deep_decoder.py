"""Decoders of any depth as graphs, with or without their training step; and clusters to match.

The layers are those of Llama: the kinds, shapes and data flow of its operators, written down here,
so that a graph of 100,000 operators takes seconds and not a capture of minutes.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import permutations
from math import prod

from hardware.catalog import find_instance, find_link, instance_cluster, joined
from hardware.cluster import Cluster
from scheduler.ir.graph import Graph, Mode, Op, Phase, Tensor

TOKENS, WIDTH, HIDDEN, VOCABULARY, HEADS = 512, 2048, 5632, 32_000, 16
DTYPE, BYTES = "bfloat16", 2
STATE_BYTES = 8
"""Adam's two moments in float32, per parameter."""


@dataclass
class _Tape:
    """The graph so far; every operator makes one tensor of its own name."""

    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        flops: float = 0.0,
        weight: tuple[str, int] | None = None,
        phase: Phase = "forward",
    ) -> str:
        """Add an operator; returns its name."""
        read = sum(prod(self.shapes[i]) * BYTES for i in inputs) if kind != "view" else 0
        written = prod(shape) * BYTES if kind != "view" else 0
        self.shapes[name] = shape
        self.ops.append(
            Op(
                name=name,
                kind=kind,
                flops=flops,
                bytes_read=float(read),
                bytes_written=float(written),
                dtype=DTYPE,
                inputs=tuple(dict.fromkeys(inputs)),
                outputs=(Tensor(name, shape, DTYPE),),
                weights={weight[0]: weight[1] * BYTES} if weight else {},
                module=name.rpartition("/")[0].replace("/", "."),
                phase=phase,
                state_bytes=STATE_BYTES * weight[1] if weight and phase == "optimizer" else 0.0,
            )
        )
        return name

    def linear(self, name: str, x: str, width: int) -> str:
        """A matmul with a weight."""
        k = self.shapes[x][-1]
        flops = 2.0 * TOKENS * k * width
        return self.add(name, "matmul", (x,), (TOKENS, width), flops, (f"{name}.w", k * width))

    def pointwise(self, name: str, *inputs: str) -> str:
        """An elementwise operator of the shape of its first input."""
        return self.add(
            name, "elementwise", inputs, self.shapes[inputs[0]], prod(self.shapes[inputs[0]])
        )


def decoder(num_layers: int, training: bool) -> Graph:
    """A Llama-like decoder of some layers; 30 operators each, or 109 with its training step."""
    tape = _Tape(shapes={"tokens": (TOKENS,)})
    size = VOCABULARY * WIDTH
    x = tape.add("embed/rows", "embedding", ("tokens",), (TOKENS, WIDTH), 0.0, ("embed.w", size))
    for i in range(num_layers):
        x = _layer(tape, f"layers/{i}", x)
    last = tape.linear("head/logits", _norm(tape, "head/norm", x), VOCABULARY)
    outputs = (last,)
    if training:
        outputs = (_training_step(tape, last),)
    name = f"decoder of {num_layers} layers"
    mode: Mode = "training" if training else "inference"
    return Graph(name, tuple(tape.ops), (Tensor("tokens", (TOKENS,), DTYPE),), outputs, mode=mode)


def _norm(tape: _Tape, name: str, x: str) -> str:
    square = tape.pointwise(f"{name}/square", x)
    mean = tape.add(f"{name}/mean", "reduce", (square,), (TOKENS, 1), TOKENS * WIDTH)
    root = tape.pointwise(f"{name}/rsqrt", mean)
    unit = tape.pointwise(f"{name}/unit", x, root)
    count = 2 * TOKENS * WIDTH
    return tape.add(
        f"{name}/scale", "elementwise", (unit,), (TOKENS, WIDTH), count, (f"{name}.w", WIDTH)
    )


def _layer(tape: _Tape, name: str, x: str) -> str:
    y = _norm(tape, f"{name}/norm1", x)
    heads = []
    for part in "qkv":
        flat = tape.linear(f"{name}/attention/{part}", y, WIDTH)
        shape = (HEADS, TOKENS, WIDTH // HEADS)
        split = tape.add(f"{name}/attention/{part}_heads", "view", (flat,), shape)
        if part != "v":
            turned = tape.pointwise(f"{name}/attention/{part}_cos", split)
            half = tape.pointwise(f"{name}/attention/{part}_sin", split)
            split = tape.pointwise(f"{name}/attention/{part}_rope", turned, half)
        heads.append(split)
    flops = 4.0 * TOKENS * TOKENS * WIDTH
    mixed = tape.add(f"{name}/attention/mix", "attention", tuple(heads), (TOKENS, WIDTH), flops)
    x = tape.pointwise(f"{name}/add1", x, tape.linear(f"{name}/attention/o", mixed, WIDTH))
    y = _norm(tape, f"{name}/norm2", x)
    gate = tape.pointwise(f"{name}/mlp/silu", tape.linear(f"{name}/mlp/gate", y, HIDDEN))
    both = tape.pointwise(f"{name}/mlp/mul", gate, tape.linear(f"{name}/mlp/up", y, HIDDEN))
    return tape.pointwise(f"{name}/add2", x, tape.linear(f"{name}/mlp/down", both, WIDTH))


def _training_step(tape: _Tape, last: str) -> str:
    """Append the backward pass, an operator for each gradient, and the optimizer; its last op."""
    forward = list(tape.ops)
    parts: dict[str, list[str]] = defaultdict(list)
    shape = tape.shapes[last]
    parts[last] = [tape.add("loss", "softmax", (last,), shape, 5.0 * prod(shape))]
    updates: list[tuple[Op, str]] = []
    for op in reversed(forward):
        grads = parts[op.name]
        grad = grads[0]
        for k, other in enumerate(grads[1:]):
            grad = tape.add(
                f"{op.name}/grad_sum{k}", "elementwise", (grad, other), tape.shapes[op.name],
                prod(tape.shapes[op.name]), phase="backward",
            )  # fmt: skip
        weight = next(((w, b // BYTES) for w, b in op.weights.items()), None)
        for source in op.inputs:
            if source == "tokens":
                continue
            saved = () if op.kind == "view" else tuple(i for i in op.inputs if i != source)
            made = tape.add(
                f"{op.name}/grad_of_{source.replace('/', '_')}", op.kind, (grad, *saved),
                tape.shapes[source], op.flops, weight, "backward",
            )  # fmt: skip
            parts[source].append(made)
        if weight:
            made = tape.add(
                f"{op.name}/grad_weight", op.kind, (grad, *op.inputs), (weight[1],), op.flops,
                phase="backward",
            )  # fmt: skip
            updates.append((op, made))
    for op, grad in updates:
        w, num_bytes = next(iter(op.weights.items()))
        done = tape.add(
            f"{op.name}/update", "elementwise", (grad,), (1,), 12.0 * num_bytes / BYTES,
            (w, num_bytes // BYTES), "optimizer",
        )  # fmt: skip
    return done


def cluster_of(num_devices: int) -> Cluster:
    """Nodes of 8 accelerators: H200 over NVLink in the first half, A100 in the other.

    Between two nodes all tensors one way share a network of 400 Gbit/s. Data centre figures of the
    catalog.
    """
    halves = ("aws/p5en.48xlarge", "aws/p4de.24xlarge")
    num_nodes = max(1, num_devices // 8)
    nodes = [instance_cluster(find_instance(halves[2 * i // num_nodes])) for i in range(num_nodes)]
    devices = {
        f"{i}.{name}": profile
        for i, node in enumerate(nodes)
        for name, profile in node.devices.items()
        if profile.kind == "gpu"
    }
    devices = dict(list(devices.items())[:num_devices])
    links = []
    for src, dst in permutations(devices, 2):
        i, j = src.split(".")[0], dst.split(".")[0]
        if i == j:
            peer = find_instance(halves[2 * int(i) // num_nodes]).peer_link
            links.append(joined(src, dst, find_link(str(peer))))
        else:
            network = find_link("ethernet-400g")
            links.append(joined(src, dst, network, f"network {i} to {j}"))
    return Cluster(f"{num_devices} accelerators", devices, tuple(links))
