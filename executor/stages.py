"""What a worker does with its stages: run micro-batches, receive, send, and keep time."""

import operator
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx

from executor.split import StageProgram
from executor.wire import Channel, Shape, open_channel
from executor.worker import Context
from scheduler.evaluation.timeline import Span
from scheduler.plan import Stage, Transfer

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """A run of micro-batches through a plan, as every worker is told it.

    Attributes:
        folder: holds the stage modules and the inputs.
        copies: the stages as micro-batches 0, 1, ... run them in turn: on each of their replicas.
        order: per device, the (micro-batch, stage) pairs in the order in which they run.
        in_flight: micro-batches in flight; bounds what a fast sender may be ahead.
        alone: micro-batches that enter together, before all workers wait for each other (to
            measure latency); 0 for a steady flow.
        traced: time every operator too.
    """

    folder: Path
    copies: Sequence[tuple[Stage, ...]]
    order: Mapping[str, list[tuple[int, int]]]
    in_flight: int
    alone: int = 0
    traced: bool = False


def save_stages(folder: Path, stages: list[StageProgram], inputs: list[Tensors]) -> None:
    """Write stages, a file each, what they hold, each once, and the variants of the inputs."""
    torch.save({k: v for stage in stages for k, v in stage.state.items()}, folder / "state.pt")
    for i, stage in enumerate(stages):
        torch.save(replace(stage, state={}), folder / f"stage{i}.pt")
    torch.save(inputs, folder / "inputs.pt")


def load_kept(folder: Path, devices: Iterable[str], names: tuple[str, ...]) -> dict[int, Tensors]:
    """The tensors that the workers kept in their last run, by input variant and name, in order."""
    outputs: dict[int, Tensors] = defaultdict(dict)
    for device in devices:
        for variant, tensors in torch.load(folder / f"kept-{device}.pt").items():
            outputs[variant] |= tensors
    return {v: {name: tensors[name] for name in names} for v, tensors in outputs.items()}


class Runner:
    """The stages of one device, loaded, and the tensors of the micro-batches in flight."""

    def __init__(self, context: Context, job: Job) -> None:
        self.context, self.job = context, job
        device = context.device.torch_device
        name = context.device.name
        mine = sorted({i for c in job.copies for i, s in enumerate(c) if s.device == name})
        self.stages: dict[int, StageProgram] = {}
        self.modules: dict[int, fx.GraphModule] = {}
        state = torch.load(job.folder / "state.pt", weights_only=False, mmap=True)
        held: dict[str, Any] = {}
        for i in mine:
            self.stages[i] = torch.load(job.folder / f"stage{i}.pt", weights_only=False)
            for name in set(self.stages[i].attributes.values()) - set(held):
                is_tensor = isinstance(state[name], Tensor)
                held[name] = state[name].to(device) if is_tensor else state[name]
            self.modules[i] = self.stages[i].build(device, held)
        loaded = torch.load(job.folder / "inputs.pt", weights_only=False)
        self.inputs = [{k: v.to(device) for k, v in variant.items()} for variant in loaded]
        self.last_stage = {name: i for i in mine for name in self.stages[i].inputs}
        self.spans: list[Span] = []

    def run(self, k: int, i: int, tensors: Tensors) -> None:
        """Run stage i for micro-batch k: read its inputs from `tensors` and add its outputs."""
        stage = self.stages[i]
        variant = self.inputs[k % len(self.inputs)]
        arguments = [tensors[n] if n in tensors else variant[n] for n in stage.inputs]
        start_s = self.context.clock()
        if self.job.traced:
            interpreter = TimedInterpreter(self.modules[i], self.context.clock)
            results = interpreter.run(*arguments)
            name = self.context.device.name
            self.spans += [Span(op, "op", name, a, b, k) for op, a, b in interpreter.times]
        else:
            results = self.modules[i](*arguments)
        end_s = self.context.clock()
        self.spans.append(Span(f"stage {i}", "stage", self.context.device.name, start_s, end_s, k))
        tensors.update(zip(stage.outputs, results, strict=True))
        for name in stage.inputs:
            if self.last_stage[name] == i:
                tensors.pop(name, None)

    def mark(self, transfer: Transfer, k: int) -> None:
        """Note the time of sending or receiving; the parent joins both into one span."""
        now_s = time.monotonic()
        link = f"{transfer.src}->{transfer.dst}"
        self.spans.append(Span(transfer.tensor, "transfer", link, now_s, now_s, k))


class TimedInterpreter(fx.Interpreter):
    """Runs a stage node by node and keeps (operator, start, end) of each."""

    def __init__(self, module: fx.GraphModule, clock: Callable[[], float]) -> None:
        super().__init__(module)
        self.clock = clock
        self.times: list[tuple[str, float, float]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Time one operator; items of tuples are not operators."""
        if n.op != "call_function" or n.target is operator.getitem:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        start_s = self.clock()
        result = n.target(*args, **kwargs)  # type: ignore[operator]
        self.times.append((n.name, start_s, self.clock()))
        return result


def load_job(context: Context, job: Job) -> None:
    """Load the stages of this device and keep them for `run_job`."""
    _loaded.clear()
    _loaded[job.folder] = Runner(context, job)


_loaded: dict[Path, Runner] = {}


def run_job(
    context: Context, job: Job, shapes: Mapping[str, Shape], keep: tuple[str, ...]
) -> list[Span]:
    """Run this device's share of a job on the stages that `load_job` loaded; returns the spans.

    The tensors named in `keep`, of the first micro-batch of each input variant, go to a file.
    """
    runner = _loaded[job.folder]
    runner.job, runner.spans = job, []
    channels = _open_channels(context, job, shapes)
    order = job.order.get(context.device.name, [])
    alive: dict[int, Tensors] = defaultdict(dict)
    kept: dict[int, Tensors] = defaultdict(dict)
    left = Counter(k for k, _ in order)
    last = max((k for tasks in job.order.values() for k, _ in tasks), default=0)
    group = 0
    for k, i in order:
        while job.alone and group < k // job.alone:
            group = _next_group(context, group)
        stages = job.copies[k % len(job.copies)]
        for transfer in stages[i].receives:
            alive[k][transfer.tensor] = channels[transfer].receive(k)
            runner.mark(transfer, k)
        runner.run(k, i, alive[k])
        for transfer in stages[i].sends:
            runner.mark(transfer, k)
            channels[transfer].send(k, alive[k][transfer.tensor])
        if k < len(runner.inputs):
            new = [name for name in keep if name in alive[k] and name not in kept[k]]
            kept[k] |= {name: alive[k][name].to("cpu", copy=True) for name in new}
        left[k] -= 1
        if left[k] == 0:
            del alive[k]
            received = (transfer for stage in stages for transfer in stage.receives)
            for transfer in received:
                if transfer.dst == context.device.name:
                    channels[transfer].release(k)
            context.tell((k + 1) / (last + 1))
    while job.alone and group < last // job.alone:
        group = _next_group(context, group)
    for channel in channels.values():
        channel.drain()
    torch.save(dict(kept), job.folder / f"kept-{context.device.name}.pt")
    return runner.spans


def _open_channels(
    context: Context, job: Job, shapes: Mapping[str, Shape]
) -> dict[Transfer, Channel]:
    sent = (transfer for copy in job.copies for stage in copy for transfer in stage.sends)
    transfers = list(dict.fromkeys(sent))
    return {
        transfer: open_channel(
            context, transfer, number, shapes[transfer.tensor], job.in_flight, job.folder
        )
        for number, transfer in enumerate(transfers)
        if context.device.name in (transfer.src, transfer.dst)
    }


def _next_group(context: Context, group: int) -> int:
    """Wait for every worker before the next micro-batches enter."""
    if len(context.ranks) > 1:
        dist.barrier()
    return group + 1
