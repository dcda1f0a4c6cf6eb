"""Sums and means of all keys up to each, by kernels: several programs share a head, a part of its keys each.

From: vectors of keys.  To: the sum, or the mean, of those before each position, and of all.  First parts are summed up,
then each goes on from those before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

_PARTS = 64
"""Parts of a head, at most, a power of two."""

_ROWS = 64
"""Keys that a program looks at together."""

_FEATURES = 64
"""Features of a program, at most."""


@triton.jit  # type: ignore[untyped-decorator]
def _own(n, width, PARTS: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The head, the part and the features of a program, and its keys: from one up to another."""
    slices = tl.cdiv(width, FEATURES)
    part = tl.program_id(0) % PARTS
    owner = (tl.program_id(0) // PARTS // slices).to(tl.int64)
    feature = tl.program_id(0) // PARTS % slices * FEATURES + tl.arange(0, FEATURES)
    share = tl.cdiv(tl.cdiv(n, PARTS), ROWS) * ROWS
    return owner, part, feature, part * share, tl.minimum((part + 1) * share, n)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(x, owner, heads, x_b, x_h, x_n, first, end, feature, width, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some keys of a head, in fp32; zeros past the end."""
    row = first + tl.arange(0, ROWS)
    at = owner // heads * x_b + owner % heads * x_h + row.to(tl.int64)[:, None] * x_n + feature[None, :]
    return tl.load(x + at, mask=(row < end)[:, None] & (feature < width)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def add_parts(  # type: ignore[no-untyped-def]
    x,  # [batch, heads, n, width]
    x_b,
    x_h,
    x_n,
    sums,  # [owners, PARTS, width], fp64
    n,
    width,
    heads,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """The sum of each part."""
    owner, part, feature, begin, end = _own(n, width, PARTS, ROWS, FEATURES)
    total = tl.zeros([FEATURES], tl.float64)
    for first in range(begin, end, ROWS):
        total += tl.sum(_tile(x, owner, heads, x_b, x_h, x_n, first, end, feature, width, ROWS), 0).to(tl.float64)
    tl.store(sums + (owner * PARTS + part) * width + feature, total, mask=feature < width)


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def add_up_to(  # type: ignore[no-untyped-def]
    x,  # [batch, heads, n, width]
    x_b,
    x_h,
    x_n,
    sums,  # [owners, PARTS, width], fp64
    found,  # [owners, n + 1, width], fp32
    n,
    width,
    heads,
    MEAN: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """What stands before each key of a part, and behind the last."""
    owner, part, feature, begin, end = _own(n, width, PARTS, ROWS, FEATURES)
    parts = tl.arange(0, PARTS)
    inside = (parts < part)[:, None] & (feature < width)[None, :]
    at = sums + (owner * PARTS + parts[:, None]) * width + feature[None, :]
    before = tl.sum(tl.load(at, mask=inside, other=0.0), 0)
    to = found + owner * (n + 1) * width + feature
    tl.store(to, tl.zeros([FEATURES], tl.float32), mask=(feature < width) & (part == 0))
    for first in range(begin, end, ROWS):
        tile = _tile(x, owner, heads, x_b, x_h, x_n, first, end, feature, width, ROWS)
        up_to = before[None, :] + tl.cumsum(tile, 0).to(tl.float64)
        row = first + tl.arange(0, ROWS)
        if MEAN:
            up_to = up_to / (row + 1).to(tl.float64)[:, None]
        mask = (row < end)[:, None] & (feature < width)[None, :]
        tl.store(to + (row + 1).to(tl.int64)[:, None] * width, up_to.to(tl.float32), mask=mask)
        before += tl.sum(tile, 0).to(tl.float64)


def up_to_each(x: Tensor, *, mean: bool) -> Tensor:
    """Of vectors ``[batch, heads, n, width]`` the sum or mean of those before each position, fp32
    ``[batch, heads, n + 1, width]``; of none, zeros."""
    x = x if x.stride(3) == 1 else x.contiguous()
    batch, heads, n, width = x.shape
    found = torch.empty(batch, heads, n + 1, width, dtype=torch.float32, device=x.device)
    parts = min(_PARTS, 1 << (max(1, -(-n // _ROWS)) - 1).bit_length())
    sums = torch.empty(batch, heads, parts, width, dtype=torch.float64, device=x.device)
    features = min(_FEATURES, max(1, 1 << (width - 1).bit_length()))
    constants = {"PARTS": parts, "ROWS": _ROWS, "FEATURES": features}
    grid = (batch * heads * parts * -(-width // features), 1, 1)
    given = (x, *x.stride()[:3], sums)
    start_given(add_parts, grid, (*given, n, width, heads), constants, ("sums",), options_of(4), x.device)
    arguments = (*given, found, n, width, heads)
    start_given(add_up_to, grid, arguments, {"MEAN": mean, **constants}, ("found",), options_of(4), x.device)
    return found
