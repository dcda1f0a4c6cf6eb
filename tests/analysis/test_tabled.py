"""Parts of a bias that cost much and depend on the key alone: tables that are filled before the kernels start."""

from __future__ import annotations

import pytest
import torch

import spdsl
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem

WEIGHTS = """pattern weights() {
  axis blk = token by 8
  input slope: float[h]
  input own: float[token]
  input kind: int[token]
  keep causal
  bias %s
}
"""


def planned(bias: str, *, few: int = 0) -> Plan:
    pattern = spdsl.compile(spdsl.loads(WEIGHTS % bias)).bind(2, 2, 16)
    tables = tuple((table.name, "float32" if table.dtype == "float" else "int32") for table in pattern.tables)
    return plan(Problem(pattern=pattern, dtype="bf16", value_dim=16, shape="square", tables=tables, few=few), "sm_90")


@pytest.mark.parametrize(
    ("bias", "axes"),
    [
        ("log(k + 1)", ["k"]),
        ("-slope[h] * sqrt(k.blk + 1)", ["k.blk"]),
        ("log(kind[k] + 1) + log(k.blk.size)", ["k", "k.blk"]),
        ("log(own[k])", []),  # it may want a gradient
        ("log(q - k + 1)", []),
        ("log(q + 1)", []),
        ("-slope[h] * (k + 1)", []),
    ],
)
def test_what_keys_have_by_themselves_is_a_table(bias: str, axes: list[str]) -> None:
    found = planned(bias)
    assert [axis.name for each in found.stages for axis in each.axes] == axes
    assert [each.value.dtype for each in found.stages] == ["float"] * len(axes)
    # A step of generation meets each key once.
    assert planned(bias, few=16).stages == ()


def test_tables_of_keys_hold_the_numbers() -> None:
    """Outputs and gradients, also where queries begin late and keys end inside of a block."""
    bias = "-slope[h] * sqrt(k.blk + 1) + log(k.blk.size) - log(kind[k] + 1) + own[k]"
    pattern = spdsl.loads(WEIGHTS % bias)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator) for n in (30, 61, 61))
    tables = {
        "slope": torch.rand(2, generator=generator),
        "own": torch.randn(61, generator=generator),
        "kind": torch.arange(61).int() % 5,
    }
    leaves = [x.requires_grad_() for x in (q, k, v, tables["slope"], tables["own"])]
    attn = spdsl.compile(pattern)
    d_out = torch.randn(q.shape, generator=generator)
    made = attn(q, k, v, **tables)
    known = attn.reference(q, k, v, **tables)
    assert torch.allclose(made, known.float(), atol=2e-5)
    for one, other in zip(
        torch.autograd.grad(made, leaves, d_out), torch.autograd.grad(known, leaves, d_out.to(known)), strict=True
    ):
        assert torch.allclose(one, other.float(), atol=2e-4)
