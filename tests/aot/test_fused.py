"""The fused backward kernel compiles for Hopper with no GPU, fits its shared memory, and hardly spills."""

from __future__ import annotations

import os

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.codegen.aot import Binary, compile_kernels
from tests.library.bound import library

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")

SPILLS = {
    "full": 4,
    "causal": 4,
    "sliding_window": 4,
    "streaming": 8,
    "prefix_lm": 4,
    "s2": 4,
    "power": 4,
    "log_sparse": 16,
    "block_local": 4,
    "strided": 4,
    "block_diffusion": 4,
    "head_modes": 8,
    "dilated": 4,
    "bigbird": 8,
    "longformer": 4,
    # These read tables inside the mask of a tile.
    "blockrank": 24,
    "documents": 24,
}
"""The most registers of a thread that may live in memory, by pattern."""

QUICK = ("causal", "streaming", "documents", "power", "bigbird", "dilated")


def planned(name: str, dtype: str = "bf16", shape: str = "square", heads: int = 8, groups: int = 8) -> Plan:
    """A library pattern for Hopper at the head dim of the fused kernel."""
    parameters: dict[str, dict[str, object]] = {"block_diffusion": {"half": 4096}}
    pattern = library(name, heads=heads, groups=groups, head_dim=128, opened=True, **parameters.get(name, {}))
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    problem = Problem(
        pattern=pattern,
        dtype=dtype,  # type: ignore[arg-type]
        value_dim=128,
        shape=shape,  # type: ignore[arg-type]
        tables=tuple((each.name, types[each.dtype]) for each in pattern.tables),
    )
    return plan(problem, "sm_90")


def built(made: Plan) -> Binary:
    _, (binary,) = compile_kernels(made, "sm_90", ("fused",))
    assert binary.binary[:4] == b"\x7fELF"
    assert binary.shared <= 227 * 1024
    return binary


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SPILLS]
)  # fmt: skip
def test_spills(name: str) -> None:
    assert built(planned(name)).spills <= SPILLS[name]


@pytest.mark.parametrize(("dtype", "shape", "groups"), [("fp16", "offset", 2), ("bf16", "square", 1)])
def test_shapes(dtype: str, shape: str, groups: int) -> None:
    assert built(planned("streaming", dtype, shape, groups=groups)).spills <= 16


@pytest.mark.parametrize("name", ["alibi", "softcap"])
def test_patterns_without_it(name: str) -> None:
    """Logits that are not plain take the separate kernels."""
    assert planned(name).fused is None


def test_other_machines_and_sizes() -> None:
    problem = planned("causal").problem
    assert plan(problem, "sm_90").fused is not None
    assert plan(problem, "sm_100").fused is None
    assert plan(problem, "cpu").fused is None
