"""Attention on a grid: an image that takes its noise away by looking at pixels whose surroundings are alike.

    python examples/06_grid_on_an_image.py                     # --picture out.png draws it, with matplotlib

This is "non-local means" (Buades et al., 2005), written as attention: queries and keys are patches around pixels,
values are the pixels, and a pixel may look at those of the 15 × 15 around it.  exp(-|a - b|² / h²) is
exp(2 a·b / h² - |b|² / h²) up to a factor that the softmax divides by: a product, and a bias of the key.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import spdsl

SIDE, PATCH, NOISE = 96, 5, 0.15

pattern = spdsl.loads("""
  pattern around(height: int in 1.., width: int in 1.., reach: int in 0.. = 7) {
    input length: float[token]                # |b|² / h² of the patch around each pixel
    grid (y: height, x: width)                # tokens are the pixels, row by row
    keep abs(q.y - k.y) <= reach and abs(q.x - k.x) <= reach
    scale 1.0
    bias -length[k]
  }""")


def picture() -> Tensor:
    """Rings, stripes and a gradient, ``[SIDE, SIDE]`` from 0 to 1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    rings = ((x + 0.35).square() + (y + 0.3).square()).sqrt() * 14 % 2 < 1
    stripes = (x - y) * 7 % 2 < 1
    return torch.where(x + y > 0.5, stripes.float() * 0.8, torch.where(x + y < -0.1, rings.float(), 0.5 + y / 2))


def quality(found: Tensor, truth: Tensor) -> float:
    """The ratio of the peak to the error, in decibels."""
    return -10 * (found - truth).square().mean().log10().item()


def main() -> None:
    """Draw, add noise, and take it away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    clean = picture()
    noisy = clean + NOISE * torch.randn(SIDE, SIDE)

    edged = functional.pad(noisy[None, None], [PATCH // 2] * 4, mode="reflect")
    patches = functional.unfold(edged, PATCH)[0].T / PATCH  # [pixels, numbers of a patch]
    h2 = 1.5 * NOISE**2
    attend = spdsl.compile(pattern, height=SIDE, width=SIDE)
    rows = [2 * patches / h2, patches, noisy.reshape(-1, 1)]
    q, k, v = (each[None, None].contiguous() for each in rows)  # one batch, one head
    out = attend(q, k, v, length=patches.square().sum(1) / h2)
    smooth = out.reshape(SIDE, SIDE)

    before, after = quality(noisy, clean), quality(smooth, clean)
    print(attend.explain(q, k, v, length=torch.zeros(SIDE * SIDE)).splitlines()[1])
    print(f"noisy {before:.1f} dB, after attention {after:.1f} dB")
    if options.picture is not None:
        import matplotlib.image

        beside = torch.cat([clean, noisy, smooth], 1).clamp(0, 1)
        matplotlib.image.imsave(options.picture, beside.numpy(), cmap="gray", vmin=0, vmax=1)
    assert after > before + 4


if __name__ == "__main__":
    main()
