"""Denoising in steps whose attention chooses blocks once and reuses them: SparseD's patterns on a toy.

    python examples/09_reuse_over_steps.py

Tokens are noisy points on a curve; every step moves each of them towards what it attends to.  The first steps attend to
everything, then one chooses blocks and hands them on as lists, and the rest read those alone.
"""

import torch
from torch import Tensor

import spdsl

TOKENS, STEPS, FULL = 1024, 10, 2
SIZES = {"rows": 64, "columns": 32}

build = spdsl.compile("sparsed_build", ratio=0.15, **SIZES)
reuse = spdsl.compile("sparsed_reuse", **SIZES)

generator = torch.Generator().manual_seed(0)
turn = torch.linspace(0, 6.28, TOKENS)
curve = torch.stack((turn.cos(), turn.sin(), (2 * turn).cos(), (2 * turn).sin()), -1)
noisy = curve + 0.4 * torch.randn(TOKENS, 4, generator=generator)
prompt = torch.tensor([256], dtype=torch.int32)  # the first tokens choose, and are chosen, apart from the others


def tensors(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys that are alike where points are near, ``[1, 1, tokens, 4]``."""
    near = 3 * torch.nn.functional.normalize(x, dim=-1)[None, None]
    return near, 2 * near, x[None, None]


def denoise(*, sparse: bool) -> tuple[Tensor, Tensor | None]:
    """The points after all steps, and the blocks that one of them has chosen."""
    x, chosen = noisy, None
    for step in range(STEPS):
        q, k, v = tensors(x)
        if sparse and step == FULL:
            chosen = build.exports(q, k, v, prompt=prompt, compact=True)["chosen"]
        out = build(q, k, v, prompt=prompt) if chosen is None else reuse(q, k, v, chosen=chosen)
        x = 0.7 * x + 0.3 * out[0, 0]
    return x, chosen


dense, _ = denoise(sparse=False)
sparse, chosen = denoise(sparse=True)
assert chosen is not None
blocks = (TOKENS // SIZES["rows"]) * (TOKENS // SIZES["columns"])
kept = int((chosen < 2**31 - 1).sum()) / blocks
before, after, other = (((x - curve) ** 2).mean().sqrt().item() for x in (noisy, dense, sparse))
print(f"{kept:.0%} of the blocks, chosen once, are read in {STEPS - FULL} of {STEPS} steps")
print(f"distance from the curve: {before:.2f} noisy, {after:.2f} with all pairs, {other:.2f} with those")
assert other < 1.1 * after < before
