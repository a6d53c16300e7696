"""What is known of float32 operators on GPUs before any measurement, and what a step consists of.

The weights say how far a class lies from its roofline, in logarithms; e.g. `power_bound` -1: where
the board feeds half of the rate, products take twice as long.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.neusight_backward import backward_ops, loss_ops
from benchmarks.neusight_compiled import fused_ops
from benchmarks.neusight_parallel import WAYS, communication_s, tensor_parallel, training_ops
from benchmarks.neusight_switch import Switch, behind_ops, switch_ops
from benchmarks.neusight_trace import Step, Timed, find_graph, forward_ops
from hardware.catalog import find_link, load_instances
from hardware.links import LinkFigures
from hardware.profile import DeviceProfile
from scheduler.cost_model.pooled import Coefficients, Prior, Run, design, predict_pooled

RAMP = {"ramp": (0.3, 0.3)}
PRIORS = {
    "matmul": Prior(
        (0.07, 0.07),
        {
            "issue_bound": (0.19, 0.07),
            "power_bound": (-1.0, 0.25),
            "batched": (0.1, 0.2),
            "idle_units": (0.4, 0.3),
            "short_depth": (0.5, 0.5),
            "narrow": (0.5, 0.5),
            "balance": (0.5, 0.5),
        },
    ),
    "elementwise": Prior((0.2, 0.2), RAMP | {"broadcast": (0.3, 0.2)}),
    "softmax": Prior((0.2, 0.2), RAMP | {"long_rows": (0.2, 0.2)}),
    "norm": Prior((0.2, 0.2), RAMP),
    "copy": Prior((0.2, 0.2), RAMP),
    "embedding": Prior((0.2, 0.2), RAMP),
    "reduce": Prior((0.2, 0.2), RAMP),
}


@dataclass(frozen=True)
class Parts:
    """What the time of a step is made of: operators, and what four GPUs wait for each other."""

    step: Step
    ops: Sequence[Timed]
    behind: Sequence[Timed] = ()

    def seconds(self, profile: DeviceProfile, coefficients: Coefficients | None) -> float:
        """Seconds of the whole step on a device; without coefficients by the plain roofline."""
        total = _sum(self.ops, profile, coefficients)
        if not self.behind:
            return total
        backward_s = _sum(self.behind, profile, coefficients)
        return total + communication_s(self.step, backward_s, peer_link(profile))


def _sum(timed: Sequence[Timed], profile: DeviceProfile, by: Coefficients | None) -> float:
    ops, counts = [t.op for t in timed], np.array([t.count for t in timed])
    if by is None:
        return float(counts @ design(ops, profile, {}).base)
    return float(counts @ predict_pooled(ops, profile, PRIORS, by))


def step_parts(step: Step, others: Sequence[Step]) -> Parts | None:
    """The parts of a step; of one without a trace, by a trace of its model on any device.

    None where there is no such trace.
    """
    if found := re.fullmatch(r"switchxl(\d+)", step.model):
        forward = switch_ops(step.batch, step.sequence, Switch(experts=int(found.group(1))))
        return Parts(step, [*forward, *behind_ops(forward)] if step.training else forward)
    if step.nodes:
        return Parts(step, traced_ops(step))
    batch = step.batch // WAYS if step.option.startswith("dp") else step.batch
    graph = find_graph(others, step, batch)
    if graph is None:
        return None
    if step.option == "fusion":
        return None if step.training else Parts(step, fused_ops(graph))
    if re.fullmatch(r"(dp|tp|pp)4(_1)?", step.option):
        share = tensor_parallel(graph) if step.option.startswith("tp") else graph
        return Parts(share, training_ops(share), backward_ops(share))
    return None if step.option else Parts(step, traced_ops(graph))


def traced_ops(step: Step) -> list[Timed]:
    """The operators of a traced step: forward, and in training what is behind it."""
    behind = [*loss_ops(step, False), *backward_ops(step)] if step.training else []
    return [*forward_ops(step), *behind]


def peer_link(profile: DeviceProfile) -> LinkFigures:
    """The link between devices of a kind, in the first instance of the catalog that joins them.

    Raises:
        ValueError: no instance joins such devices.
    """
    for instance in load_instances().values():
        if instance.accelerator == profile.name and instance.peer_link:
            return find_link(instance.peer_link)
    raise ValueError(f"no instance of the catalog joins devices '{profile.name}' by a peer link")


def runs_of(steps: Sequence[Step], profiles: dict[str, DeviceProfile]) -> list[Run]:
    """What to learn from: the traced steps on one GPU, not compiled."""
    runs = []
    for step in steps:
        if step.nodes and not step.option:
            timed = traced_ops(step)
            counts = np.array([t.count for t in timed], float)
            alone = np.array([t.seconds for t in timed])
            ops = tuple(t.op for t in timed)
            runs.append(Run(profiles[step.device], ops, counts, alone, step.seconds))
    return runs


def kind_of(step: str) -> str:
    """Which kind of step a name tells of."""
    model, mode, *_ = step.split("-")
    option = step.split("-")[4:]
    if option:
        return "compiled" if option == ["fusion"] else "four GPUs"
    if model.startswith("switch"):
        return "mixture of experts"
    return "training" if mode == "train" else "inference"
