"""Is a figure right? Rules that catch the ways in which published figures go wrong.

The truth is the catalog, with the spans in `reference.yaml` where good sources differ. Each rule
names the slip that it recognises: figures with sparsity for dense ones, halves, another part's
figure, slips of unit. A figure without a reference is held against physical ranges only.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from hardware.catalog import DATA, load_profiles
from hardware.documents import STRICT, read
from hardware.names import candidates, words
from hardware.profile import DeviceProfile
from hardware.units import format_figure

TOLERANCE = 0.01
"""Relative difference up to which two figures are the same; data sheets round to three digits."""

ROUNDING = 0.015
"""Half of the step between figures of two digits: doubled figures are often rounded again."""

SHARED = ("num_compute_units", "process_nm", "issue_share")
"""Figures that many unlike parts have in common, and that name none of them."""

USABLE_MEMORY = 0.9
"""Memory counts as right from this share of its nominal size: decimal units, reserved parts."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: what it is said of, the figure, the rule, and why."""

    subject: str
    figure: str
    value: float | str
    rule: str
    message: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.subject}: {self.figure}: {self.message}"


@dataclass(frozen=True)
class Reference:
    """Physical ranges by figure, and accepted spans by device and figure."""

    __pydantic_config__ = STRICT

    ranges: dict[str, tuple[float, float]]
    spreads: dict[str, dict[str, tuple[float, float]]]


@cache
def load_reference() -> Reference:
    """The spans of `reference.yaml`."""
    return read(DATA / "reference.yaml", Reference)


def accepted(device: DeviceProfile, figure: str) -> tuple[float, float] | None:
    """Lowest and highest value that is right for a device of the catalog; None if unknown."""
    known = device.figures.get(figure)
    if known is None:
        return None
    low, high = known * (1 - TOLERANCE), known * (1 + TOLERANCE)
    if figure == "memory_bytes":
        low = known * USABLE_MEMORY
    span = load_reference().spreads.get(device.name, {}).get(figure, (low, high))
    return min(low, span[0]), max(high, span[1])


def check_figure(
    subject: str, devices: Iterable[DeviceProfile], figure: str, value: float
) -> Finding | None:
    """Hold a figure against every device that may be meant; right for one is right."""
    devices = list(devices)
    if not (math.isfinite(value) and value > 0):
        return Finding(subject, figure, value, "impossible", f"must be positive, got {value}")
    for device in devices:
        span = accepted(device, figure)
        if span is None or span[0] <= value <= span[1]:
            return _physical(subject, figure, value)
    devices.sort(key=lambda device: abs(math.log(value / device.figures[figure])))
    for rule, explain in RULES.items():
        for device in devices:
            message = explain(device, figure, value)
            if message:
                return Finding(subject, figure, value, rule, message)
    return _physical(subject, figure, value)


def _physical(subject: str, figure: str, value: float) -> Finding | None:
    low, high = load_reference().ranges.get(figure.split(".")[0], (0.0, math.inf))
    if low <= value <= high:
        return None
    text, least, most = (format_figure(figure, v) for v in (value, low, high))
    message = f"{text} is outside what any device has, {least} to {most}; check the unit"
    return Finding(subject, figure, value, "impossible", message)


def _is(value: float, other: float | None, tolerance: float = TOLERANCE) -> bool:
    return other is not None and abs(value / other - 1) <= tolerance


def _in(value: float, span: tuple[float, float] | None) -> bool:
    """Whether a value that was doubled or halved is in a span, rounding to two digits aside."""
    return span is not None and span[0] * (1 - ROUNDING) <= value <= span[1] * (1 + ROUNDING)


def _unit_slip(device: DeviceProfile, figure: str, value: float) -> str:
    """Thousands or 1024s away from the truth: the right digits with the wrong unit."""
    span = accepted(device, figure)
    assert span is not None
    for step in (1e3, 1024.0):
        for power in (-4, -3, -2, -1, 1, 2, 3, 4):
            if span[0] <= value * step**power <= span[1]:
                return (
                    f"{format_figure(figure, value)} is {device.name}'s "
                    f"{format_figure(figure, device.figures[figure])} in the wrong unit"
                )
    return ""


def _sparse(device: DeviceProfile, figure: str, value: float) -> str:
    """Twice the dense peak: the figure with 2:4 sparsity."""
    dense = device.figures[figure]
    if figure.startswith("peak_flops_per_s") and _in(value / 2, accepted(device, figure)):
        return (
            f"{format_figure(figure, value)} is {device.name}'s figure with sparsity; "
            f"dense: {format_figure(figure, dense)}"
        )
    return ""


def _half(device: DeviceProfile, figure: str, value: float) -> str:
    """Half: a dense peak divided by a sparsity factor once more, or one die of two."""
    whole = device.figures[figure]
    if _in(value * 2, accepted(device, figure)):
        what = "halved once too often" if figure.startswith("peak") else "one half of the device"
        return (
            f"{format_figure(figure, value)} is half of {device.name}'s "
            f"{format_figure(figure, whole)}: {what}"
        )
    return ""


def _no_tensor(device: DeviceProfile, figure: str, value: float) -> str:
    """The vector units' float32 peak given for a dtype that tensor units take."""
    plain = device.figures.get("peak_flops_per_s.float32")
    if figure.startswith("peak_flops_per_s") and _is(value, plain):
        return (
            f"{format_figure(figure, value)} is {device.name}'s float32 peak without tensor "
            f"units; with them: {format_figure(figure, device.figures[figure])}"
        )
    return ""


def _of_another(device: DeviceProfile, figure: str, value: float) -> str:
    """The figure of another part; siblings (the same chip in another form) first."""
    others = [p for p in load_profiles().values() if _is(value, p.figures.get(figure), 0.005)]
    if not others or figure in SHARED:
        return ""
    family = words(device.name)[0]
    others.sort(key=lambda p: (words(p.name)[0] != family, p.kind != device.kind))
    return (
        f"{format_figure(figure, value)} is the figure of {others[0].name}; {device.name} has "
        f"{format_figure(figure, device.figures[figure])}"
    )


def _differs(device: DeviceProfile, figure: str, value: float) -> str:
    known = device.figures[figure]
    source = device.source(figure)
    return (
        f"{format_figure(figure, value)} is {value / known - 1:+.1%} off {device.name}'s "
        f"{format_figure(figure, known)} ({source})"
    )


RULES: dict[str, Callable[[DeviceProfile, str, float], str]] = {
    "unit": _unit_slip,
    "sparse": _sparse,
    "half": _half,
    "no-tensor": _no_tensor,
    "another-part": _of_another,
    "differs": _differs,
}
"""By name, the most telling first: each words what is wrong with a figure, or finds nothing."""


def check_profile(profile: DeviceProfile) -> list[Finding]:
    """All findings on a device: its figures, and the dtypes and names among each other."""
    devices = candidates(profile.name, load_profiles())
    found = [
        check_figure(profile.name, devices, figure, value)
        for figure, value in profile.figures.items()
    ]
    found += [check_alias(alias, profile.name) for alias in profile.aliases]
    if not devices:
        found.append(_mixed(profile))
    return [finding for finding in found if finding]


def check_alias(alias: str, target: str) -> Finding | None:
    """An alias must not be another device's name."""
    meant, known = candidates(alias, load_profiles()), candidates(target, load_profiles())
    if not meant or not known or {p.name for p in meant} & {p.name for p in known}:
        return None
    message = f"'{alias}' is {meant[0].name}, another part than {known[0].name}"
    return Finding(target, "aliases", alias, "alias", message)


def _mixed(profile: DeviceProfile) -> Finding | None:
    """Eight-bit peaks of a device unknown to the catalog: mostly twice the 16-bit ones at most."""
    peaks = profile.peak_flops_per_s
    half = max(peaks.get("bfloat16", 0.0), peaks.get("float16", 0.0))
    if half < peaks.get("float32", 0.0):
        return None
    for dtype in ("int8", "float8"):
        if peaks.get(dtype, 0.0) > 2.2 * half:
            message = (
                f"{peaks[dtype] / half:.1f} times the 16-bit peak, where twice is usual; one "
                "of them may be a figure with sparsity"
            )
            figure = f"peak_flops_per_s.{dtype}"
            return Finding(profile.name, figure, peaks[dtype], "sparse", message)
    return None
