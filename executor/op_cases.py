"""What calibration may measure: recipes of every operator class, drawn over the sizes of networks.

Sizes are drawn log-uniformly; most are multiples of eight, as in networks, some are not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from executor.recipes import Like, Recipe, dense

Draw = Callable[[np.random.Generator], Recipe]
CONTIGUOUS = torch.contiguous_format


def _size(rng: np.random.Generator, low: float, high: float, step: int = 1) -> int:
    value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return max(step, round(value / step) * step)


def _wide(rng: np.random.Generator, low: float, high: float) -> int:
    """A width: a multiple of eight, three times in four of 64."""
    return _size(rng, low, high, 64 if high >= 128 and rng.random() < 0.75 else 8)


def linear(rng: np.random.Generator) -> Recipe:
    """A linear layer; its weight is cold."""
    m, n, k = _size(rng, 1, 8192), _wide(rng, 16, 50000), _wide(rng, 16, 8192)
    weight, bias = dense(n, k, weight=True), dense(n, weight=True)
    return Recipe("aten.linear.default", (dense(m, k), weight, bias))


def product(rng: np.random.Generator) -> Recipe:
    """A batch of products of two activations, as in attention written out."""
    batch, m, k, n = (
        _size(rng, 2, 128),
        _size(rng, 1, 1024),
        _wide(rng, 16, 512),
        _wide(rng, 16, 1024),
    )
    return Recipe("aten.matmul.default", (dense(batch, m, k), dense(batch, k, n)))


def conv(rng: np.random.Generator) -> Recipe:
    """A convolution: dense, of single pixels, or by channel."""
    batch, side = _size(rng, 1, 16), _size(rng, 4, 224)
    kernel, stride = int(rng.choice([1, 1, 3, 3, 3, 5])), int(rng.choice([1, 1, 2]))
    channels, out = _wide(rng, 8, 2048), _wide(rng, 8, 2048)
    groups = 1
    if rng.random() < 0.12:
        channels, kernel = 3, int(rng.choice([3, 7, 16]))
    elif rng.random() < 0.2:
        groups, out, kernel = channels, channels, max(3, kernel)
    weight = dense(out, channels // groups, kernel, kernel, weight=True)
    image, pad = dense(batch, channels, side, side), kernel // 2
    args = (image, weight, None, (stride, stride), (pad, pad), (1, 1), groups)
    return Recipe("aten.conv2d.default", args)


def attention(rng: np.random.Generator) -> Recipe:
    """Fused attention; queries, keys and values lie (batch, length, heads, depth), as views."""
    batch, heads, depth = _size(rng, 1, 16), _size(rng, 1, 32), int(rng.choice([32, 64, 64, 128]))
    keys = _size(rng, 8, 2048)
    queries = keys if rng.random() < 0.8 else 1

    def view(length: int) -> Like:
        width = heads * depth
        return Like((batch, heads, length, depth), (length * width, depth, width, 1), "float32")

    causal = queries == keys and bool(rng.random() < 0.5)
    args = (view(queries), view(keys), view(keys), None, 0.0, causal)
    return Recipe("aten.scaled_dot_product_attention.default", args)


def elementwise(rng: np.random.Generator) -> Recipe:
    """One or two inputs, plain arithmetic or a function."""
    x = dense(_size(rng, 1, 4096), _size(rng, 64, 8192))
    name = str(rng.choice(["relu", "relu", "add", "add", "mul", "broadcast", "scalar",
                           "gelu", "gelu", "tanh", "sigmoid", "silu"]))  # fmt: skip
    if name in ("add", "mul"):
        return Recipe(f"aten.{name}.Tensor", (x, x))
    if name == "broadcast":
        return Recipe("aten.add.Tensor", (x, dense(x.shape[1])))
    if name == "scalar":
        return Recipe("aten.mul.Tensor", (x, 0.5))
    return Recipe(f"aten.{name}.default", (x,))


def norm(rng: np.random.Generator) -> Recipe:
    """Layer norm, or batch norm in evaluation."""
    if rng.random() < 0.5:
        rows, width = _size(rng, 1, 8192), _wide(rng, 64, 8192)
        scale, shift = dense(width, weight=True), dense(width, weight=True)
        return Recipe("aten.layer_norm.default", (dense(rows, width), (width,), scale, shift))
    batch, channels, side = _size(rng, 1, 16), _wide(rng, 8, 2048), _size(rng, 4, 112)
    image, plane = dense(batch, channels, side, side), dense(channels, weight=True)
    return Recipe("aten.batch_norm.default", (image, *[plane] * 4, False, 0.1, 1e-5, True))


def softmax(rng: np.random.Generator) -> Recipe:
    """Along the last axis."""
    return Recipe("aten.softmax.int", (dense(_size(rng, 1, 32768), _size(rng, 32, 4096)), -1))


def reduce(rng: np.random.Generator) -> Recipe:
    """Mean along the last axis, or of whole planes."""
    if rng.random() < 0.5:
        x = dense(_size(rng, 1, 32768), _size(rng, 32, 4096))
        return Recipe("aten.mean.dim", (x, (1,)))
    side = _size(rng, 4, 112)
    planes = dense(_size(rng, 1, 16), _wide(rng, 8, 2048), side, side)
    return Recipe("aten.mean.dim", (planes, (2, 3)))


def embedding(rng: np.random.Generator) -> Recipe:
    """Rows looked up in a table."""
    entries, width, rows = _size(rng, 100, 50000), _wide(rng, 16, 1024), _size(rng, 1, 8192)
    indices = dense(rows, dtype="int64", high=entries)
    return Recipe("aten.embedding.default", (dense(entries, width, weight=True), indices))


def pool(rng: np.random.Generator) -> Recipe:
    """Maximum or average of windows, or of whole planes."""
    batch, channels, side = _size(rng, 1, 16), _wide(rng, 8, 2048), _size(rng, 4, 112)
    image = dense(batch, channels, side, side)
    kind, kernel = rng.choice(["max", "max", "avg", "whole"]), int(rng.choice([2, 3]))
    if kind == "whole":
        return Recipe("aten.adaptive_avg_pool2d.default", (image, (1, 1)))
    args = (image, (kernel, kernel), (2, 2), (kernel // 2 * (kernel % 2),) * 2)
    return Recipe(f"aten.{kind}_pool2d.default", args)


def copy(rng: np.random.Generator) -> Recipe:
    """A concatenation, or a copy that brings the heads of attention back in order."""
    if rng.random() < 0.5:
        rows, columns = _size(rng, 1, 4096), _size(rng, 64, 4096)
        return Recipe("aten.cat.default", ((dense(rows, columns), dense(rows, columns)), 1))
    batch, length, heads = _size(rng, 1, 16), _size(rng, 8, 1024), _size(rng, 1, 32)
    depth = int(rng.choice([32, 64, 64, 128]))
    width = heads * depth
    turned = Like((batch, heads, length, depth), (length * width, depth, width, 1), "float32")
    return Recipe("aten.clone.default", (turned,), (("memory_format", CONTIGUOUS),))


@dataclass(frozen=True)
class CaseClass:
    """How one operator class is calibrated.

    Attributes:
        key: what the model is called in `DeviceProfile.op_times`.
        draws: what to draw from.
        features: what its time depends on, beside the roofline.
        num_points: most points of the fit.
    """

    key: str
    draws: tuple[Draw, ...]
    features: tuple[str, ...]
    num_points: int


CLASSES = (
    CaseClass(
        "matmul/float32",
        (linear, linear, product),
        ("log_m", "log_n", "log_k", "log_batch", "log_compute_s", "log_intensity"),
        46,
    ),
    CaseClass(
        "conv/float32",
        (conv,),
        ("log_in_channels", "log_out_channels", "log_out_pixels", "log_kernel", "log_groups",
         "log_intensity", "log_compute_s"),
        50,
    ),
    CaseClass(
        "attention/float32",
        (attention,),
        ("log_queries", "log_keys", "log_depth", "log_compute_s", "is_causal"),
        20,
    ),
    CaseClass(
        "elementwise",
        (elementwise,),
        ("log_memory_s", "log_operands", "broadcast", "function", "on_gelu", "on_tanh"),
        36,
    ),
    CaseClass("norm", (norm,), ("log_memory_s", "log_columns", "on_batch_norm"), 22),
    CaseClass("softmax", (softmax,), ("log_rows", "log_columns"), 12),
    CaseClass("reduce", (reduce,), ("log_rows", "log_columns"), 12),
    CaseClass("embedding", (embedding,), ("log_rows", "log_columns"), 10),
    CaseClass(
        "pool",
        (pool,),
        ("log_memory_s", "log_size", "log_kernel", "on_max_pool2d", "on_adaptive_avg_pool2d"),
        20,
    ),
    CaseClass("copy", (copy,), ("log_memory_s", "on_cat"), 14),
)  # fmt: skip
