"""From measurements of this machine to calibrated device profiles, and a cluster of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from executor import cache
from executor.devices import LocalDevice, local_devices, machine_name
from executor.measure import LINK_SIZES_BYTES, DeviceFigures, measure_device, measure_link
from executor.op_models import OpModels, measure_op_models
from executor.timing import BUSY_SHARE, calmly
from executor.workers import Tell, Workers
from hardware.cluster import Cluster, Link
from hardware.profile import DeviceProfile, Provenance

T = TypeVar("T")

CACHE_NAME = "profile"
LAST_LEVEL_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def cached_cluster() -> Cluster | None:
    """The cluster measured earlier on this machine with this torch version, if any."""
    return cache.load(CACHE_NAME, Cluster)


def origin() -> str:
    """What a profile measured here and now holds for: the machine and the version of torch."""
    return f"{machine_name()}, torch {torch.__version__}"


def calibrate(workers: Workers, tell: Tell, fresh: bool = False) -> Cluster:
    """Measure every device and every pair of devices, and keep the result in the cache.

    A device whose operator classes were calibrated before keeps that profile unless `fresh`; of
    others only peaks, bandwidth and overhead are measured. One at a time, and again where others
    keep the machine busy; what could not be measured calmly says so, and has a wider interval.
    """
    devices = local_devices()
    pairs = list(permutations([device.name for device in devices], 2))
    steps = len(devices) + len(pairs)
    provenance = Provenance("calibrated", origin(), cache.now())
    profiles: dict[str, DeviceProfile] = {}

    def calm(measure: Callable[[], T]) -> tuple[T, Provenance]:
        found, busy_share = calmly(measure)
        return found, replace(provenance, busy_share=busy_share)

    for step, device in enumerate(devices):
        known = None if fresh else known_profile(device)
        if known is None:
            figures, source = calm(partial(workers.call, device.name, measure_device))
            known = to_profile(device, figures, source)
        tell((step + 1) / steps)
        profiles[device.name] = replace(known, memory_bytes=device.memory_bytes)
    links = []
    for step, (src, dst) in enumerate(pairs):
        args = dict.fromkeys((src, dst), (src, dst, workers.folder))
        both, source = calm(partial(workers.call_all, measure_link, args))
        links.append(to_link(src, dst, both[src], source))
        tell((len(devices) + step + 1) / steps)
    cluster = Cluster("local", profiles, tuple(links))
    cache.store(CACHE_NAME, cluster)
    return cluster


def calibrate_classes(device: LocalDevice, tell: Tell) -> tuple[DeviceProfile, OpModels]:
    """Measure a device with every operator class, in a worker of its own; under three minutes."""
    with Workers((device,)) as workers:
        figures = workers.call(device.name, measure_device)
        provenance = Provenance("calibrated", origin(), cache.now())
        profile = to_profile(device, figures, provenance)
        found: OpModels = workers.call(device.name, measure_op_models, profile, 0, tell=tell)
    share = found.others_cores / (psutil.cpu_count() or 1)
    if share > BUSY_SHARE:
        profile = replace(profile, provenance=replace(provenance, busy_share=min(share, 0.99)))
    return replace(profile, op_times=dict(found.models)), found


def known_profile(device: LocalDevice) -> DeviceProfile | None:
    """The profile with operator classes that is kept for devices of this kind and cores."""
    return cache.load(_name(device), DeviceProfile)


def keep(device: LocalDevice, profile: DeviceProfile) -> None:
    """Let runs on this machine use a profile for every device of the same kind and cores."""
    cache.store(_name(device), profile)
    cluster = cached_cluster()
    if cluster is None:
        return
    devices = dict(cluster.devices)
    for local in local_devices():
        if _name(local) == _name(device) and local.name in devices:
            devices[local.name] = replace(profile, memory_bytes=local.memory_bytes)
    cache.store(CACHE_NAME, replace(cluster, devices=devices))


def _name(device: LocalDevice) -> str:
    return f"classes-{device.torch_device.replace(':', '')}-{len(device.cores)}"


def to_profile(
    device: LocalDevice, figures: DeviceFigures, provenance: Provenance
) -> DeviceProfile:
    """Word measured rates as peaks (the best of each dtype) and efficiencies (shares of them)."""
    peaks: dict[str, float] = {}
    for (_, dtype), rate in figures.flops_per_s.items():
        peaks[dtype] = max(peaks.get(dtype, 0.0), rate)
    bandwidth = max(figures.bytes_per_s.values())
    efficiency = {
        kind: rate / peaks["float32"]
        for (kind, dtype), rate in figures.flops_per_s.items()
        if dtype == "float32"
    }
    efficiency |= {kind: rate / bandwidth for kind, rate in figures.bytes_per_s.items()}
    efficiency["default"] = efficiency["copy"]
    is_cpu = device.kind == "cpu"
    return DeviceProfile(
        name=f"{device.kind} with {len(device.cores)} cores" if is_cpu else device.name,
        kind=device.kind,
        peak_flops_per_s=peaks,
        memory_bytes=device.memory_bytes,
        memory_bytes_per_s=bandwidth,
        launch_overhead_s=figures.launch_overhead_s,
        efficiency=efficiency,
        provenance=provenance,
        num_compute_units=len(device.cores) if is_cpu else None,
        cache_bytes=_last_level_cache_bytes() if is_cpu else None,
    )


def _last_level_cache_bytes() -> int | None:
    """Bytes of the last-level cache, where Linux tells them."""
    if not LAST_LEVEL_CACHE.exists():
        return None
    text = LAST_LEVEL_CACHE.read_text().strip()
    return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1)


def to_link(src: str, dst: str, one_way_s: list[float], provenance: Provenance) -> Link:
    """Latency from the smallest message, bandwidth from the growth up to the largest."""
    latency_s, largest_s = one_way_s[0], one_way_s[-1]
    grown_s = max(largest_s - latency_s, 1e-9)
    return Link(
        src, dst, (LINK_SIZES_BYTES[-1] - LINK_SIZES_BYTES[0]) / grown_s, latency_s, provenance
    )
