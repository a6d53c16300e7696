"""Stages on several devices: micro-batch k goes to replica k mod n, as in PipeDream.

    a: 0 2 4     the stage of a and b takes twice as long as that of c, and keeps up with it
    b:  1 3 5
    c:   012345

After `cycle` micro-batches everything is as it was, so that a plan is a plan without replicas for
so many micro-batches at once.

Source: Narayanan et al., "PipeDream: generalized pipeline parallelism for DNN training", SOSP
2019, section 3.1, doi:10.1145/3341301.3359646. Gradients of replicas are not summed here: training
steps are planned without replicas.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import lcm

from scheduler.plan import Stage


def cycle(stages: Sequence[Stage]) -> int:
    """Micro-batches after which each stage is at its first replica again."""
    return lcm(*(len(stage.devices) for stage in stages))


def copies(stages: Sequence[Stage]) -> list[tuple[Stage, ...]]:
    """The stages as micro-batches 0, 1, ... of a cycle run them, without replicas."""
    team = {stage.device: stage.devices for stage in stages}

    def copy(stage: Stage, k: int) -> Stage:
        def at(device: str) -> str:
            return team[device][k % len(team[device])]

        receives, sends = (
            tuple(replace(t, src=at(t.src), dst=at(t.dst)) for t in transfers)
            for transfers in (stage.receives, stage.sends)
        )
        return Stage(at(stage.device), stage.ops, receives, sends)

    if cycle(stages) == 1:
        return [tuple(stages)]
    return [tuple(copy(stage, k) for stage in stages) for k in range(cycle(stages))]
