"""Error of GEMM and attention times in bfloat16 on ten measured devices.

    python -m benchmarks.accuracy_gemm [--data FOLDER] [--engine vllm] [--device NAME]... [--json]

Three predictions of every row of a device, none of which has seen the rows it is judged on:
    transfer   from the other devices alone (leave one device out)
    64 points  transfer, then adapted to 64 points chosen by their sizes; judged on all others
    roofline   launch overhead, share of peak and share of bandwidth fitted to the same 64 points
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from benchmarks.serving_tables import DEVICES, catalog_name, installed, read_rows
from hardware.kernel_model import (
    KernelModel,
    MeasuredDevice,
    kriging,
    load_kernels,
    reach_of,
    transferred,
)
from scheduler.cost_model.gaussian_process import Z_90, Array
from scheduler.cost_model.kernel_fit import Sample, adapt, choose
from scheduler.cost_model.kernels import FORMS, kernel_seconds

POINTS = 64
CANDIDATES = 2000
TARGETS = {"product": (0.06, 0.04), "prefill": (0.12, None), "decode": (0.12, None)}
LEFT_OUT = {"h100_sxm": 0.12, "h200_sxm": 0.12, "b200_sxm": 0.12}


@dataclass(frozen=True)
class Row:
    """Errors (mean, median of |predicted / measured - 1|) of one device and form."""

    form: str
    device: str
    rows: int
    points: int
    transfer: tuple[float, float]
    adapted: tuple[float, float]
    coverage: float
    reach: float
    roofline: tuple[float, float]

    @property
    def meets(self) -> bool:
        """Whether the adapted errors are within the targets."""
        mean, median = TARGETS[self.form]
        return self.adapted[0] <= mean and (median is None or self.adapted[1] <= median)


def errors(predicted: Array, measured: Array) -> tuple[float, float]:
    off = np.abs(predicted / measured - 1)
    return float(off.mean()), float(np.median(off))


def work(form: str, sample: Sample) -> tuple[Array, Array]:
    """FLOP and bytes of kernels."""
    x = sample.sizes
    if form == "product":
        volume = x["batch"] * x["m"] * x["n"] * x["k"]
        return 2 * volume, 2 * volume * (1 / x["m"] + 1 / x["n"] + 1 / x["k"])
    queries = x.get("queries", np.ones_like(x["keys"]))
    pairs = queries * (x["keys"] - (queries - 1) / 2)
    flops = 4 * x["batch"] * x["heads"] * x["depth"] * pairs
    rows = queries * x["heads"] + x["keys"] * x["kv_heads"]
    return flops, 4 * x["batch"] * x["depth"] * rows


def roofline(form: str, points: Sample, others: Sample) -> Array:
    """Three constants fitted to the points: overhead, share of peak, share of bandwidth."""

    def seconds(logs: Array, sample: Sample) -> Array:
        overhead, peak, bandwidth = np.exp(logs)
        flops, num_bytes = work(form, sample)
        chip = sample.chip
        return np.asarray(
            overhead + np.maximum(flops / chip.peak / peak, num_bytes / chip.bandwidth / bandwidth)
        )

    start = np.log([5e-6, 0.6, 0.7])
    found = least_squares(
        lambda logs: np.log(seconds(logs, points) / points.seconds),
        start,
        loss="soft_l1",
        f_scale=0.1,
    )
    return seconds(found.x, others)


def others_than(device: str) -> dict[str, MeasuredDevice]:
    """The maker's other devices; all others, for a mere start, where it has none."""
    name = catalog_name(device)
    devices = load_kernels().devices
    others = {key: value for key, value in devices.items() if key != name}
    peers = {k: v for k, v in others.items() if v.maker == devices[name].maker}
    return peers or others


def prior_without(form: str, device: str, sample: Sample) -> tuple[KernelModel, float]:
    """The transferred model of a device from others, and the share they leave open."""
    others = others_than(device)
    share = kriging(sample.chip, [other.chip for other in others.values()])[2]
    return transferred(form, sample.chip, others), share


def judge(form: str, device: str, sample: Sample) -> Row:
    num = len(sample.seconds)
    prior, share = prior_without(form, device, sample)
    before = kernel_seconds(prior, sample.sizes, sample.chip)
    candidates = np.random.default_rng(0).permutation(num)[:CANDIDATES]
    offered = sample.rows(candidates)
    chosen = candidates[choose(prior, offered.sizes, offered.chip, POINTS)]
    told = reach_of(form, others_than(device))
    adapted = adapt(prior, sample.rows(chosen), share, told)
    others = sample.rows(np.setdiff1d(np.arange(num), chosen))
    predicted = adapted.seconds(others.sizes, others.chip)
    off = np.abs(np.log(others.seconds / predicted))
    half = Z_90 * adapted.model.spread
    return Row(
        form,
        device,
        num,
        len(chosen),
        errors(before, sample.seconds),
        errors(predicted, others.seconds),
        float((off <= half).mean()),
        float(np.quantile(off, 0.9)) / half * told,
        errors(roofline(form, sample.rows(chosen), others), others.seconds),
    )


def target_of(form: str) -> str:
    mean, median = TARGETS[form]
    return f"{mean:.0%}" + (f"/{median:.0%}" if median else "")


def show(row: Row) -> None:
    out = LEFT_OUT.get(row.device)
    print(
        f"{row.form:8} {row.device:20} {row.rows:6} "
        f"64 points {row.adapted[0]:6.1%} {row.adapted[1]:6.1%} (target {target_of(row.form)}"
        f"{'' if row.meets else ', MISSED'}), interval {row.coverage:.0%}, "
        f"roofline {row.roofline[0]:6.1%} {row.roofline[1]:6.1%}, "
        f"left out {row.transfer[0]:6.1%} {row.transfer[1]:6.1%}"
        + (f" (target {out:.0%}{'' if row.transfer[0] <= out else ', MISSED'})" if out else ""),
        flush=True,
    )


def summary(form: str, rows: list[Row]) -> str:
    """Means over devices beside the targets, and how many meet them."""
    mean, median = np.mean([row.adapted for row in rows], axis=0)
    inside = sum(0.85 <= row.coverage <= 0.95 for row in rows)
    return (
        f"{form:8} {len(rows)} devices: mean {mean:.1%}, median {median:.1%} "
        f"(target {target_of(form)}); "
        f"{sum(row.meets for row in rows)} meet it; 90 % interval covers 85 to 95 % on {inside}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=installed())
    parser.add_argument("--engine", default="", help="vllm (the default), trtllm or sglang")
    parser.add_argument("--release", default="", help="of the engine, with --engine")
    parser.add_argument("--device", action="append", choices=list(DEVICES))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.data is None or not asked.data.is_dir():
        print(
            "no tables: pip install 'apportion[bench]', or name their folder with --data",
            file=sys.stderr,
        )
        return 2
    found = []
    for form in FORMS:
        for device in asked.device or DEVICES:
            sample = read_rows(asked.data, device, form, asked.engine, asked.release)
            found.append(judge(form, device, sample))
            if not asked.json:
                show(found[-1])
    if asked.json:
        print(json.dumps([asdict(row) | {"meets": row.meets} for row in found], indent=1))
        return 0
    for form in FORMS:
        print(summary(form, [row for row in found if row.form == form]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
