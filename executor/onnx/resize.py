"""ONNX operators that change the size of images.

Source: ONNX operator schemas of Resize and Upsample, https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from executor.onnx.rule import Call, Rule, Rules

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _resize(call: Call, x: Tensor, *given: Any) -> Tensor:
    """Resize by scales or to sizes; inputs (roi, scales, sizes), or (scales) before set 11."""
    if call.opset < 11:
        scales, sizes = (given[0] if given else call.attrs["scales"]), None
    else:
        scales, sizes = (*given, None, None, None)[1:3]
    axes = [axis % x.ndim for axis in call.get("axes", range(x.ndim))]
    if sizes is not None and len(sizes):
        wanted = dict(zip(axes, (int(n) for n in sizes), strict=True))
        factors = {axis: n / x.shape[axis] for axis, n in wanted.items()}
        if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ValueError("keep_aspect_ratio_policy is not known; export with scales")
    else:
        factors = dict(zip(axes, (float(f) for f in scales), strict=True))
        wanted = {axis: int(np.floor(x.shape[axis] * f)) for axis, f in factors.items()}
    changed = [axis for axis in axes if wanted[axis] != x.shape[axis]]
    if call.get("mode", "nearest") == "nearest":
        return _nearest(call, x, wanted, factors, changed)
    return _smooth(call, x, wanted, factors, changed)


def _coordinates(mode: str, size: int, wanted: int, factor: float) -> Any:
    """Where each position of the result lies in the source."""
    place = np.arange(wanted)
    if mode == "asymmetric":
        return place / factor
    if mode == "align_corners":
        return place * (size - 1) / max(wanted - 1, 1)
    if mode == "pytorch_half_pixel" and wanted == 1:
        return np.zeros(1)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (place + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        centre = size / 2 * (1 - wanted / (size * factor))
        return centre + (place + 0.5) / factor - 0.5
    raise ValueError(f"coordinate_transformation_mode '{mode}' is not known; use half_pixel")


ROUND: dict[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def _mode(call: Call) -> str:
    default = "asymmetric" if call.opset < 11 else "half_pixel"
    return str(call.get("coordinate_transformation_mode", default))


def _nearest(
    call: Call, x: Tensor, wanted: dict[int, int], factors: dict[int, float], changed: list[int]
) -> Tensor:
    """Positions by axis; where torch has the very rule for images, by one operator."""
    how = call.get("nearest_mode", "floor" if call.opset < 11 else "round_prefer_floor")
    whole = all(factors[axis] == int(factors[axis]) for axis in changed)
    plain = (_mode(call), how) in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
    if plain and whole and changed and min(changed) >= 2 and 3 <= x.ndim <= 5:
        return F.interpolate(x, [wanted.get(axis, x.shape[axis]) for axis in range(2, x.ndim)])
    for axis in changed:
        size = x.shape[axis]
        place = ROUND[how](_coordinates(_mode(call), size, wanted[axis], factors[axis]))
        index = np.clip(place, 0, size - 1).astype(np.int64).tolist()
        x = x.index_select(axis, torch.tensor(index, device=x.device))
    return x


def _smooth(
    call: Call, x: Tensor, wanted: dict[int, int], factors: dict[int, float], changed: list[int]
) -> Tensor:
    """Linear or cubic, in the ways that torch has."""
    mode, kind = _mode(call), call.get("mode")
    if not changed:
        return x
    is_known = mode in ("half_pixel", "pytorch_half_pixel", "align_corners")
    is_cubic = kind == "cubic"
    is_known &= not (is_cubic and call.get("cubic_coeff_a", -0.75) != -0.75)
    is_known &= min(changed) >= 2 and not call.get("antialias", 0)
    is_known &= not call.get("exclude_outside", 0) and (not is_cubic or x.ndim == 4)
    if not is_known:
        raise ValueError(
            f"{call.op} with mode {kind}, {mode} over axes {changed} is not known; export with "
            "half_pixel or align_corners over the axes of an image, without antialias"
        )
    spatial = range(2, x.ndim)
    is_aligned = mode == "align_corners"
    exact = all(abs(wanted[a] - x.shape[a] * factors[a]) < 1e-3 for a in changed)
    if (is_aligned and not exact) or (mode[0] == "p" and min(wanted[a] for a in changed) == 1):
        raise ValueError(f"{call.op} with {mode} to a part of a pixel is not known; give sizes")
    size = [wanted.get(a, x.shape[a]) for a in spatial] if exact or is_aligned else None
    factor = None if size else [factors.get(a, 1.0) for a in spatial]
    how = "bicubic" if is_cubic else LINEAR[x.ndim - 2]
    return F.interpolate(
        x, size, factor, how, is_aligned, recompute_scale_factor=None if size else False
    )


RULES: Rules = {
    "Resize": Rule(_resize, static=(1, 2, 3)),
    "Upsample": Rule(_resize, static=(1,)),
}
