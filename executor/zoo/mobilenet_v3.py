"""MobileNetV3-Large, 224 x 224 pixels.

Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, doi:10.1109/ICCV.2019.00140, table 1
and section 5; squeezed channels rounded to 8 as in the authors' code. 5,483,032 parameters.
"""

import torch
from torch import Tensor, nn

# kernel, expanded channels, output channels, squeeze-and-excite, activation, stride (table 1)
BLOCKS = [
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
]


def conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution that keeps the size (over the stride), and batch norm."""
    padding = kernel // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, 1e-3, 0.01),
    ]


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate made of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _divisible_by_8(channels / 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        gate = nn.functional.hardsigmoid(self.fc2(torch.relu(self.fc1(mean))))
        return x * gate


def _divisible_by_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-and-excite, project 1x1; added to the input where it fits."""

    def __init__(self, in_channels: int, block: tuple[int, int, int, bool, type, int]) -> None:
        super().__init__()
        kernel, expanded, out_channels, squeezes, activation, stride = block
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers += [*conv(in_channels, expanded), activation()]
        layers += [*conv(expanded, expanded, kernel, stride, expanded), activation()]
        layers += [SqueezeExcite(expanded)] if squeezes else []
        self.layers = nn.Sequential(*layers, *conv(expanded, out_channels))
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, h, w) to (batch, out, h / stride, w / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.adds_input else y


def mobilenet_v3(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build MobileNetV3-Large; input (batch, 3, 224, 224)."""
    layers: list[nn.Module] = [*conv(3, 16, 3, 2), nn.Hardswish()]
    channels = 16
    for block in BLOCKS:
        layers.append(InvertedResidual(channels, block))
        channels = block[2]
    layers += [*conv(channels, 960), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers).eval(), (torch.randn(batch, 3, 224, 224),)
