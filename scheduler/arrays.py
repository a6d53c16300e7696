"""The placement problem as arrays: what the algorithms compute on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Arrays:
    """n operators in topological order, d devices, t tensors that some operator reads.

    Resources are what work occupies: the devices, then the media that links share.

    Attributes:
        seconds: (n, d), infinite where the device or a pin forbids the operator.
        producer: (t,) operator that makes the tensor.
        start, reader: operators reader[start[t]:start[t + 1]] read tensor t, each once, rising.
        num_bytes: (t,).
        latency_s, s_per_byte: (d, d) of the links; infinite where none joins two devices.
        table_s: (t, d, d) literal transfer times in place of links; (0, d, d) where links hold.
        ends_s: (t, d) seconds that a device spends when it sends the tensor, once however many
            receive it, and when it receives it. Serialised communication; (0, d) if overlapped.
        medium: (d, d) resource that a transfer occupies, -1 where no link joins two devices.
        unit: (n,) colocation class of each operator, 0 to num_units - 1.
        op_bytes: (n,) memory that stays with an operator: parameters (once in a colocation class),
            states and gradients.
        least_bytes: (n,) of it, with what several classes use shared out among them: no set of
            operators needs less.
        limit_bytes: (d,) memory that a plan may use.
    """

    seconds: Floats
    producer: Ints
    start: Ints
    reader: Ints
    num_bytes: Floats
    latency_s: Floats
    s_per_byte: Floats
    table_s: Floats
    ends_s: Floats
    medium: Ints
    unit: Ints
    op_bytes: Floats
    least_bytes: Floats
    limit_bytes: Floats

    @property
    def num_ops(self) -> int:
        """Operators."""
        return len(self.seconds)

    @property
    def num_devices(self) -> int:
        """Devices."""
        return len(self.limit_bytes)

    @property
    def num_tensors(self) -> int:
        """Tensors that some operator reads."""
        return len(self.producer)

    @cached_property
    def num_units(self) -> int:
        """Colocation classes."""
        return int(self.unit.max(initial=-1)) + 1

    @cached_property
    def num_resources(self) -> int:
        """Devices and media."""
        return max(self.num_devices, int(self.medium.max(initial=-1)) + 1)

    @property
    def serialised(self) -> bool:
        """Whether transfers occupy the devices at their ends in place of media."""
        return len(self.ends_s) > 0

    @cached_property
    def edge_tensor(self) -> Ints:
        """(e,) tensor of each entry of `reader`."""
        return np.repeat(np.arange(self.num_tensors), np.diff(self.start))

    @cached_property
    def edges(self) -> tuple[Ints, Ints]:
        """Operators (src, dst) of each entry of `reader`."""
        return self.producer[self.edge_tensor], self.reader

    def transfer_s(self, tensor: int | Ints, src: int | Ints, dst: int | Ints) -> Floats:
        """Seconds that tensors take between devices; 0 on one device, infinite without a link."""
        if len(self.table_s):
            return np.asarray(self.table_s[tensor, src, dst])
        s_per_byte = np.where(self.medium[src, dst] < 0, 0.0, self.s_per_byte[src, dst])
        moved = self.latency_s[src, dst] + self.num_bytes[tensor] * s_per_byte
        return np.where(np.equal(src, dst), 0.0, moved)

    def crossings(self, device: Ints) -> tuple[Ints, Ints, Ints]:
        """(tensor, src, dst) of every transfer of a placement: once per tensor and device."""
        dst = device[self.reader]
        away = dst != device[self.edges[0]]
        key = np.unique(self.edge_tensor[away] * self.num_devices + dst[away])
        tensor, dst = np.divmod(key, self.num_devices)
        return tensor, device[self.producer[tensor]], dst

    def loads(self, device: Ints) -> Floats:
        """(num_resources,) seconds of work of every device and medium under a placement.

        `device` (n,): of each operator. Infinite where an operator or a transfer is impossible.
        """
        load = self._sums(device, self.seconds[np.arange(self.num_ops), device])
        tensor, src, dst = self.crossings(device)
        joined = self.medium[src, dst] >= 0
        load[dst[~joined]] = np.inf
        if not self.serialised:
            media = self.medium[src, dst][joined]
            seconds = self.transfer_s(tensor, src, dst)[joined]
            return load + self._sums(media, seconds)
        sent, first = np.unique(tensor, return_index=True)
        load += self._sums(src[first], self.ends_s[sent, src[first]])
        return load + self._sums(dst, self.ends_s[tensor, dst])

    def _sums(self, resource: Ints, seconds: Floats) -> Floats:
        return np.bincount(resource, seconds, self.num_resources).astype(np.float64)

    def held_bytes(self, device: Ints) -> Floats:
        """(d,) bytes of the operators placed on each device; shared weights count at each user."""
        return np.bincount(device, self.op_bytes, self.num_devices).astype(np.float64)


def csr(readers: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Lists of operators as (start, reader)."""
    start = np.concatenate([[0], np.cumsum([len(r) for r in readers])]).astype(np.int64)
    return start, np.array([i for r in readers for i in r], dtype=np.int64)


def kinds(arrays: Arrays) -> list[list[int]]:
    """Devices in groups that are interchangeable: same times, memory and transfer costs."""
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for j in range(arrays.num_devices):
        key = (arrays.seconds[:, j], arrays.ends_s[:, j], arrays.limit_bytes[[j]])
        groups.setdefault(tuple(column.tobytes() for column in key), []).append(j)
    return list(groups.values())
