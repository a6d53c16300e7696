"""Stages on several devices, which take micro-batches in turn: k goes to devices[k mod n].

    a: 0 2 4     the stage of a and b takes twice as long as that of c, and keeps up with it
    b:  1 3 5
    c:   012345

A faster replica is named more than once, and has so many turns. After `cycle` micro-batches
everything is as it was.

Source: Narayanan et al., "PipeDream: generalized pipeline parallelism for DNN training", SOSP
2019, section 3.1 (1F1B-RR), doi:10.1145/3341301.3359646.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm

from scheduler.plan import Stage


def cycle(stages: Sequence[Stage]) -> int:
    """Micro-batches after which each stage is at its first turn again."""
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


def with_replicas(
    stages: tuple[Stage, ...], replicas: Mapping[str, tuple[str, ...]]
) -> tuple[Stage, ...]:
    """The stages with the further turns of their devices, by first device."""
    return tuple(replace(stage, replicas=replicas.get(stage.device, ())) for stage in stages)


def turns(stage: Stage) -> dict[str, int]:
    """Micro-batches of every `len(stage.devices)` that each of its devices runs."""
    return dict(Counter(stage.devices))


def teams(stages: Sequence[Stage]) -> dict[str, dict[str, int]]:
    """`turns` by first device, of the stages that have replicas."""
    return {stage.device: turns(stage) for stage in stages if stage.replicas}
