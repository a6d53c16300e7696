"""A medium whose bandwidth its links share fairly, in SimPy."""

import simpy


class FairMedium:
    """n tensors at once move at 1/n of their own links' bandwidth each (processor sharing).

    The virtual time is the work, in seconds at full bandwidth, that a tensor on its way since time
    zero would have done; a tensor has arrived when it reaches the value of its entry plus the
    tensor's work. As long as nothing has been shared virtual time is time, so that a tensor alone
    arrives exactly when its own link says. Source: Demers, Keshav, Shenker, "Analysis and
    simulation of a fair queueing algorithm", SIGCOMM 1989, doi:10.1145/75246.75248.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.virtual_s = self.at_s = 0.0
        self.next_s = float("inf")
        self.version = 0
        self.flows: list[tuple[float, simpy.Event, simpy.Event | None]] = []

    def carry(self, whole: simpy.Event, end_s: float, work_s: float) -> simpy.Event:
        """The event of a tensor's arrival.

        `whole` fires at `end_s`, when it arrives if it has the medium to itself; `work_s` are its
        seconds at full bandwidth.
        """
        arrival = self.env.event()
        self._settle()
        if not self.flows:
            self.virtual_s = self.env.now
        if end_s <= self.env.now:
            arrival.succeed()
        elif self.virtual_s == self.env.now:
            self.flows.append((end_s, arrival, whole))
        else:
            self.flows.append((self.virtual_s + work_s, arrival, None))
        self._look_ahead()
        return arrival

    def _settle(self) -> None:
        """Do the work until now, and let those arrive that are done."""
        now_s = self.env.now
        if self.flows and self.next_s <= now_s:
            self.virtual_s = min(flow[0] for flow in self.flows)
            for _, arrival, _ in (f for f in self.flows if f[0] <= self.virtual_s):
                arrival.succeed()
            self.flows = [flow for flow in self.flows if flow[0] > self.virtual_s]
        elif self.flows:
            self.virtual_s += (now_s - self.at_s) / len(self.flows)
        self.at_s = now_s

    def _look_ahead(self) -> None:
        """Wake up at the next arrival."""
        self.version += 1
        self.next_s = float("inf")
        if not self.flows:
            return
        end_s, _, whole = min(self.flows, key=lambda flow: flow[0])
        wake = whole
        if wake is None or len(self.flows) > 1 or self.virtual_s != self.at_s:
            delay_s = max(0.0, (end_s - self.virtual_s) * len(self.flows))
            wake, end_s = self.env.timeout(delay_s), self.env.now + delay_s
        self.next_s = end_s
        assert wake.callbacks is not None
        wake.callbacks.append(self._due(self.version))

    def _due(self, version: int):  # type: ignore[no-untyped-def]
        def wake(_: simpy.Event) -> None:
            if version == self.version:
                self._settle()
                self._look_ahead()

        return wake
