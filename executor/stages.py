"""What a worker does with its stages: run micro-batches, receive, send, and keep time."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx

from executor.split import StageModule
from executor.worker import Context
from scheduler.plan import Stage, Transfer
from scheduler.timeline import Span

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """A run of micro-batches through a plan, as every worker is told it.

    Attributes:
        folder: holds the stage modules and the inputs.
        order: per device, the (micro-batch, stage) pairs in the order in which they run.
        in_flight: micro-batches in flight; bounds what a fast sender may be ahead.
        one_by_one: wait for every worker between micro-batches (to measure latency).
        traced: time every operator too.
    """

    folder: Path
    stages: tuple[Stage, ...]
    order: Mapping[str, list[tuple[int, int]]]
    in_flight: int
    one_by_one: bool = False
    traced: bool = False


def save_stages(folder: Path, modules: list[StageModule], inputs: list[Tensors]) -> None:
    """Write stage modules, a file each, and the variants of the inputs."""
    for i, module in enumerate(modules):
        torch.save(module, folder / f"stage{i}.pt")
    torch.save(inputs, folder / "inputs.pt")


class Runner:
    """The stages of one device, loaded, and the tensors of the micro-batches in flight."""

    def __init__(self, context: Context, job: Job) -> None:
        self.context, self.job = context, job
        device = context.device.torch_device
        mine = [i for i, s in enumerate(job.stages) if s.device == context.device.name]
        self.modules: dict[int, StageModule] = {}
        for i in mine:
            stage = torch.load(job.folder / f"stage{i}.pt", weights_only=False, mmap=True)
            stage.module.to(device)
            self.modules[i] = stage
        loaded = torch.load(job.folder / "inputs.pt", weights_only=False)
        self.inputs = [{k: v.to(device) for k, v in variant.items()} for variant in loaded]
        self.last_stage = {name: i for i in mine for name in self.modules[i].inputs}
        self.spans: list[Span] = []

    def run(self, k: int, i: int, tensors: Tensors) -> None:
        """Run stage i for micro-batch k: read its inputs from `tensors` and add its outputs."""
        stage = self.modules[i]
        variant = self.inputs[k % len(self.inputs)]
        arguments = [tensors[n] if n in tensors else variant[n] for n in stage.inputs]
        start_s = self.context.clock()
        if self.job.traced:
            interpreter = TimedInterpreter(stage, self.context.clock)
            results = interpreter.run(*arguments)
            name = self.context.device.name
            self.spans += [Span(op, "op", name, a, b, k) for op, a, b in interpreter.times]
        else:
            results = stage.module(*arguments)
        end_s = self.context.clock()
        self.spans.append(Span(f"stage {i}", "stage", self.context.device.name, start_s, end_s, k))
        tensors.update(zip(stage.outputs, results, strict=True))
        for name in stage.inputs:
            if self.last_stage[name] == i:
                tensors.pop(name, None)


class TimedInterpreter(fx.Interpreter):
    """Runs a stage node by node and keeps (operator, start, end) of each."""

    def __init__(self, stage: StageModule, clock: Callable[[], float]) -> None:
        super().__init__(stage.module)
        self.clock = clock
        self.names = iter(stage.ops)
        self.times: list[tuple[str, float, float]] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Time one operator; items of tuples are not operators."""
        if getattr(target, "__name__", "") == "getitem":
            return target(*args, **kwargs)
        start_s = self.clock()
        result = target(*args, **kwargs)
        self.times.append((next(self.names), start_s, self.clock()))
        return result


class Wire:
    """Sends and receives of one worker, by gloo, or by nccl where both ends are CUDA devices."""

    def __init__(self, context: Context, job: Job) -> None:
        self.context, self.job = context, job
        transfers = [transfer for stage in job.stages for transfer in stage.sends]
        self.tag = {transfer: number for number, transfer in enumerate(transfers)}
        self.buffers: dict[tuple[Transfer, int], Tensor] = {}
        self.posted: dict[tuple[Transfer, int], Any] = {}
        self.sent: dict[int, list[tuple[Any, Tensor]]] = defaultdict(list)
        self.shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}

    def _wire_device(self, transfer: Transfer) -> str:
        """Where the tensor must lie to be sent: on the GPU between GPUs, else in host memory."""
        ends = [self.context.torch_devices[end] for end in (transfer.src, transfer.dst)]
        direct = all(end.startswith("cuda") for end in ends)
        return self.context.device.torch_device if direct else "cpu"

    def post(self, k: int, i: int, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Begin to receive what stage i of micro-batch k needs."""
        for transfer in self.job.stages[i].receives:
            if (transfer, k) in self.posted:
                continue
            slot = (transfer, k % (self.job.in_flight + 1))
            if slot not in self.buffers:
                shape, dtype = shapes[transfer.tensor]
                self.buffers[slot] = torch.empty(shape, dtype=dtype, device=self._wire_device(transfer))
            source = self.context.ranks[transfer.src]
            tag = k * len(self.tag) + self.tag[transfer]
            self.posted[transfer, k] = dist.irecv(self.buffers[slot], source, tag=tag)

    def receive(self, k: int, i: int, tensors: Tensors, spans: list[Span]) -> None:
        """Wait for what stage i of micro-batch k needs."""
        for transfer in self.job.stages[i].receives:
            self.posted.pop((transfer, k)).wait()
            buffer = self.buffers[transfer, k % (self.job.in_flight + 1)]
            tensors[transfer.tensor] = buffer.to(self.context.device.torch_device)
            now_s = time.monotonic()
            spans.append(Span(transfer.tensor, "transfer", _link(transfer), now_s, now_s, k))

    def send(self, k: int, i: int, tensors: Tensors, spans: list[Span]) -> None:
        """Begin to send what stage i of micro-batch k made."""
        for transfer in self.job.stages[i].sends:
            tensor = tensors[transfer.tensor].to(self._wire_device(transfer)).contiguous()
            now_s = time.monotonic()
            spans.append(Span(transfer.tensor, "transfer", _link(transfer), now_s, now_s, k))
            tag = k * len(self.tag) + self.tag[transfer]
            handle = dist.isend(tensor, self.context.ranks[transfer.dst], tag=tag)
            self.sent[k].append((handle, tensor))

    def settle(self, before: int) -> None:
        """Wait until all that micro-batches below `before` sent has been received."""
        for k in [k for k in self.sent if k < before]:
            for handle, _ in self.sent.pop(k):
                handle.wait()


def _link(transfer: Transfer) -> str:
    return f"{transfer.src}->{transfer.dst}"


def load_job(context: Context, job: Job) -> None:
    """Load the stages of this device and keep them for `run_job`."""
    _loaded.clear()
    _loaded[job.folder] = Runner(context, job)


_loaded: dict[Path, Runner] = {}


def run_job(
    context: Context, job: Job, shapes: Mapping[str, tuple[torch.Size, torch.dtype]], keep: tuple[str, ...]
) -> tuple[list[Span], dict[int, Tensors]]:
    """Run this device's share of a job on the stages that `load_job` loaded.

    Returns the spans, and the tensors named in `keep` of the first micro-batch of each input
    variant.
    """
    runner = _loaded[job.folder]
    runner.job, runner.spans = job, []
    wire = Wire(context, job)
    order = job.order.get(context.device.name, [])
    alive: dict[int, Tensors] = defaultdict(dict)
    kept: dict[int, Tensors] = defaultdict(dict)
    left = defaultdict(int)
    for k, _ in order:
        left[k] += 1
    last = max((k for tasks in job.order.values() for k, _ in tasks), default=0)
    current = 0
    for position, (k, i) in enumerate(order):
        while job.one_by_one and current < k:
            _finish(context, wire, current := current + 1)
        wire.settle(k - job.in_flight + 1)
        wire.post(k, i, shapes)
        if not job.one_by_one and position + 1 < len(order):
            wire.post(*order[position + 1], shapes)
        wire.receive(k, i, alive[k], runner.spans)
        runner.run(k, i, alive[k])
        wire.send(k, i, alive[k], runner.spans)
        if k < len(runner.inputs):
            kept[k] |= {name: alive[k][name].cpu() for name in keep if name in alive[k]}
        left[k] -= 1
        if left[k] == 0:
            del alive[k]
            context.tell((k + 1) / (last + 1))
    while job.one_by_one and current < last:
        _finish(context, wire, current := current + 1)
    wire.settle(last + 1)
    return runner.spans, kept


def _finish(context: Context, wire: Wire, current: int) -> None:
    """End a micro-batch that runs alone: everything received, every worker here."""
    wire.settle(current)
    if len(context.ranks) > 1:
        dist.barrier()
