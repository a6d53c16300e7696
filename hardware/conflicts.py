"""Tables of conflicts: what some table says of a device or price, and what it should say.

Columns: where, field, says, should_be. The words are people's; this reads device, figure, unit and
numbers out of them, so that each row can be put to the rules: they should find fault with what it
`says`, and none with what `should_be`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from hardware.catalog import load_profiles
from hardware.check import Finding, check_alias, check_figure
from hardware.check_prices import (
    PriceClaim,
    check_price,
    check_spot,
    check_trace,
    virtual_cpus,
)
from hardware.names import candidates, words
from hardware.profile import DeviceProfile

NUMBER = r"\d[\d,]*(?:\.\d+)?"
QUANTITY = re.compile(
    rf"({NUMBER})(?:/(\d+))?\s*(?:-|–|to)?\s*({NUMBER})?\s*(GB/s|TB/s|GiB|MiB|GB|TB|MB|MHz|GHz|TF\w*|PF\w*|W\b)?"
)
UNITS = {
    "GB/s": ("memory_bytes_per_s", 1e9),
    "TB/s": ("memory_bytes_per_s", 1e12),
    "GiB": ("memory_bytes", 2.0**30),
    "GB": ("memory_bytes", 2.0**30),
    "TB": ("memory_bytes", 2.0**40),
    "MiB": ("memory_bytes", 2.0**20),
    "MB": ("memory_bytes", 2.0**20),
    "MHz": ("clock_hz", 1e6),
    "GHz": ("clock_hz", 1e9),
    "TF": ("peak_flops_per_s", 1e12),
    "PF": ("peak_flops_per_s", 1e15),
    "W": ("power_w", 1.0),
}
FIELDS = (
    # words of a field, the figure they mean, and the unit where none is written
    (r"bw|bandwidth", "memory_bytes_per_s", "GB/s"),
    (r"sizeinmib", "memory_bytes", "MiB"),
    (r"\bmem\b|memory|vram", "memory_bytes", "GB"),
    (r"\bl2\b|\bl3\b|cache", "cache_bytes", "MB"),
    (r"clock|boost", "clock_hz", "MHz"),
    (r"tdp|power", "power_w", "W"),
    (r"fp32|float32", "peak_flops_per_s.float32", "TF"),
    (r"tf32", "peak_flops_per_s.tfloat32", "TF"),
    (r"fp16|float16", "peak_flops_per_s.float16", "TF"),
    (r"int8", "peak_flops_per_s.int8", "TF"),
    (r"fp8|float8", "peak_flops_per_s.float8", "TF"),
    (r"fp4|float4", "peak_flops_per_s.float4", "TF"),
    (r"bf16|bfloat16|flops|\btf\b", "peak_flops_per_s.bfloat16", "TF"),
)
PRICES = re.compile(r"price|pricing|catalog|karpenter|gpuhunt|libcloud|\$|usd", re.IGNORECASE)
ABSENT = ("", "null", "none", "absent")


@dataclass(frozen=True)
class Conflict:
    """A row of the table."""

    where: str
    field: str
    says: str
    should_be: str


@dataclass(frozen=True)
class Verdict:
    """What the rules find in a row: in what it says, and in what it should say.

    Attributes:
        was_read: whether a claim could be read out of it at all.
    """

    conflict: Conflict
    said: tuple[Finding, ...]
    corrected: tuple[Finding, ...]
    was_read: bool

    @property
    def is_caught(self) -> bool:
        """Whether the rules tell the wrong value from the right one."""
        return bool(self.said) and not self.corrected


def judge(row: Conflict) -> Verdict:
    """Put both sides of a row to the rules."""
    said, corrected = list(_claims(row, row.says)), list(_claims(row, row.should_be))
    return Verdict(
        row,
        tuple(finding for finding in said if finding),
        tuple(finding for finding in corrected if finding),
        bool(said),
    )


def _claims(row: Conflict, text: str) -> Iterator[Finding | None]:
    """What the rules say to each claim in a text; nothing where the text claims nothing."""
    subject = f"{row.where}: {row.field}"
    if "alias" in row.field:
        name = row.field.split()[0]
        target = text.replace("->", "").strip()
        yield check_alias(name, target)
    elif "gap" in row.field:
        yield from _trace_claims(row, subject, text)
    elif re.search(r"spot", row.field + row.says, re.IGNORECASE):
        yield from _spot_claims(row, subject, text)
    elif text.strip().lower() in ABSENT:
        return
    elif PRICES.search(f"{row.where} {row.field} {row.says}") and not _figure(row.field):
        yield from map(check_price, _price_claims(row, subject, text))
    else:
        for devices, figure, value in _figure_claims(row, text):
            yield check_figure(subject, devices, figure, value)


def devices_in(text: str) -> list[list[DeviceProfile]]:
    """The devices that a text names, each as the profiles that may be meant ('H100': three)."""
    text = re.sub(r"Standard_\w+|(?<=[a-z]\d00)x\d+", " ", text, flags=re.IGNORECASE)
    tokens, found, start = words(text), [], 0
    while start < len(tokens):
        for end in range(len(tokens), start, -1):
            meant = candidates(" ".join(tokens[start:end]), load_profiles())
            if meant and not all(p.kind == "cpu" for p in meant) and tokens[start] != "80gb":
                found.append(meant)
                start = end - 1
                break
        start += 1
    return found


def _figure(text: str) -> tuple[str, str] | None:
    """The figure that a field means, and the unit where none is written."""
    known = (f for f in FIELDS if re.search(f[0], text, re.IGNORECASE))
    return next(((figure, unit) for _, figure, unit in known), None)


def _figure_claims(row: Conflict, text: str) -> Iterator[tuple[list[DeviceProfile], str, float]]:
    named = devices_in(row.field) or devices_in(row.where)
    figure, unit = _figure(row.field) or ("", "")
    if "tensor" in text and not re.search(r"\d", text):
        # no number: the float32 peak of the vector units, or the peak of the tensor units
        for devices in named:
            own = "peak_flops_per_s.float32" if "non-tensor" in text else figure
            yield devices, figure, devices[0].figures[own]
        return
    # where the field names no figure, what stands first, second, … in `says` tells it by its unit
    units = [unit] if unit else [q[3] for q in _quantities(row.says)]
    for place, (low, _, high, own_unit) in enumerate(_quantities(_last(text))):
        key = own_unit or (units[place] if place < len(units) else units[-1] if units else "")
        if not key:
            continue
        name, scale = UNITS[key[:2] if key[:2] in ("TF", "PF") else key]
        name = figure or name.replace("peak_flops_per_s", "peak_flops_per_s.bfloat16")
        for number in (low, high) if high else (low,):
            for devices in named:
                yield devices, name, number * scale


def _last(text: str) -> str:
    """What a text ends on: '67 then halved by sparsity factor to 33.5' → '33.5'."""
    return re.split(r"\bto\b|=>|=", text)[-1]


def _quantities(text: str) -> list[tuple[float, float, float, str]]:
    """Numbers, divisors, upper ends of ranges, and units, in order."""
    text = re.sub(r"\b(?:fp|bf|tf|int|float|bfloat|v)\d+", " ", text, flags=re.IGNORECASE)

    def number(digits: str) -> float:
        return float(digits.replace(",", "")) if digits else 0.0

    return [(number(m[1]), number(m[2]), number(m[3]), m[4] or "") for m in QUANTITY.finditer(text)]


def _price_claims(row: Conflict, subject: str, text: str) -> Iterator[PriceClaim]:
    if "zero" in f"{row.field} {text}":
        yield PriceClaim(subject, 0.0)
        return
    meant = [p.name for group in devices_in(row.field) for p in group]
    count = re.search(r"\d00x(\d+)", row.field)
    per = float(count[1]) if count else float(bool(meant))
    if not meant:
        per = virtual_cpus(row.field.split()[0])
    claim = partial(PriceClaim, subject, devices=tuple(meant))
    for low, divisor, high, _ in _quantities(_last(text).split(" vs ")[0]):
        for number in (low, high) if high else (low,):
            yield claim(usd_per_hour=number, count=divisor or per)


def _spot_claims(row: Conflict, subject: str, text: str) -> Iterator[Finding | None]:
    """Pairs 'a > b' (spot, on-demand) or 'OD a < spot b'; a correction swaps them."""
    pairs = re.findall(rf"({NUMBER})\s*[<>]\s*(?:spot\s*)?({NUMBER})", row.says)
    for first, second in pairs:
        spot, on_demand = sorted((float(first), float(second)), reverse=True)
        if text is not row.says:
            spot, on_demand = on_demand, spot
        yield check_spot(subject, on_demand, spot)
        meant = tuple(p.name for group in devices_in(row.field) for p in group)
        count = re.search(r"\d00x(\d+)", row.field)
        if meant and count:
            yield check_price(PriceClaim(subject, on_demand, meant, float(count[1])))


def _trace_claims(row: Conflict, subject: str, text: str) -> Iterator[Finding | None]:
    """'600 … (27 days)' against '13 days => 300': the points are those of the first."""
    said = re.search(rf"({NUMBER}).*?({NUMBER})\s*days", row.says)
    truth = re.search(rf"({NUMBER})\s*days.*?({NUMBER})", row.should_be)
    if said and truth:
        points = float(said[2]) * 86400 / float(said[1])
        gap_s = float(said[1] if text is row.says else truth[2])
        yield check_trace(subject, gap_s, points, float(truth[1]))
