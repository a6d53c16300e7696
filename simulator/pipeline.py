"""Replay of stages and transfers in SimPy: the reference engine.

A device is a process that runs its stages, operator by operator; a carrier is a process that moves
tensors. Everything else is waiting for each other's events.
"""

from collections.abc import Callable, Iterator

import numpy as np
import simpy

from scheduler.arrays import Floats
from scheduler.dispatch import Times, no_times
from scheduler.stage_work import StageWork
from simulator.agenda import Agenda
from simulator.fair_medium import FairMedium

Process = simpy.events.ProcessGenerator


def run_simpy(work: StageWork, agenda: Agenda, num_micro_batches: int) -> Times:
    """Times (s) of stages and transfers."""
    return run_operators(work, agenda, num_micro_batches)[0]


def run_operators(work: StageWork, agenda: Agenda, num_micro_batches: int) -> tuple[Times, Floats]:
    """Times of stages and transfers, and the end (m, n) of every operator, all in seconds."""
    env = simpy.Environment()
    m, s, num_transfers = num_micro_batches, len(work.seconds), len(work.link)
    times = no_times(m, work)
    op_end_s = np.full((m, len(work.op)), np.nan)
    asked = [env.event() for _ in range(m * num_transfers)]
    arrived = [env.event() for _ in range(m * num_transfers)]
    gate = _Gate(env, np.bincount(agenda.stage // s, minlength=m).tolist(), agenda.in_flight)
    receives = _receives(work, m)

    def device(tasks: list[int]) -> Process:
        for k, i in (divmod(task, s) for task in tasks):
            yield gate.entered[k]
            for transfer in receives(k, i):
                yield arrived[transfer]
            times.start_s[k, i] = env.now
            done = env.timeout(work.seconds[i])
            mine = range(work.op_start[i], work.op_start[i + 1])
            for o, ended in [(o, env.timeout(work.end_s[o])) for o in mine]:
                yield ended
                op_end_s[k, o] = env.now
            yield done
            times.end_s[k, i] = env.now
            for t in range(work.send_start[i], work.send_start[i + 1]):
                asked[k * num_transfers + t].succeed()
            gate.finished(k)

    def carrier(transfers: list[int], shared: FairMedium | None) -> Process:
        for transfer in transfers:
            yield asked[transfer]
            k, t = divmod(transfer, num_transfers)
            times.left_s[k, t] = env.now
            whole = env.timeout(work.move_s[t])
            if shared:
                yield env.timeout(work.latency_s[t])
                end_s = times.left_s[k, t] + work.move_s[t]
                yield shared.carry(whole, end_s, work.move_s[t] - work.latency_s[t])
            else:
                yield whole
            times.arrived_s[k, t] = env.now
            arrived[transfer].succeed()

    for a, b in zip(agenda.stage_start[:-1], agenda.stage_start[1:], strict=True):
        env.process(device(agenda.stage[a:b].tolist()))
    media = {int(medium): FairMedium(env) for medium in agenda.medium if medium >= 0}
    for c, medium in enumerate(agenda.medium):
        mine = slice(agenda.transfer_start[c], agenda.transfer_start[c + 1])
        env.process(carrier(agenda.transfer[mine].tolist(), media.get(int(medium))))
    env.run()
    return times, op_end_s


def _receives(work: StageWork, m: int) -> Callable[[int, int], Iterator[int]]:
    """The transfers (k * t + j) that stage i of micro-batch k waits for."""
    readers: list[list[int]] = [[] for _ in work.seconds]
    for t, i in enumerate(work.reader.tolist()):
        readers[i].append(t)
    sender = np.repeat(np.arange(len(work.seconds)), np.diff(work.send_start))
    late = work.once[sender] if len(sender) else sender

    def of(k: int, i: int) -> Iterator[int]:
        for t in readers[i]:
            for j in range(m) if work.once[i] and not late[t] else (k,):
                yield j * len(work.link) + t

    return of


class _Gate:
    """Lets micro-batch k in when k - in_flight has left; `entered` holds the events."""

    def __init__(self, env: simpy.Environment, num_stages: list[int], in_flight: int) -> None:
        self.left, self.in_flight = num_stages, in_flight
        self.entered = [env.event() for _ in num_stages]
        for event in self.entered[:in_flight]:
            event.succeed()

    def finished(self, k: int) -> None:
        """Count a finished stage of micro-batch k; its last one admits the next in line."""
        self.left[k] -= 1
        if self.left[k] == 0 and k + self.in_flight < len(self.left):
            self.entered[k + self.in_flight].succeed()
