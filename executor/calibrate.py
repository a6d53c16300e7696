"""From measurements of this machine to a cluster of calibrated device profiles."""

from itertools import permutations

import torch

from executor import cache
from executor.devices import LocalDevice, local_devices, machine_name
from executor.measure import LINK_SIZES_BYTES, DeviceFigures, measure_device, measure_link
from executor.workers import Tell, Workers
from hardware.cluster import Cluster, Link
from hardware.profile import DeviceProfile, Provenance

CACHE_NAME = "profile"


def cached_cluster() -> Cluster | None:
    """The cluster measured earlier on this machine with this torch version, if any."""
    return cache.load(CACHE_NAME, Cluster)


def calibrate(workers: Workers, tell: Tell) -> Cluster:
    """Measure every device and every pair of devices, and keep the result in the cache.

    CPU slices are measured one at a time; a machine under load gives slower figures.
    """
    devices = local_devices()
    pairs = list(permutations([device.name for device in devices], 2))
    steps = len(devices) + len(pairs)
    provenance = Provenance(
        "calibrated", f"{machine_name()}, torch {torch.__version__}", cache.now()
    )
    profiles: dict[str, DeviceProfile] = {}
    for step, device in enumerate(devices):
        figures = workers.call(device.name, measure_device)
        tell((step + 1) / steps)
        profiles[device.name] = to_profile(device, figures, provenance)
    links = []
    for step, (src, dst) in enumerate(pairs):
        args = dict.fromkeys((src, dst), (src, dst, workers.folder))
        links.append(to_link(src, dst, workers.call_all(measure_link, args)[src], provenance))
        tell((len(devices) + step + 1) / steps)
    cluster = Cluster("local", profiles, tuple(links))
    cache.store(CACHE_NAME, cluster)
    return cluster


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
    return DeviceProfile(
        name=f"{device.kind} with {len(device.cores)} cores"
        if device.kind == "cpu"
        else device.name,
        kind=device.kind,
        peak_flops_per_s=peaks,
        memory_bytes=device.memory_bytes,
        memory_bytes_per_s=bandwidth,
        launch_overhead_s=figures.launch_overhead_s,
        efficiency=efficiency,
        provenance=provenance,
    )


def to_link(src: str, dst: str, one_way_s: list[float], provenance: Provenance) -> Link:
    """Latency from the smallest message, bandwidth from the growth up to the largest."""
    latency_s, largest_s = one_way_s[0], one_way_s[-1]
    grown_s = max(largest_s - latency_s, 1e-9)
    return Link(
        src, dst, (LINK_SIZES_BYTES[-1] - LINK_SIZES_BYTES[0]) / grown_s, latency_s, provenance
    )
