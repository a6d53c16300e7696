"""A worker process: drives one device and runs the functions that it is sent.

Started as `python -m executor.worker FD`, where FD is its end of a pipe to the parent.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from executor.devices import LocalDevice
from executor.words import Words


@dataclass(frozen=True)
class Context:
    """What a function that runs in a worker knows: its device, its rank and the ranks of all."""

    device: LocalDevice
    rank: int
    ranks: dict[str, int]
    torch_devices: dict[str, str]
    words: dict[str, Words]
    """The pipe to each other worker."""
    tell: Callable[[float], None]
    """Reports progress to the parent, 0 to 1."""

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.kind == "gpu":
            import torch

            torch.cuda.synchronize(self.device.torch_device)
        elif self.device.kind == "tpu":
            import torch_xla

            torch_xla.sync(wait=True)

    def clock(self) -> float:
        """Seconds on the clock that all processes of the machine share, the device being idle."""
        self.synchronize()
        return time.monotonic()


def main() -> None:
    """Serve the parent until it hangs up."""
    pipe = Connection(int(sys.argv[1]))
    lifeline = Connection(int(sys.argv[2]), writable=False)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    device, rank, ranks, torch_devices, store, peers = pipe.recv()
    words = {name: Words(Connection(fd)) for name, fd in peers.items()}
    context = Context(device, rank, ranks, torch_devices, words, _throttled(pipe))
    _join(context, store)
    pipe.send(("done", os.getpid()))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("done", function(context, *args)))
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))


def _throttled(pipe: Connection) -> Callable[[float], None]:
    """Report progress at most four times a second: the parent's core is somebody's device."""
    last_s = 0.0

    def tell(share: float) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > 0.25:
            last_s = time.monotonic()
            pipe.send(("progress", share))

    return tell


def _die_with_parent(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(1)


def _join(context: Context, store: str) -> None:
    """Join the process group, then pin the compute threads to the device's cores.

    In this order: the group's I/O threads inherit the pins of the thread that makes them, and on
    a busy core a message of 1 KB takes 2 ms in place of 0.06 ms.
    """
    import torch
    import torch.distributed as dist

    if len(context.ranks) > 1:
        is_gpu = [name.startswith("cuda") for name in context.torch_devices.values()]
        backend = "cpu:gloo,cuda:nccl" if sum(is_gpu) > 1 else "gloo"
        dist.init_process_group(
            backend, init_method=f"file://{store}", rank=context.rank, world_size=len(context.ranks)
        )
    if context.device.kind == "gpu":
        torch.cuda.set_device(context.device.torch_device)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, context.device.cores)
    torch.set_num_threads(len(context.device.cores))
    torch.set_grad_enabled(False)


if __name__ == "__main__":
    main()
