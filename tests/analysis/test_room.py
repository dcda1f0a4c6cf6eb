"""How large free parameters may be before the ints of kernels exceed 32 bits."""

from __future__ import annotations

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.analysis.room import room_for_parameters
from spdsl.diagnostics import SpatError
from spdsl.semantics.free import LARGEST
from tests.library.bound import program

BLOCK = "axis blk = token by 4096"


def planned(keep: str, heads: int, target: str = "sm_90", **values: int) -> Plan:
    text = f"pattern open(w: int = 5) {{ {keep} }}"
    pattern = program(text, heads=heads, groups=heads, head_dim=64, opened=not values, **values)
    return plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), target)


@pytest.mark.parametrize(
    ("keep", "heads", "most"),
    [
        ("keep causal and q - k < w", 8, LARGEST),
        ("keep causal and q - k < 16 * w", 8, LARGEST),
        ("keep causal and q - k < w * (h + 1)", 8, LARGEST),
        ("keep causal and q - k < w * (h + 1)", 64, 1 << 24),
        ("keep causal and q - k < 16 * (16 * w)", 8, 1 << 22),
        (f"{BLOCK} keep causal and q.blk - k.blk < w", 8, 1 << 25),
        ("keep causal and (q - k) // 1000 < w", 8, 1 << 24),
    ],
)
def test_room(keep: str, heads: int, most: int) -> None:
    """About 2^31 over the multiple that a kernel holds, less what positions take."""
    room = room_for_parameters(planned(keep, heads))
    assert most // 2 <= room <= most


def test_products_that_no_kernel_holds_are_refused() -> None:
    with pytest.raises(SpatError, match="SP406"):
        planned("keep causal and q - k < w * (h + 1)", 64, w=LARGEST)
    assert planned("keep causal and q - k < w * (h + 1)", 64, target="cpu", w=LARGEST)
    assert planned("keep causal and q - k < w * (h + 1)", 16, w=LARGEST)
