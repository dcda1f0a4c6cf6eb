"""Gradients of blocks that runs of queries have picked on a GPU, where lists of whole tiles are walked by key."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.compare import TOLERANCE, relative_error

# The reference's products are the first that torch's thread of backward passes asks cuBLAS for.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")]


@dataclass(frozen=True, kw_only=True)
class Program:
    """Runs of ``run`` queries pick three blocks of ``block`` keys, each head for itself, and the sizes of a call."""

    run: int
    block: int
    heads: int
    groups: int
    n: int
    dim: int = 64
    batch: int = 2
    keep: str = "causal and chosen"
    deterministic: bool = False

    @property
    def text(self) -> str:
        return f"""
            pattern program() {{
              axis run = token by {self.run}
              axis blk = token by {self.block}
              input s: float[h, q.run, k.blk]
              let chosen = s |> only(k.blk.first <= q.run.last) |> top(3)
              keep {self.keep}
            }}"""


WINDOW = "causal and (q - k < 100 or chosen)"

PROGRAMS = {
    "one group of warps": Program(run=64, block=64, heads=4, groups=2, n=777),
    "one group, in order": Program(run=64, block=64, heads=4, groups=2, n=777, deterministic=True),
    "two groups": Program(run=128, block=128, heads=6, groups=2, n=1000),
    "two groups, a later part": Program(run=128, block=128, heads=4, groups=2, n=1000, keep=WINDOW),
    "a later part, in order": Program(run=128, block=128, heads=4, groups=2, n=1000, keep=WINDOW, deterministic=True),
    "one group, a later part": Program(run=64, block=64, heads=3, groups=3, n=640, keep=WINDOW),
    "several tiles": Program(run=256, block=512, heads=4, groups=2, n=1500),
    "keys of the future": Program(run=128, block=64, heads=3, groups=3, n=400, keep="chosen"),
    "two blocks to a tile": Program(run=128, block=64, heads=3, groups=3, n=777),
    "two blocks, in order": Program(run=128, block=64, heads=4, groups=2, n=777, deterministic=True),
    "two blocks, a later part": Program(run=256, block=64, heads=4, groups=2, n=1000, keep=WINDOW),
    "four blocks to a tile": Program(run=128, block=32, heads=3, groups=3, n=1011, keep="chosen"),
    "four blocks, in order": Program(run=128, block=32, heads=4, groups=2, n=900, deterministic=True),
    "small blocks, wide heads": Program(run=128, block=32, heads=4, groups=2, n=700, dim=128),
    "wide heads": Program(run=128, block=128, heads=6, groups=2, n=900, dim=128),
    "wide heads, tiles of warps that are all alike": Program(run=64, block=64, heads=4, groups=1, n=500, dim=128),
    "small blocks": Program(run=48, block=32, heads=4, groups=2, n=300),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients(name: str) -> None:
    program = PROGRAMS[name]
    generator = torch.Generator("cuda").manual_seed(len(name))
    options = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    attn = spdsl.compile(spdsl.loads(program.text), deterministic=program.deterministic)
    leaves = [
        torch.randn(program.batch, heads, program.n, program.dim, **options, requires_grad=True)  # type: ignore[arg-type]
        for heads in (program.heads, program.groups, program.groups)
    ]
    runs, blocks = -(-program.n // program.run), -(-program.n // program.block)
    s = torch.randn(program.heads, runs, blocks, device="cuda", generator=generator)
    expected = attn.reference(*leaves, s=s)
    assert isinstance(expected, Tensor)
    d_out = torch.randn(expected.shape, **options)  # type: ignore[call-overload]
    wanted = torch.autograd.grad(expected, leaves, d_out.double())
    found = []
    for _ in range(4):  # the second is watched, those after it repeat its steps
        out = attn(*leaves, s=s)
        assert isinstance(out, Tensor)
        assert relative_error(out, expected) <= TOLERANCE[torch.bfloat16]
        found.append(torch.autograd.grad(out, leaves, d_out))
        for gradient, other in zip(found[-1], wanted, strict=True):
            assert relative_error(gradient, other) <= 2 * TOLERANCE[torch.bfloat16]
    if program.deterministic:
        assert all(torch.equal(*pair) for again in found[1:] for pair in zip(found[0], again, strict=True))


@pytest.mark.parametrize("groups", [3, 1])
def test_blocks_beside_those_of_one_side(groups: int) -> None:
    """Some rows and some columns are loose, all of which is one list."""
    generator, n = torch.Generator("cuda").manual_seed(groups), 1111
    attn = spdsl.compile("sparge", theta=0.12, mass=0.5)
    common = torch.randn(2, 3, 1, 64, device="cuda", generator=generator)
    leaves = []
    for heads in (3, groups, groups):
        own = torch.randn(2, heads, n, 64, device="cuda", generator=generator)
        # Neighbours have more or less in common.
        share = torch.rand(2, heads, -(-n // 64), 1, device="cuda", generator=generator).repeat_interleave(64, 2)[
            :, :, :n
        ]
        leaves.append((own + share * common[:, :heads]).bfloat16().requires_grad_())
    expected = attn.reference(*leaves)
    assert isinstance(expected, Tensor)
    d_out = torch.randn(expected.shape, device="cuda", generator=generator)
    wanted = torch.autograd.grad(expected, leaves, d_out.double())
    for _ in range(3):
        out = attn(*leaves)
        assert isinstance(out, Tensor)
        assert relative_error(out, expected) <= TOLERANCE[torch.bfloat16]
        for gradient, other in zip(torch.autograd.grad(out, leaves, d_out.bfloat16()), wanted, strict=True):
            assert relative_error(gradient, other) <= 2 * TOLERANCE[torch.bfloat16]
