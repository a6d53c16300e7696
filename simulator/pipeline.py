"""Replay of stages and transfers in SimPy: the reference engine.

A device is a process that runs its stages, operator by operator; a carrier is a process that moves
tensors. Everything else is waiting for each other's events.
"""

from collections.abc import Callable, Iterator

import numpy as np
import simpy

from scheduler.arrays import Floats
from scheduler.evaluation.dispatch import Times, awaited, no_times
from scheduler.evaluation.stage_work import StageWork
from simulator.agenda import Agenda
from simulator.fair_medium import FairMedium

Process = simpy.events.ProcessGenerator


def run_simpy(work: StageWork, agenda: Agenda, num_micro_batches: int) -> Times:
    """Times (s) of stages and transfers."""
    return run_operators(work, agenda, num_micro_batches)[0]


def run_operators(work: StageWork, agenda: Agenda, num_micro_batches: int) -> tuple[Times, Floats]:
    """Times of stages and transfers, and the end (m, n) of every operator, all in seconds."""
    env = simpy.Environment()
    m, times = num_micro_batches, no_times(num_micro_batches, work)
    s, num_transfers = times.start_s.shape[1], times.left_s.shape[1]
    num_ops = len(work.op) // work.turns
    op_end_s = np.full((m, num_ops), np.nan)
    asked = [env.event() for _ in range(m * num_transfers)]
    arrived = [env.event() for _ in range(m * num_transfers)]
    gate = _Gate(env, work, m, agenda.in_flight)
    receives = _receives(work, m)
    sums = _Sums(env, work, m)

    def device(tasks: list[int]) -> Process:
        for k, at in (divmod(task, s) for task in tasks):
            i = k % work.turns * s + at
            yield gate.entered[k]
            for transfer in receives(k, i):
                yield arrived[transfer]
            if work.once[i]:
                yield sums.done[work.team[work.device[i]]]
            times.start_s[k, at] = env.now
            done = env.timeout(work.seconds[i])
            mine = range(work.op_start[i], work.op_start[i + 1])
            for o, ended in [(o, env.timeout(work.end_s[o])) for o in mine]:
                yield ended
                op_end_s[k, o % num_ops] = env.now
            yield done
            times.end_s[k, at] = env.now
            for t in range(work.send_start[i], work.send_start[i + 1]):
                asked[k * num_transfers + t % num_transfers].succeed()
            if not work.once[i]:
                sums.less(work.team[work.device[i]])
                gate.finished(k)

    def carrier(transfers: list[int], shared: FairMedium | None) -> Process:
        for transfer in transfers:
            yield asked[transfer]
            k, at = divmod(transfer, num_transfers)
            t = k % work.turns * num_transfers + at
            times.left_s[k, at] = env.now
            whole = env.timeout(work.move_s[t])
            if shared:
                yield env.timeout(work.latency_s[t])
                end_s = times.left_s[k, at] + work.move_s[t]
                yield shared.carry(whole, end_s, work.move_s[t] - work.latency_s[t])
            else:
                yield whole
            times.arrived_s[k, at] = env.now
            arrived[transfer].succeed()
            if work.gathered[t]:
                sums.less(work.team[work.device[work.reader[t]]])

    for a, b in zip(agenda.stage_start[:-1], agenda.stage_start[1:], strict=True):
        env.process(device(agenda.stage[a:b].tolist()))
    media = {int(medium): FairMedium(env) for medium in agenda.medium if medium >= 0}
    for c, medium in enumerate(agenda.medium):
        mine = slice(agenda.transfer_start[c], agenda.transfer_start[c + 1])
        env.process(carrier(agenda.transfer[mine].tolist(), media.get(int(medium))))
    env.run()
    return times, op_end_s


def _receives(work: StageWork, m: int) -> Callable[[int, int], Iterator[int]]:
    """The transfers (k * t + j) that stage i, of all turns', waits for in micro-batch k."""
    num_transfers = len(work.link) // work.turns
    readers: list[list[int]] = [[] for _ in work.seconds]
    for t, i in enumerate(work.reader.tolist()):
        readers[i].append(t)
    sender = np.repeat(np.arange(len(work.seconds)), np.diff(work.send_start))
    late = work.once[sender] if len(sender) else sender

    def of(k: int, i: int) -> Iterator[int]:
        for t in readers[i]:
            turn, at = divmod(t, num_transfers)
            for j in range(turn, m, work.turns) if work.once[i] and not late[t] else (k,):
                yield j * num_transfers + at

    return of


class _Sums:
    """The sums of gradients of each team; `done` holds the events."""

    def __init__(self, env: simpy.Environment, work: StageWork, num_micro_batches: int) -> None:
        self.env, self.sum_s = env, work.sum_s
        self.awaited = awaited(work, num_micro_batches).tolist()
        self.done = [env.event() for _ in self.awaited]
        for event, left in zip(self.done, self.awaited, strict=True):
            if left == 0:
                event.succeed()

    def less(self, team: int) -> None:
        """Count what a team awaits; after the last of it the ring sums."""
        self.awaited[team] -= 1
        if self.awaited[team] == 0:
            self.env.process(self._sum(team))

    def _sum(self, team: int) -> Process:
        yield self.env.timeout(self.sum_s[team])
        self.done[team].succeed()


class _Gate:
    """Lets micro-batch k in when k - in_flight has left; `entered` holds the events."""

    def __init__(self, env: simpy.Environment, work: StageWork, m: int, in_flight: int) -> None:
        each = (~work.once).reshape(work.turns, -1).sum(axis=1).tolist()
        self.left, self.in_flight = [each[k % work.turns] for k in range(m)], in_flight
        self.entered = [env.event() for _ in self.left]
        for event in self.entered[:in_flight]:
            event.succeed()

    def finished(self, k: int) -> None:
        """Count a finished stage, no optimizer; the last of a micro-batch admits the next."""
        self.left[k] -= 1
        if self.left[k] == 0 and k + self.in_flight < len(self.left):
            self.entered[k + self.in_flight].succeed()
