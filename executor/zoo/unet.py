"""The diffusion U-Net of Stable Diffusion 1.5: latents of 64 x 64 x 4 (512 x 512 pixels).

Source: Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022,
doi:10.1109/CVPR52688.2022.01042, section 3 and appendix E; sizes of v1-inference.yaml in the
authors' code. 859,520,964 parameters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT, CHANNELS, RESIDUALS, HEADS = 4, (320, 640, 1280, 1280), 2, 8
TEXT_TOKENS, TEXT_WIDTH, TIME_WIDTH, GROUPS = 77, 768, 1280, 32


class Residual(nn.Module):
    """Two convolutions, the step's embedding added between them, added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.time = nn.Linear(TIME_WIDTH, out_channels)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (batch, in, h, w) and (batch, time width) to (batch, out, h, w)."""
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        result: Tensor = self.shortcut(x) + y
        return result


class Attention(nn.Module):
    """Attention of pixels to themselves or to the text."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(source_width, width, bias=False)
        self.value = nn.Linear(source_width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Map (batch, pixels, width) to the same shape; source (batch, keys, source width)."""
        q, k, v = (
            y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(source), self.value(source))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        result: Tensor = self.out(y)
        return result


class GEGLU(nn.Module):
    """Linear, half of it gated by the GELU of the other half."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., inner)."""
        value, gate = self.proj(x).chunk(2, -1)
        result: Tensor = value * F.gelu(gate)
        return result


class SpatialTransformer(nn.Module):
    """Attention over the pixels, attention to the text, and an MLP, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, 1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, width)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, TEXT_WIDTH)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(GEGLU(width, 4 * width), nn.Linear(4 * width, width))
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Map (batch, width, h, w) to the same shape."""
        image = self.proj_in(self.norm(x))
        y = image.flatten(2).transpose(1, 2)
        normed = self.norm1(y)
        y = y + self.attn1(normed, normed)
        y = y + self.attn2(self.norm2(y), text)
        y = y + self.mlp(self.norm3(y))
        result: Tensor = x + self.proj_out(y.transpose(1, 2).unflatten(2, image.shape[2:]))
        return result


class Stage(nn.Module):
    """A residual block, with attention except at the lowest resolution."""

    def __init__(self, in_channels: int, out_channels: int, attends: bool) -> None:
        super().__init__()
        self.residual = Residual(in_channels, out_channels)
        self.attention = SpatialTransformer(out_channels) if attends else None

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        """Map (batch, in, h, w) to (batch, out, h, w)."""
        x = self.residual(x, time)
        return x if self.attention is None else self.attention(x, text)


class Upsample(nn.Module):
    """Twice the size by nearest neighbours, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, channels, 2 h, 2 w)."""
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class UNet(nn.Module):
    """Down, middle and up, each level's outputs kept for the way up."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS[0]
        self.time = nn.Sequential(
            nn.Linear(width, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, TIME_WIDTH)
        )
        self.conv_in = nn.Conv2d(LATENT, width, 3, 1, 1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept = [width]
        last = len(CHANNELS) - 1
        for level, channels in enumerate(CHANNELS):
            for _ in range(RESIDUALS):
                self.down.append(Stage(width, channels, level < last))
                kept.append(width := channels)
            if level < last:
                self.down.append(nn.Conv2d(width, width, 3, 2, 1))
                kept.append(width)
        self.middle_in, self.middle_out = Stage(width, width, True), Residual(width, width)
        for level, channels in reversed(list(enumerate(CHANNELS))):
            for _ in range(RESIDUALS + 1):
                self.up.append(Stage(width + kept.pop(), channels, level < last))
                width = channels
            if level:
                self.up.append(Upsample(width))
        self.norm_out = nn.GroupNorm(GROUPS, width)
        self.conv_out = nn.Conv2d(width, LATENT, 3, 1, 1)

    def forward(self, latent: Tensor, steps: Tensor, text: Tensor) -> Tensor:
        """Map (batch, 4, 64, 64), (batch,) and (batch, 77, 768) to the noise in the latent."""
        time = self.time(sinusoids(steps, CHANNELS[0]).to(latent.dtype))
        x = self.conv_in(latent)
        kept = [x]
        for block in self.down:
            x = block(x, time, text) if isinstance(block, Stage) else block(x)
            kept.append(x)
        x = self.middle_out(self.middle_in(x, time, text), time)
        for block in self.up:
            is_stage = isinstance(block, Stage)
            x = block(torch.cat([x, kept.pop()], 1), time, text) if is_stage else block(x)
        result: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return result


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """Cosines and sines (batch, width) of the diffusion steps, wavelengths to 10,000 * 2 pi."""
    places = torch.arange(width // 2, device=steps.device, dtype=torch.float32)
    angles = torch.outer(steps.float(), torch.exp(-math.log(10000) / (width // 2) * places))
    return torch.cat([angles.cos(), angles.sin()], 1)


def unet(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build the U-Net; inputs latent (batch, 4, 64, 64), steps (batch,), text (batch, 77, 768)."""
    latent, text = torch.randn(batch, LATENT, 64, 64), torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH)
    return UNet().eval(), (latent, torch.randint(1000, (batch,)), text)
