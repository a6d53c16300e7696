"""Measuring devices: what a worker measures of its device, its links and a model's operators."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F

from executor.stages import Job, Runner, Tensors
from executor.wire import Channel, open_channel
from executor.worker import Context
from scheduler.plan import Stage, Transfer

REPEATS = 7
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class DeviceFigures:
    """What was measured of a device: FLOP/s by (kind, dtype), bytes/s by kind, and the overhead."""

    flops_per_s: dict[tuple[str, str], float]
    bytes_per_s: dict[str, float]
    launch_overhead_s: float


def seconds_of(context: Context, run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a call, after two calls that are not counted."""
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        start_s = context.clock()
        run()
        times.append(context.clock() - start_s)
    return statistics.median(times)


def measure_device(context: Context) -> DeviceFigures:
    """Measure matrix product, convolution, memory-bound operators, and launch overhead."""
    device = context.device.torch_device
    size = 1024 if context.device.kind == "cpu" else 4096
    flops: dict[tuple[str, str], float] = {}
    for name in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        side = size if name == "float32" else size // 2
        a = torch.randn(side, side, device=device).to(dtype)
        flops["matmul", name] = 2 * side**3 / seconds_of(context, lambda a=a: a @ a)  # type: ignore[misc]
    image = torch.randn(8, 128, 28, 28, device=device)
    kernel = torch.randn(128, 128, 3, 3, device=device)
    conv_flops = 2 * 8 * 128 * 28 * 28 * 128 * 9
    flops["conv", "float32"] = conv_flops / seconds_of(
        context, lambda: F.conv2d(image, kernel, padding=1)
    )
    heads = torch.randn(8, 12, 256, 64, device=device)
    attention_flops = 4 * 8 * 12 * 256 * 256 * 64
    flops["attention", "float32"] = attention_flops / seconds_of(
        context, lambda: F.scaled_dot_product_attention(heads, heads, heads)
    )
    flat = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(flat)
    rows = flat.view(-1, 1024)
    picture = flat.view(16, 64, 128, 128)
    moving: dict[str, tuple[float, Callable[[], object]]] = {
        "copy": (2, lambda: target.copy_(flat)),
        "elementwise": (3, lambda: torch.add(flat, flat, out=target)),
        "norm": (2, lambda: F.layer_norm(rows, (1024,))),
        "softmax": (2, lambda: rows.softmax(-1)),
        "pool": (1.25, lambda: F.max_pool2d(picture, 2)),
        "reduce": (1, lambda: rows.sum(-1)),
    }
    num_bytes = {kind: passes * COPY_BYTES for kind, (passes, _) in moving.items()}
    rates = {k: num_bytes[k] / seconds_of(context, run, 5) for k, (_, run) in moving.items()}
    tiny = torch.ones(8, device=device)
    return DeviceFigures(flops, rates, seconds_of(context, lambda: tiny + tiny, 200))


LINK_SIZES_BYTES = (1024, 2**20, 16 * 2**20)


def measure_link(context: Context, src: str, dst: str, folder: Path) -> list[float]:
    """Median seconds from handing a tensor over to its arrival, for each of `LINK_SIZES_BYTES`.

    Through the channel that plans use. Half of a round trip whose way back carries 1 KB; half of
    the 1 KB round trip is taken off.
    """
    device = context.device.torch_device
    round_trip: list[float] = []
    for num_bytes in LINK_SIZES_BYTES:
        payload = torch.zeros(num_bytes // 4, device=device)
        reply = torch.zeros(256, device=device)
        number = 4 * num_bytes
        there = Transfer("there", src, dst, num_bytes)
        back = Transfer("back", dst, src, 1024)
        to = open_channel(context, there, number, (payload.shape, payload.dtype), 2, folder)
        fro = open_channel(context, back, number + 1, (reply.shape, reply.dtype), 2, folder)
        turn = count()

        def ping(to: Channel = to, fro: Channel = fro, turn: Iterator[int] = turn) -> None:
            k = next(turn)
            to.send(k, payload)  # noqa: B023
            fro.receive(k)
            fro.release(k)

        def pong(to: Channel = to, fro: Channel = fro, turn: Iterator[int] = turn) -> None:
            k = next(turn)
            to.receive(k)
            to.release(k)
            fro.send(k, reply)  # noqa: B023

        round_trip.append(seconds_of(context, ping if context.device.name == src else pong, 15))
        to.drain()
        fro.drain()
    small_s = round_trip[0] / 2
    return [small_s, *(total - small_s for total in round_trip[1:])]


def measure_pass(context: Context, folder: Path, num_stages: int) -> float:
    """Median seconds of one pass of a whole model: one uncounted, then at least two."""
    runner = _whole(context, folder, num_stages)
    _run_all(runner)
    times: list[float] = []
    while len(times) < 2 or (sum(times) < 1.0 and len(times) < 20):
        start_s = context.clock()
        _run_all(runner)
        times.append(context.clock() - start_s)
    return statistics.median(times)


def measure_ops(
    context: Context, folder: Path, num_stages: int, budget_s: float
) -> tuple[dict[str, float], float]:
    """Median seconds of every operator of a whole model, measured in place, node by node.

    Returns them, and the median seconds of the whole model without timers. Two untimed passes
    come first; then timed and untimed passes in turn until `budget_s` is spent (at least two).
    """
    runner = _whole(context, folder, num_stages)
    times: dict[str, list[float]] = defaultdict(list)
    passes: list[float] = []
    for _ in range(2):
        _run_all(runner)
    begin_s = context.clock()
    while len(passes) < 2 or (context.clock() - begin_s < budget_s and len(passes) < 50):
        start_s = context.clock()
        _run_all(runner)
        passes.append(context.clock() - start_s)
        runner.spans, runner.job = [], replace(runner.job, traced=True)
        _run_all(runner)
        runner.job = replace(runner.job, traced=False)
        for span in runner.spans:
            if span.kind == "op":
                times[span.name].append(span.duration_s)
        context.tell(min(1.0, (context.clock() - begin_s) / budget_s))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians, statistics.median(passes)


def _whole(context: Context, folder: Path, num_stages: int) -> Runner:
    """The stages of an unsplit model, loaded."""
    return Runner(context, Job(folder, ((Stage(context.device.name, ()),) * num_stages,), {}, 1))


def _run_all(runner: Runner) -> None:
    """Run the stages one after the other on the first inputs."""
    tensors: Tensors = {}
    for i in runner.stages:
        runner.run(0, i, tensors)
