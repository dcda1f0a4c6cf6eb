"""The kernel of dK and dV whose queries a warp copies compiles for Hopper with no GPU, and fits twice into an SM."""

from __future__ import annotations

import os

import pytest

from spdsl.codegen.aot import compile_kernels
from tests.analysis.test_picks import planned
from tests.aot.test_fused import SPARE

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "16 heads": ("causal and chosen", {}),
    "after a window": ("causal and (q - k < 100 or chosen)", {"heads": 32, "groups": 2}),
    "runs, and blocks of several tiles": ("causal and chosen", {"of": "g, q.run", "heads": 8, "block": 128}),
    "fewer queries": ("causal and chosen", {"of": "g, q.run", "heads": 64, "shape": "offset"}),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name > "b" else ()) for name in CASES])
def test_two_programs_share_an_sm(name: str) -> None:
    keep, settings = CASES[name]
    part = planned(keep, **settings).parts[-1]  # type: ignore[arg-type]
    assert part.dkdv.specialised
    _, (binary,) = compile_kernels(part, "sm_90", ("dkdv",))
    assert binary.binary[:4] == b"\x7fELF"
    assert binary.shared <= 113 * 1024
    assert binary.registers <= 128
    assert binary.spills <= 4 + SPARE
