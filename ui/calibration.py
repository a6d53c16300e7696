"""The command `calibrate`: measure a device, say how far its model is off, write the profile."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hardware.catalog import read_profiles
from hardware.documents import nearest, to_plain, write_text
from hardware.profile import DeviceProfile
from ui import terminal
from ui.emit import emit
from ui.exits import DONE

if TYPE_CHECKING:
    from executor.devices import LocalDevice
    from executor.op_models import Judged, OpModels

BUSY_CORES = 0.2
"""Other processes that take more than this make the figures doubtful."""


def calibrate(arguments: argparse.Namespace) -> int:
    """Calibrate one device of this machine, or take a profile that was written before."""
    device = _device(arguments.device, arguments.threads)
    if arguments.load:
        return _load(arguments, device)
    from executor.calibrate import calibrate_classes, keep

    with terminal.steps(f"Calibrating {device.name}: about 80 s") as tell:
        profile, found = calibrate_classes(device, tell)
    keep(device, profile)
    if arguments.output:
        write_text(arguments.output, profile_text(profile))
    document = {
        "schema": "apportion.calibration/1",
        "device": device.name,
        "points": sum(len(m.points) for m in found.models.values()) + len(found.judged),
        "others_cores": found.others_cores,
        "held_out": judgement(found.judged),
        "left_out": left_out(found),
        "profile": to_plain(profile),
    }
    if not emit(arguments, document):
        _show(document)
    if found.others_cores > BUSY_CORES:
        terminal.note(
            f"other processes kept {found.others_cores:.1f} cores busy meanwhile: these figures "
            "may be too slow; calibrate again on a quiet machine"
        )
    return DONE


def _device(name: str | None, threads: int | None) -> "LocalDevice":
    """The device asked for, by default an accelerator or all cores; `threads` takes its first."""
    from executor.devices import all_cores, local_devices

    known = {device.name: device for device in (*local_devices(), all_cores())}
    if name is None:
        accelerators = [n for n, device in known.items() if device.kind != "cpu"]
        name = accelerators[0] if accelerators else "all"
    if name not in known:
        raise ValueError(f"--device: this machine has no '{name}'{nearest(name, list(known))}")
    device = known[name]
    if threads is None:
        return device
    cores = all_cores().cores
    if device.kind != "cpu" or not 1 <= threads <= len(cores):
        raise ValueError(f"--threads: a CPU here takes 1 to {len(cores)}, got {threads}")
    cores = device.cores if len(device.cores) == threads else cores[:threads]
    return replace(device, cores=cores)


def _load(arguments: argparse.Namespace, device: "LocalDevice") -> int:
    from executor.calibrate import keep, origin

    profiles = read_profiles(arguments.load)
    if len(profiles) != 1:
        raise ValueError(f"{arguments.load}: must hold one device, has {len(profiles)}")
    profile = next(iter(profiles.values()))
    check_origin(arguments.load, profile, origin(), arguments.foreign)
    keep(device, profile)
    if not emit(arguments, {"schema": "apportion.calibration/1", "profile": to_plain(profile)}):
        terminal.out.print(f"{device.name} has the profile of {arguments.load} from now on.")
    return DONE


def check_origin(path: Path, profile: DeviceProfile, here: str, accept: bool) -> None:
    """Refuse, or with `accept` say loudly, that a profile was measured elsewhere.

    Raises:
        ValueError: another machine or version of torch, and not `accept`.
    """
    there = profile.provenance.source
    if there == here:
        return
    said = f"{path}: this profile comes from '{there}', this machine is '{here}'"
    if not accept:
        raise ValueError(f"{said}; calibrate here, or add --foreign to use it all the same")
    terminal.note(f"{said}; its times are used as if they were of this machine")


def profile_text(profile: DeviceProfile) -> str:
    """A device file that `read_profiles` and cluster files take."""
    plain = {k: v for k, v in to_plain(profile).items() if v not in (None, {}, [])}
    return str(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100))


def judgement(judged: "list[Judged]") -> dict[str, Any]:
    """Error of predicted against measured and coverage of the 90 % interval, by class and all."""
    kinds = [*dict.fromkeys(point.kind for point in judged), "all"]
    rows = {}
    for kind in kinds:
        points = [point for point in judged if kind in (point.kind, "all")]
        errors = [abs(p.predicted_s / p.measured_s - 1) for p in points]
        rows[kind] = _row(errors, [p.low_s <= p.measured_s <= p.high_s for p in points])
    return rows


def left_out(found: "OpModels") -> dict[str, Any]:
    """The same for every fitted point, each predicted by a fit without it."""
    from scheduler.cost_model.fit import leave_out
    from scheduler.cost_model.gaussian_process import interval

    rows, errors, inside = {}, [], []
    for kind, model in found.models.items():
        away, std = leave_out(model)
        relative = np.abs(np.expm1(-away)).tolist()
        within = (np.abs(away) <= interval(model, std)).tolist()
        rows[kind] = _row(relative, within)
        errors += relative
        inside += within
    return {**rows, "all": _row(errors, inside)}


def _row(errors: list[float], inside: list[bool]) -> dict[str, float]:
    return {
        "points": len(errors),
        "mean_error": float(np.mean(errors)),
        "median_error": float(np.median(errors)),
        "coverage": float(np.mean(inside)),
    }


def _show(document: dict[str, Any]) -> None:
    columns = ["operator class", "points", "mean error", "median", "in the 90 % interval"]
    titles = {
        "held_out": "Points that were held out and never fitted",
        "left_out": "Fitted points, each predicted by a fit without it",
    }
    for key, title in titles.items():
        rows = [
            [kind, str(row["points"]), *(f"{row[k]:.1%}" for k in ("mean_error", "median_error")),
             f"{row['coverage']:.0%}"]
            for kind, row in document[key].items()
        ]  # fmt: skip
        terminal.table(title, columns, rows)
    terminal.out.print(
        f"{document['points']} points; others kept {document['others_cores']:.2f} cores busy."
    )
