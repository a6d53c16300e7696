"""Machines that a fleet rents: they boot, serve, break, are taken back, and are given back.

machine | rented, boots, loads | serves                    | drains |
        booked_s               up_s                   notice        end_s: taken back
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import simpy

from simulator.autoscaling import Autoscaling, Look, wanted
from simulator.availability import Failures, Outage, Outages, merge
from simulator.boot import AT_ONCE, StartUp
from simulator.fleet import Process
from simulator.served import Machine
from simulator.spot import Recorded, Renewal


@dataclass(frozen=True)
class Conditions:
    """Under what machines of one kind are rented.

    Attributes:
        failures, spot: when their hardware is not there; None: it always is.
        notice_s: warning before a spot machine is taken back.
        on_demand: machines, the first, that are not spot.
        notes: where the figures come from.
    """

    start_up: StartUp = AT_ONCE
    failures: Failures | None = None
    spot: Renewal | Recorded | None = None
    notice_s: float = 0.0
    on_demand: int = 0
    notes: tuple[str, ...] = field(default=())

    def outages(self, num_slots: int, until_s: float, rng: np.random.Generator) -> Outages:
        """When the hardware behind each slot is not there."""
        found: Outages = ((),) * num_slots
        if self.failures is not None:
            found = self.failures.outages(num_slots, until_s, rng)
        if self.spot is not None:
            num_spot = max(0, num_slots - self.on_demand)
            taken = self.spot.outages(num_spot, until_s, rng)
            found = merge(found, ((),) * (num_slots - num_spot) + taken)
        return found


class Door(Protocol):
    """A fleet of servers, as those see it who rent its machines."""

    env: simpy.Environment
    rng: np.random.Generator
    duration_s: float
    machines: list[Machine]

    @property
    def servers(self) -> Sequence[Any]:
        """All that ever were."""

    def after(self, delay_s: float, call: Callable[[simpy.Event], None]) -> None:
        """Call back after a delay."""

    def add(self, replica: Any) -> Any:
        """A server that takes requests from now on."""

    def drain(self, server: Any) -> None:
        """Send a server no more requests."""

    def lose(self, server: Any) -> None:
        """A server is gone at once."""

    def busy_s(self) -> float:
        """Seconds that all servers together have computed until now."""

    def present(self) -> int:
        """Requests that wait or run now."""


def operate(
    conditions: Mapping[str, Conditions], autoscaling: Autoscaling | None = None
) -> Callable[[Door], Process]:
    """What happens to a fleet while it serves; `conditions` by the name of its replicas."""

    def actor(fleet: Door) -> Process:
        renting = Renting(fleet, conditions, autoscaling.max if autoscaling else 0)
        for slot, outages in renting.outages.items():
            fleet.env.process(renting.weather(slot, outages))
        if autoscaling is not None:
            yield from renting.control(autoscaling)
        yield fleet.env.timeout(0)

    return actor


class Renting:
    """A fleet's machines, each in a slot: a place in a market, which one machine fills at a time.

    Attributes:
        kinds: replica of each slot; slots beyond the fleet of the start take its kinds in turn.
        held: the machine of each slot that has one.
        out: slots where no machine is to be had.
        wanted: machines that should serve.
    """

    def __init__(
        self, fleet: Door, conditions: Mapping[str, Conditions], num_slots: int = 0
    ) -> None:
        self.fleet = fleet
        self.wanted = len(fleet.servers)
        start = [server.replica for server in fleet.servers]
        num_slots = max(self.wanted, num_slots)
        self.kinds = [start[slot % len(start)] for slot in range(num_slots)]
        self.conditions = [conditions[kind.name] for kind in self.kinds]
        self.spot_slots: set[int] = set()
        self.outages = dict(self._outages(conditions))
        self.held: dict[int, Machine] = {}
        self.out: set[int] = set()
        self.changed_s = -math.inf
        self.looked_s = self.busy_s = 0.0
        for slot, server in enumerate(fleet.servers):
            self._book(slot).server = server

    def _outages(
        self, conditions: Mapping[str, Conditions]
    ) -> Iterator[tuple[int, tuple[Outage, ...]]]:
        """Outages of every slot, kind by kind."""
        for name, own in conditions.items():
            slots = [slot for slot, kind in enumerate(self.kinds) if kind.name == name]
            found = own.outages(len(slots), self.fleet.duration_s, self.fleet.rng)
            yield from zip(slots, found, strict=True)
            if own.spot is not None:
                self.spot_slots.update(slots[own.on_demand :])

    def _book(self, slot: int) -> Machine:
        market = "" if self.conditions[slot].spot is None else "on_demand"
        market = "spot" if slot in self.spot_slots else market
        machine = Machine(self.kinds[slot], market, self.fleet.env.now)
        self.held[slot] = machine
        self.fleet.machines.append(machine)
        return machine

    def fill(self) -> None:
        """Rent, or give back, until as many machines as wanted serve or will."""
        for slot in [s for s, machine in self.held.items() if machine.is_over]:
            del self.held[slot]
        staying = {slot: machine for slot, machine in self.held.items() if not machine.leaving}
        for slot in self._free():
            if len(staying) >= self.wanted:
                break
            staying[slot] = self._book(slot)
            self._boot(slot, staying[slot])
        while len(staying) > self.wanted:
            slot = max(staying, key=lambda s: (staying[s].server is None, s))
            self._give_back(staying.pop(slot))

    def _free(self) -> Iterator[int]:
        return (s for s in range(len(self.kinds)) if s not in self.held and s not in self.out)

    def _boot(self, slot: int, machine: Machine) -> None:
        seconds = self.conditions[slot].start_up.draw(self.fleet.rng)

        def ready(event: object) -> None:
            if not machine.leaving and machine.end_s == math.inf:
                machine.server = self.fleet.add(machine.replica)

        self.fleet.after(seconds, ready)

    def _give_back(self, machine: Machine) -> None:
        machine.leaving, machine.ended_by = True, "given_back"
        if machine.server is None:
            machine.end_s = self.fleet.env.now
        else:
            self.fleet.drain(machine.server)

    def weather(self, slot: int, outages: tuple[Outage, ...]) -> Process:
        """Let the outages of one slot come and go."""
        env, notice_s = self.fleet.env, self.conditions[slot].notice_s
        for outage in outages:
            if outage.cause == "preempted":
                yield env.timeout(max(0.0, outage.down_s - notice_s - env.now))
                self._warn(slot)
            yield env.timeout(max(0.0, outage.down_s - env.now))
            self._strike(slot, outage.cause)
            if outage.up_s == math.inf:
                return
            yield env.timeout(max(0.0, outage.up_s - env.now))
            self.out.discard(slot)
            self.fill()

    def _warn(self, slot: int) -> None:
        """A machine will be taken back: it takes no more requests, and another is rented."""
        self.out.add(slot)
        machine = self.held.get(slot)
        if machine and not machine.leaving:
            machine.leaving = True
            if machine.server:
                self.fleet.drain(machine.server)
        self.fill()

    def _strike(self, slot: int, cause: Literal["failed", "preempted"]) -> None:
        """A slot's hardware is gone, and with it what its machine had not answered."""
        self.out.add(slot)
        machine = self.held.pop(slot, None)
        if machine and not machine.is_over:
            machine.end_s, machine.ended_by, machine.leaving = self.fleet.env.now, cause, True
            if machine.server:
                self.fleet.lose(machine.server)
        self.fill()

    def control(self, autoscaling: Autoscaling) -> Process:
        """Look at the fleet at intervals, and follow the policy."""
        while True:
            yield self.fleet.env.timeout(autoscaling.interval_s)
            self._follow(wanted(autoscaling, self._look()), autoscaling)

    def _follow(self, asked: int, autoscaling: Autoscaling) -> None:
        if not autoscaling.delay_s:
            self._want(asked, autoscaling)
            return
        self.fleet.after(autoscaling.delay_s, lambda event: self._want(asked, autoscaling))

    def _want(self, asked: int, autoscaling: Autoscaling) -> None:
        now = self.fleet.env.now
        cools = now - self.changed_s < autoscaling.cooldown_s
        if asked != self.wanted and not (cools and asked < self.wanted):
            self.wanted, self.changed_s = asked, now
        self.fill()

    def _look(self) -> Look:
        """The mean number of computing servers since the last look, and who is there."""
        now, busy_s = self.fleet.env.now, self.fleet.busy_s()
        busy = (busy_s - self.busy_s) / (now - self.looked_s)
        self.looked_s, self.busy_s = now, busy_s
        return Look(now, busy, self.fleet.present())
