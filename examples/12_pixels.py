"""Train a transformer on pixels: every pixel is a token, and `llsa` searches a pyramid of them for those that matter.

    python examples/12_pixels.py                                # a minute on a free processor
    python examples/12_pixels.py --side 64 --steps 200          # 4,096 tokens: half a minute on a GPU
    python examples/12_pixels.py --steps 5                      # a look

Cells of an image carry one of four textures, under noise.  The network tells what is under the noise, as a step of
diffusion does; one pixel alone says little, a cell of them nearly everything.  Pixels stand in Z-order, so that the
blocks of the pyramid are squares of the image.  Beside it, the same network with attention to all pixels.
"""

import argparse
import time

import torch
from torch import Tensor, nn

import spdsl
from spdsl.layouts import Layout, z_order
from spdsl.nn import SelfAttention

CELL, DIM, HEADS, LAYERS, BATCH, NOISE = 8, 32, 2, 2, 8, 0.7


class Block(nn.Module):
    """Attention and two linear layers, each added to what came in."""

    def __init__(self, attend: spdsl.Attention) -> None:
        super().__init__()
        self.attention, self.norm = SelfAttention(DIM, HEADS, attend), nn.LayerNorm(DIM)
        self.inner = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and the result are ``[batch, tokens, DIM]``."""
        x = x + self.attention(self.norm(x))
        return x + self.inner(x)


class Pixels(nn.Module):
    """Noisy pixels ``[batch, side²]`` in Z-order to what is under the noise."""

    def __init__(self, side: int, attend: spdsl.Attention) -> None:
        super().__init__()
        self.embed = nn.Linear(1, DIM)
        self.place = nn.Parameter(0.3 * torch.randn(side * side, DIM))
        self.blocks = nn.Sequential(*(Block(attend) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The image without noise."""
        return self.head(self.blocks(self.embed(x[..., None]) + self.place))[..., 0]


def images(side: int, layout: Layout, generator: torch.Generator) -> Tensor:
    """``[BATCH, side²]`` of -1 and 1, pixels in the order of a layout."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    textures = torch.stack((x // 2 % 2, y // 2 % 2, (x // 2 + y // 2) % 2, torch.ones_like(x)))
    kinds = torch.randint(0, 4, (BATCH, 1, side // CELL, side // CELL), generator=generator)
    kinds = kinds.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    found = textures.expand(BATCH, -1, -1, -1).gather(1, kinds)[:, 0]
    return layout.arrange(2.0 * found.flatten(1) - 1, dim=1)


def train(side: int, steps: int, attend: spdsl.Attention, device: torch.device) -> tuple[float, float]:
    """The mean square error at first, and of the last tenth of the steps."""
    torch.manual_seed(1)
    generator, layout = torch.Generator().manual_seed(0), z_order(side, side)
    model = Pixels(side, attend).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    errors = []
    for _ in range(steps):
        clean = images(side, layout, generator)
        noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
        loss = (model(noisy.to(device)) - clean.to(device)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.detach())
    last = torch.stack(errors[-max(1, steps // 10) :]).mean()
    return errors[0].item(), last.item()


def alone() -> float:
    """The least mean square error that a pixel alone allows: of tanh(x / NOISE²), since it is -1 or 1."""
    noise = NOISE * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return ((1 + noise) / NOISE**2).tanh().sub(1).square().mean().item()


def main() -> None:
    """Train twice, and say how well it went."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--side", type=int, default=16)
    words.add_argument("--steps", type=int, default=100)
    options = words.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{options.side**2:,} pixels a picture; a pixel alone allows {alone():.3f}", flush=True)
    for attend in (spdsl.compile("llsa", block=4, picks=(8, 8)), spdsl.compile("full")):
        start = time.perf_counter()
        first, last = train(options.side, options.steps, attend, device)
        each = (time.perf_counter() - start) / options.steps
        print(f"{attend.pattern.name}: mean square error {first:.2f} at first, {last:.3f} at last, {each:.2f} s a step")
        assert last < first


if __name__ == "__main__":
    main()
