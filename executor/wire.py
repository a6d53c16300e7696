"""Carrying tensors between workers.

Between processes of one machine gloo copies a tensor through a socket (23 ms for 64 MB), and its
I/O threads take their time from busy compute cores: the word that a tensor is ready took 0.4 ms
on average where all cores compute. So a tensor is written into memory that both workers map, and
the words 'it is there' and 'it was read' go through a pipe of the operating system. Between two
CUDA devices nccl carries the tensor itself.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from executor.words import Words
from executor.worker import Context
from scheduler.plan import Transfer

Shape = tuple[torch.Size, torch.dtype]


class Channel(Protocol):
    """One transfer of a plan, seen from one of its ends; k numbers the micro-batch."""

    def send(self, k: int, tensor: Tensor) -> None:
        """Hand over the tensor of micro-batch k; waits only while all slots are unread."""

    def receive(self, k: int) -> Tensor:
        """Wait for the tensor of micro-batch k."""

    def release(self, k: int) -> None:
        """Say that the tensor of micro-batch k is read no more."""

    def drain(self) -> None:
        """Wait until all that was sent has been read."""


class SharedChannel:
    """A ring of slots in shared memory.

    `slots` at least the micro-batches in flight cannot deadlock: when micro-batch k is sent,
    k - slots has left the pipeline in the schedule that all workers follow.
    """

    def __init__(
        self,
        context: Context,
        transfer: Transfer,
        number: int,
        shape: Shape,
        slots: int,
        folder: Path,
    ) -> None:
        self.context, self.slots = context, slots
        is_source = context.device.name == transfer.src
        self.words: Words = context.words[transfer.dst if is_source else transfer.src]
        self.there, self.read = 2 * number, 2 * number + 1
        self.unread = 0
        size, dtype = shape
        self.buffers = [
            torch.from_file(
                str(folder / f"transfer{number}-{slot}"),
                shared=True,
                size=size.numel(),
                dtype=dtype,
            ).view(size)
            for slot in range(slots)
        ]

    def send(self, k: int, tensor: Tensor) -> None:
        """Write the tensor into its slot and tell the receiver."""
        if self.unread == self.slots:
            self.words.wait(self.read)
            self.unread -= 1
        self.buffers[k % self.slots].copy_(tensor)
        self.words.tell(self.there)
        self.unread += 1

    def receive(self, k: int) -> Tensor:
        """Wait for the word; the slot itself is the tensor where the device is the CPU."""
        self.words.wait(self.there)
        return self.buffers[k % self.slots].to(self.context.device.torch_device)

    def release(self, k: int) -> None:
        """Tell the sender that the slot may be written again."""
        self.words.tell(self.read)

    def drain(self) -> None:
        """Wait until all that was sent has been read."""
        while self.unread:
            self.words.wait(self.read)
            self.unread -= 1


class DirectChannel:
    """nccl between two CUDA devices; the tensor stays on the GPU."""

    def __init__(self, context: Context, transfer: Transfer, shape: Shape) -> None:
        self.context, self.shape = context, shape
        self.peer = context.ranks[
            transfer.dst if context.device.name == transfer.src else transfer.src
        ]
        self.sent: list[tuple[Any, Tensor]] = []

    def send(self, k: int, tensor: Tensor) -> None:
        """Enqueue the send behind the kernels that make the tensor."""
        kept = tensor.contiguous()
        self.sent.append((dist.isend(kept, self.peer), kept))

    def receive(self, k: int) -> Tensor:
        """Receive into fresh GPU memory."""
        size, dtype = self.shape
        tensor = torch.empty(size, dtype=dtype, device=self.context.device.torch_device)
        dist.recv(tensor, self.peer)
        return tensor

    def release(self, k: int) -> None:
        """Nothing to say: the receiver owns its memory."""

    def drain(self) -> None:
        """Wait until everything sent has left."""
        for handle, _ in self.sent:
            handle.wait()
        self.sent.clear()


def open_channel(
    context: Context, transfer: Transfer, number: int, shape: Shape, slots: int, folder: Path
) -> Channel:
    """The channel of a transfer: nccl between CUDA devices, shared memory otherwise."""
    ends = (context.torch_devices[transfer.src], context.torch_devices[transfer.dst])
    if all(end.startswith("cuda") for end in ends):
        return DirectChannel(context, transfer, shape)
    return SharedChannel(context, transfer, number, shape, slots, folder)
