"""Softmaxes of rows of numbers that were made beforehand, in one launch.

From: scores, fp32 ``[…, columns]``, −inf where entries are absent.  To: their shares.  A NaN is absent, infinite ones
share all there is, and a row without entries has zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given

WIDTH = 1024
"""Numbers that a program looks at together."""


def shares_of(value: Tensor) -> Tensor:
    """The shares of scores, fp32 ``[…, columns]``."""
    value = value.contiguous()
    found, columns = torch.empty_like(value), value.shape[-1]
    rows = value.numel() // max(1, columns)
    given, writes = (value, found, columns), ("found",)
    start_given(share_rows, (rows, 1, 1), given, {"WIDTH": WIDTH}, writes, options_of(8), value.device)
    return found


@triton.jit
def _present(value, row, columns, at):  # type: ignore[no-untyped-def]
    """Scores of a row, −inf for what is absent."""
    score = tl.load(value + row * columns + at, mask=at < columns, other=float("-inf"))
    return tl.where(score == score, score, float("-inf"))


@triton.jit
def _power(score, largest):  # type: ignore[no-untyped-def]
    """What a score weighs beside the largest."""
    power = tl.exp(tl.where(score == largest, 0.0, score - largest))
    power = tl.where(largest == float("inf"), (score == largest).to(tl.float32), power)
    return tl.where(score == float("-inf"), 0.0, power)


@triton.jit(do_not_specialize=["columns"])  # type: ignore[untyped-decorator]
def share_rows(value, found, columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Shares of a row: its largest score, the sum beside it, and what each has of that."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    most = tl.full([WIDTH], float("-inf"), tl.float32)
    for first in range(0, columns, WIDTH):
        most = tl.maximum(most, _present(value, row, columns, first + place))
    largest = tl.max(most, 0)
    sums = tl.zeros([WIDTH], tl.float32)
    for first in range(0, columns, WIDTH):
        sums += _power(_present(value, row, columns, first + place), largest)
    total = tl.sum(sums, 0)
    total = tl.where(total > 0.0, total, 1.0)
    for first in range(0, columns, WIDTH):
        at = first + place
        share = _power(_present(value, row, columns, at), largest) / total
        tl.store(found + row * columns + at, share, mask=at < columns)
