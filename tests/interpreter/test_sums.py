"""The first kernel of a backward pass: zeros for the sums of dQ where a fused kernel follows, gradients of the LSE."""

from __future__ import annotations

import math

import pytest
import torch

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import Value, call_values, loaded, tensor_values
from tests.library.bound import program

BATCH, HEADS, ROWS = 2, 4, 150


@pytest.mark.parametrize(("dim", "fuses", "trains_lse"), [(64, True, True), (72, True, False), (64, False, False)])
def test_first_kernel(dim: int, fuses: bool, trains_lse: bool) -> None:
    pattern = program("pattern it() { keep causal }", heads=HEADS, groups=2, head_dim=dim)
    planned = plan(Problem(pattern=pattern, dtype="bf16", value_dim=dim, shape="square"), "sm_90")
    assert planned.fused is not None
    q, out, d_out = (torch.randn(BATCH, HEADS, ROWS, dim).bfloat16() for _ in range(3))
    k = torch.randn(BATCH, 2, ROWS, dim).bfloat16()
    lse, d_lse = torch.randn(2, BATCH, HEADS, ROWS)
    lse[0, 1, 3] = -math.inf  # a row without keys
    call = Call(plan=planned, q=q, k=k, v=k, tables={})
    sums = torch.full((BATCH, HEADS, ROWS + 10, dim), math.nan)
    lse2, delta = torch.full((2, BATCH, HEADS, ROWS), math.nan)
    values: dict[str, Value] = {
        **tensor_values(O=out, dO=d_out),
        "LSE": lse,
        "dLSE": d_lse,
        "dlse_rows": ROWS if trains_lse else 0,
        "LSE2": lse2,
        "Delta": delta,
        "Sums": sums,
        "sums_rows": ROWS + 10 if fuses else 0,
        **call_values(call, "delta"),
    }
    loaded(planned).launch("delta", call, ROWS, HEADS, BATCH, values)
    expected = (out.float() * d_out.float()).sum(-1) - (d_lse if trains_lse else 0.0)
    torch.testing.assert_close(delta, expected.masked_fill(lse == -math.inf, 0.0))
    torch.testing.assert_close(lse2, (lse / math.log(2)).masked_fill(lse == -math.inf, math.inf))
    assert (sums[:, :, :ROWS] == 0).all() if fuses else sums.isnan().all()
