"""The fused backward kernel compiles for Hopper with no GPU, fits its shared memory, and hardly spills."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.codegen.aot import Binary, compile_kernels
from tests.library.bound import library, program

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")

NAMES = (
    "full", "causal", "sliding_window", "streaming", "prefix_lm", "s2", "power", "log_sparse", "block_local", "strided",
    "block_diffusion", "head_modes", "dilated", "bigbird", "longformer", "blockrank", "documents", "neighborhood_2d",
    "neighborhood_3d",
)  # fmt: skip
SPILLS = {
    # These read tables inside the mask of a tile.
    "blockrank": 24,
    "documents": 24,
    "neighborhood_3d": 8,
}
"""The most registers of a thread that may live in memory, by pattern; others spill none."""

ORDERED = {"causal": 8, "streaming": 12, "bigbird": 8, "neighborhood_3d": 24}
"""As `SPILLS`, where warps add in order."""

NARROW = {"causal": 4, "streaming": 12, "bigbird": 8, "neighborhood_3d": 4, "documents": 48}
"""As `SPILLS`, at head dim 64, where a tile has twice as many queries, and as many numbers of theirs."""

SPARE = 0 if version("triton").startswith("3.6.") else 6
"""More, with the assembler of a newer Triton: the limits are those of 3.6, with which the kernels have run."""

QUICK = ("causal", "streaming", "documents", "bigbird", "dilated", "neighborhood_3d")
QUICK_MORE = ("causal",)


PARAMETERS: dict[str, dict[str, object]] = {
    "block_diffusion": {"half": 4096},
    "neighborhood_2d": {"extents": (192, 192), "window": (25, 25)},
    "neighborhood_3d": {"extents": (30, 48, 80), "window": (19, 25, 25)},
}


def planned(
    name: str, dtype: str = "bf16", shape: str = "square", groups: int = 8, dims: tuple[int, int] = (128, 128)
) -> Plan:
    """A library pattern for Hopper."""
    pattern = library(name, heads=8, groups=groups, head_dim=dims[0], opened=True, **PARAMETERS.get(name, {}))
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    problem = Problem(
        pattern=pattern,
        dtype=dtype,  # type: ignore[arg-type]
        value_dim=dims[1],
        shape=shape,  # type: ignore[arg-type]
        tables=tuple((each.name, types[each.dtype]) for each in pattern.tables),
    )
    return plan(problem, "sm_90")


def built(made: Plan, kind: str = "fused") -> Binary:
    _, (binary,) = compile_kernels(made, "sm_90", (kind,))
    assert binary.binary[:4] == b"\x7fELF"
    assert binary.shared <= 227 * 1024
    return binary


def slow(names: Iterable[str], quick: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow(NAMES, QUICK))
def test_spills(name: str) -> None:
    assert built(planned(name)).spills <= SPILLS.get(name, 0) + SPARE


@pytest.mark.parametrize("name", slow(ORDERED, QUICK_MORE))
def test_spills_where_sums_have_an_order(name: str) -> None:
    assert built(planned(name), "ordered").spills <= ORDERED[name] + SPARE
    assert not built(planned(name), "touched").spills


@pytest.mark.parametrize("name", slow(NARROW, QUICK_MORE))
def test_spills_of_narrow_heads(name: str) -> None:
    assert built(planned(name, dims=(64, 64))).spills <= NARROW[name] + SPARE


@pytest.mark.parametrize("dims", [(72, 40), (16, 128)])
def test_dims(dims: tuple[int, int]) -> None:
    assert built(planned("sliding_window", dims=dims)).spills == 0


@pytest.mark.parametrize(("dtype", "shape", "groups"), [("fp16", "offset", 2), ("bf16", "square", 1)])
def test_shapes(dtype: str, shape: str, groups: int) -> None:
    assert built(planned("streaming", dtype, shape, groups=groups)).spills <= 16


@pytest.mark.parametrize("name", ["alibi", "softcap"])
def test_patterns_without_it(name: str) -> None:
    """Logits that are not plain take the separate kernels."""
    assert planned(name).fused is None


PICKED = """
pattern picked() {
  axis blk = token by 64
  input chosen: bool[h, q.blk, k.blk]
  keep causal and chosen
}
"""


def test_two_programs_of_one_group_share_a_multiprocessor() -> None:
    """Of blocks of 64 that each head has picked for itself."""
    pattern = program(PICKED, heads=4, groups=2, head_dim=64)
    listed = tuple(replace(table, listed=True) for table in pattern.tables)
    problem = Problem(
        pattern=replace(pattern, tables=listed),
        dtype="bf16",
        value_dim=64,
        shape="square",
        tables=(("chosen", "int32"),),
    )
    binary = built(plan(problem, "sm_90"))
    assert (binary.spills, binary.registers) == (0, 128)  # of a thread, before warps share them out
    assert 2 * binary.shared <= 227 * 1024


def test_other_machines_and_sizes() -> None:
    problem = planned("causal").problem
    assert plan(problem, "sm_90").fused is not None
    assert plan(problem, "sm_100").fused is None
    assert plan(problem, "cpu").fused is None
    assert planned("causal", dims=(192, 128)).fused is None  # dK and dV do not fit the registers
    assert planned("causal", dims=(100, 128)).fused is None  # nor rows the copy engine
