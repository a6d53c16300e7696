"""The torch devices of this machine: CUDA GPUs, XLA devices, and disjoint slices of the CPU."""

import hashlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from hardware.profile import DeviceKind


@dataclass(frozen=True)
class LocalDevice:
    """A device that a worker process drives: its torch name and the cores that are its own."""

    name: str
    kind: DeviceKind
    torch_device: str
    cores: tuple[int, ...]
    memory_bytes: int


def local_devices() -> tuple[LocalDevice, ...]:
    """Accelerators first, then the CPU slices: about a quarter of the cores, and the rest.

    The memory of a slice is its cores' share of the machine's.
    """
    cores = _cores_by_sibling()
    cut = max(1, len(cores) // 4)
    slices = [cores[:cut], cores[cut:]] if len(cores) > 1 else [cores]
    total_bytes = psutil.virtual_memory().total
    cpus = [
        LocalDevice(f"cpu{i}", "cpu", "cpu", part, total_bytes * len(part) // len(cores))
        for i, part in enumerate(slices)
    ]
    return (*_cuda_devices(slices[0]), *_xla_devices(slices[0]), *cpus)


def all_cores() -> LocalDevice:
    """The whole CPU as one device: the unsplit baseline."""
    return LocalDevice("all", "cpu", "cpu", _cores_by_sibling(), psutil.virtual_memory().total)


def _cuda_devices(cores: tuple[int, ...]) -> list[LocalDevice]:
    if not torch.cuda.is_available():
        return []
    sizes = [
        torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())
    ]
    return [LocalDevice(f"gpu{i}", "gpu", f"cuda:{i}", cores, size) for i, size in enumerate(sizes)]


def _xla_devices(cores: tuple[int, ...]) -> list[LocalDevice]:
    """XLA devices, where torch_xla is installed and finds any."""
    if importlib.util.find_spec("torch_xla") is None:
        return []
    import torch_xla.core.xla_model as xm

    devices = xm.get_xla_supported_devices() or []
    memory = [int(xm.get_memory_info(device)["bytes_limit"]) for device in devices]
    return [
        LocalDevice(f"tpu{i}", "tpu", str(device), cores, size)
        for i, (device, size) in enumerate(zip(devices, memory, strict=True))
    ]


def _cores_by_sibling() -> tuple[int, ...]:
    """The cores that this process may use, hyper-threads of one core side by side."""

    def siblings(core: int) -> str:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        return path.read_text().strip() if path.exists() else str(core)

    cores = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    first = {core: int(siblings(core).replace("-", ",").split(",")[0]) for core in cores}
    return tuple(sorted(first, key=lambda core: (first[core], core)))


def machine_name() -> str:
    """The processor and accelerators of this machine, for a person."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return " + ".join([_cpu_name(), *gpus])


def machine_key() -> str:
    """A digest of what a measured profile depends on: hardware, slices and the torch version."""
    devices = [
        (d.name, d.torch_device, len(d.cores), d.memory_bytes >> 28) for d in local_devices()
    ]
    facts = f"{machine_name()} {devices} torch {torch.__version__} python {platform.machine()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""
    )
    return f"{model or platform.processor() or platform.machine()} x {len(_cores_by_sibling())}"
