"""The parent's side of the worker processes: start, call, notice deaths, stop."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import combinations
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from executor.devices import LocalDevice
from executor.run_folder import claim_folder, release_folder

Tell = Callable[[float], None]

_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""glibc settings: keep freed activations, or every large tensor costs fresh zeroed pages."""


class WorkerError(RuntimeError):
    """A worker died or its function failed; the message names the device."""


def _quiet(share: float) -> None:
    """Ignore progress."""


class Workers:
    """One process per device, joined in a torch.distributed group; a context manager.

    The processes live in sessions of their own, so that Ctrl-C reaches only the parent, which
    stops them; if the parent is killed they exit by themselves.
    """

    def __init__(self, devices: tuple[LocalDevice, ...]) -> None:
        self.devices = {device.name: device for device in devices}
        self.folder, self._lock = claim_folder()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pipes: dict[str, Connection] = {}
        self._lifelines: list[Connection] = []

    def __enter__(self) -> Self:
        """Start the processes and wait until all have joined the group."""
        try:
            ranks = {name: rank for rank, name in enumerate(self.devices)}
            torch_devices = {name: device.torch_device for name, device in self.devices.items()}
            peers: dict[str, dict[str, Connection]] = {name: {} for name in ranks}
            for one, other in combinations(ranks, 2):
                peers[one][other], peers[other][one] = Pipe()
            for name in ranks:
                self._start(name, [end.fileno() for end in peers[name].values()])
            for name, device in self.devices.items():
                fds = {peer: end.fileno() for peer, end in peers[name].items()}
                setup = (device, ranks[name], ranks, torch_devices, str(self.folder / "store"), fds)
                self._pipes[name].send(setup)
            for end in (end for ends in peers.values() for end in ends.values()):
                end.close()
            self._gather(list(self.devices), _quiet)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the processes."""
        self.stop()

    def _start(self, name: str, peer_fds: list[int]) -> None:
        ours, theirs = Pipe()
        lifeline_end, lifeline = Pipe(duplex=False)
        fds = (theirs.fileno(), lifeline_end.fileno())
        root = str(Path(__file__).parent.parent)
        paths = [root, *(path for path in sys.path if path)]
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", "executor.worker", *map(str, fds)],
            pass_fds=(*fds, *peer_fds),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if sys.stderr else None,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "GLOO_SOCKET_IFNAME": "lo",
                **_ALLOCATOR,
            },
        )
        theirs.close()
        lifeline_end.close()
        self._pipes[name] = ours
        self._lifelines.append(lifeline)

    def call(
        self, device: str, function: Callable[..., Any], *args: Any, tell: Tell = _quiet
    ) -> Any:
        """Run `function(context, *args)` in the worker of a device and return its result.

        Raises:
            WorkerError: the worker died or the function failed.
        """
        return self.call_all(function, {device: args}, tell)[device]

    def call_all(
        self, function: Callable[..., Any], args: Mapping[str, tuple[Any, ...]], tell: Tell = _quiet
    ) -> dict[str, Any]:
        """Run a function in several workers at once; results by device."""
        for device, arguments in args.items():
            try:
                self._pipes[device].send((function, arguments))
            except OSError:
                raise self._death(device) from None
        return self._gather(list(args), tell)

    def _gather(self, devices: list[str], tell: Tell) -> dict[str, Any]:
        names = {self._pipes[device]: device for device in devices}
        results: dict[str, Any] = {}
        progress = dict.fromkeys(devices, 0.0)
        while len(results) < len(devices):
            waiting = [pipe for pipe, device in names.items() if device not in results]
            for pipe in wait(waiting):
                device = names[pipe]  # type: ignore[index]
                try:
                    message = self._pipes[device].recv()
                except (EOFError, OSError):
                    raise self._death(device) from None
                if message[0] == "progress":
                    progress[device] = message[1]
                    tell(sum(progress.values()) / len(devices))
                elif message[0] == "failed":
                    raise self._failure(device, message[1], message[2])
                else:
                    results[device] = message[1]
        return results

    def _failure(self, device: str, reason: str, trace: str) -> WorkerError:
        """A failure here may only echo a death elsewhere: name the dead worker then."""
        for name, process in self._processes.items():
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            return self._death(name)
        error = WorkerError(f"device '{device}': {reason}")
        error.add_note(trace)
        return error

    def _death(self, device: str) -> WorkerError:
        status = self._processes[device].wait(timeout=60)
        ending = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        return WorkerError(
            f"device '{device}': its worker {ending}; the other workers were stopped"
        )

    def stop(self) -> None:
        """Kill every worker, wait for them, and remove their files."""
        for pipe in (*self._pipes.values(), *self._lifelines):
            pipe.close()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        release_folder(self.folder, self._lock)
