"""Kernels of selections are built for GPUs that need not be present, and fit: no spills in the loops that count."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

import spdsl
from spdsl.codegen.binaries import options_of
from spdsl.codegen.chains.columns import belongs_to_columns
from spdsl.codegen.chains.emit import emit_chain, emit_choose
from spdsl.codegen.chains.lower import Chain, ChainKernel, lower_chain
from spdsl.codegen.chains.parts import LONG, Terms
from spdsl.codegen.load import load
from spdsl.semantics.graph import Mark, Score, Select
from spdsl.semantics.nodes import BoundPattern

errors = pytest.importorskip("triton.runtime.errors")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
PARAMETERS: dict[str, dict[str, object]] = {"vsa": {"frames": 8, "height": 32, "width": 32}}
NAMES = (
    "moba", "nsa", "infllm_v2", "seer_attention", "vsa", "quest", "dsa", "xattention", "dma", "llsa", "hip",
    "flashprefill", "vertical_slash", "dhsa",
)  # fmt: skip
QUICK = (
    ("infllm_v2", "sm_90"),
    ("nsa", "sm_90"),
    ("quest", "gfx942"),
    ("dma", "sm_100"),
    ("hip", "sm_90"),
    ("vertical_slash", "gfx942"),
)
TERMS = {name: Terms(queries=3, keys=3) for name in ("vsa", "seer_attention", "dhsa")} | {
    "llsa": LONG,
    "hip": Terms(queries=1, keys=1),
}
"""Where queries are means or gates, of 32 bits; one pattern as it is for tensors of 32 bits; and keys as they are."""


def chain_of(name: str) -> Chain:
    """The kernels of a library pattern, 16 heads of two groups, head dim 128."""
    pattern = spdsl.compile(name, **PARAMETERS.get(name, {})).bind(16, 2, 128)  # type: ignore[arg-type]
    assert pattern.graph is not None
    *_, chosen = (stage.name for stage in pattern.graph.stages if isinstance(stage, Select | Mark))
    return chain_for(pattern, chosen, TERMS.get(name, Terms(queries=1, keys=2)))


def chain_for(pattern: BoundPattern, chosen: str, terms: Terms) -> Chain:
    """The kernels of one stage, whose vectors are of so many terms."""
    assert pattern.graph is not None
    return lower_chain(pattern, chosen, tuple((s.name, terms) for s in pattern.graph.stages if isinstance(s, Score)))


def built(function: Any, target: str, given: dict[str, Any], types: dict[str, str], options: dict[str, int]) -> Any:
    """A kernel compiled for arguments of these types; pointers and strides are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = list(function.arg_names)
    signature = {name: "constexpr" if name in given else types.get(name, "i32") for name in names}
    wide = [
        n
        for n, kind in signature.items()
        if kind.startswith("*") or n.endswith(("_b", "_r", "_h", "_g", "_t", "_size", "pitch"))
    ]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in wide if name not in given}
    gpu = GPUTarget("hip", target, 64) if target[0] == "g" else GPUTarget("cuda", int(target[3:]), 32)
    source = ASTSource(fn=function, signature=signature, constexprs=given, attrs=attributes)
    return compile(source, target=gpu, options=options)


def types_of(kernel: ChainKernel) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of pointers and floats, and what is constant."""
    given = kernel.arguments
    types = {"keys": "*i32", "row_ends": "*i32", "sums": "*fp32"} | {name: "fp32" for name, _ in given.factors}
    types |= {sums.name: "*fp32" for sums in given.sums} | {f"t_{name}": "*fp32" for name, _ in given.tables}
    types |= {"lists": "*i32"} | {name: "*fp32" for name, _ in (*given.arrays, *given.pairs)}
    types |= {name: "*i64" for name, _ in given.reduced} | {"t_cut": "*i32"}
    types |= {"left_here": "*fp32"} if kernel.role == "pairs" else {}
    fixed: dict[str, Any] = {}
    for each in given.vectors:
        types[each.name] = "*bf16"
        fixed |= {each.name.upper(): 128, f"{each.name}_f": 1}
    return types, fixed


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=() if (name, target) in QUICK else pytest.mark.slow)
        for name in NAMES
        for target in SHARED
    ],
)
def test_built(name: str, target: str) -> None:
    from spdsl.runtime import among, sweeps, tilings

    chain = chain_of(name)
    module = load(emit_chain(chain, name))
    for kernel in chain.kernels:
        types, fixed = types_of(kernel)
        long = TERMS.get(name) == LONG
        if long:
            types |= {each.name: "*fp32" for each in kernel.arguments.vectors}
        tiling = tilings.tiling_of(kernel, long=long, few=False)
        if chain.among is not None or chain.queries:
            columns, warps, stages = among.SEARCHED if chain.queries else among.SCORED
            tiling = tilings.Tiling(rows=16, columns=columns, warps=warps, stages=stages)
        if kernel.role == "sweep":
            if target != "sm_90":
                continue  # rows are searched there
            tiling, types = tilings.SWEPT, types | dict.fromkeys(sweeps.WRITTEN, "*i32")
        while True:
            given = {**fixed, "BLOCK_R": tilings.rows_of(kernel, tiling)}
            given["BLOCK_C"] = tilings.columns_of(kernel, tiling)
            options = options_of(tiling.warps, tiling.stages, tiling.registers if target[0] == "s" else None)
            # The run time takes a smaller tile where one does not fit, as here.
            with contextlib.suppress(errors.PTXASError):
                made = built(getattr(module, kernel.name), target, given, types, options)
                if made.metadata.shared <= SHARED[target]:
                    break
            tiling = tilings.SMALLER[tiling]
        assert made.asm["hsaco" if target[0] == "g" else "cubin"]


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(each, marks=pytest.mark.slow) for each in SHARED if each != "sm_90")]
)
@pytest.mark.parametrize("over", ["columns", "distances"])
def test_reductions_over_queries_are_built(over: str, target: str) -> None:
    from spdsl.runtime import tilings

    pattern = spdsl.compile("vertical_slash").bind(16, 2, 128)
    assert pattern.graph is not None
    stages = [each for each in pattern.graph.stages if belongs_to_columns(each) and each.dtype == "float"]
    chain = chain_for(pattern, stages[over == "distances"].name, Terms(queries=1, keys=1))
    kernel = chain.kernels[-1]
    assert kernel.role == over
    types, fixed = types_of(kernel)
    tiling = tilings.tiling_of(kernel, long=False, few=False)
    function = getattr(load(emit_chain(chain, "vertical_slash")), kernel.name)
    while True:
        given = {**fixed, "BLOCK_R": tiling.rows, "BLOCK_C": tiling.columns}
        made = built(function, target, given, {**types, "left_here": "*fp32"}, options_of(tiling.warps, tiling.stages))
        if made.metadata.shared <= SHARED[target]:
            break
        tiling = tilings.SMALLER[tiling]


@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("by", "each"), [("count", 8), *(pytest.param(by, 0, marks=pytest.mark.slow) for by in ("count", "mass"))]
)
def test_choosing_is_built(by: str, each: int, target: str) -> None:
    given = {
        "BY": by,
        "FIND": True,
        "WRITE": True,
        "ONE": True,
        "ROWS": 1,
        "WIDTH": 2048,
        "amount_stride": 1,
        "BLOCK_R": 64,
    }
    types = {
        "keys": "*i32",
        "amounts": "*i32" if by == "count" else "*fp64",
        "cuts": "*i32",
        "lists": "*i32",
        "row_ends": "*i32",
        "outer": "*i32",
    }
    made = built(load(emit_choose(each)).choose, target, given, types, options_of(4))
    assert made.metadata.shared <= SHARED[target]


@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", ["mass", pytest.param("count", marks=pytest.mark.slow)])
def test_cuts_of_long_rows_are_built(by: str, target: str) -> None:
    from spdsl.runtime import cut_kernels

    types = dict.fromkeys(("keys", "cuts", "counts", "arrived", "found"), "*i32")
    types |= {"sums": "*fp64", "amounts": "*i32" if by == "count" else "*fp64"}
    shape = {name: getattr(cut_kernels, name) for name in ("BITS", "TILE", "TILES")}
    shape |= {"BY": by, "SIGNED": False, "TOGETHER": target[0] == "s", "PARTS": 32}
    for function, given, warps in (
        (cut_kernels.seek_cuts, shape, cut_kernels.WARPS),
        (cut_kernels.count_chosen, {"BY": by, "WIDTH": 1024}, 8),
        (cut_kernels.share_ties, {"WIDTH": cut_kernels.RANKED}, 8),
    ):
        made = built(function, target, given, types, options_of(warps))
        assert made.metadata.shared <= SHARED[target]
