"""Kernels compile for every target with no GPU, and do not spill."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem, TableGradient
from spdsl.codegen.aot import TARGETS, Binary, compile_kernels
from spdsl.codegen.emit import HELPERS
from spdsl.diagnostics import SpatError
from spdsl.planning import element
from spdsl.semantics.nodes import Const
from spdsl.semantics.softmaxes import softmax_pattern
from tests.library.bound import library
from tests.runtime.build import H, K, Q, load, op, table
from tests.runtime.build import plan as by_hand

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")

PARAMETERS: dict[str, dict[str, object]] = {
    "block_diffusion": {"half": 4096},
    "neighborhood_1d": {"extents": (8192,), "window": (255,)},
    "neighborhood_2d": {"extents": (64, 128), "window": (13, 13)},
    "neighborhood_3d": {"extents": (16, 32, 32), "window": (5, 7, 7)},
    "sliding_tile_3d": {"extents": (30, 48, 80)},
    "radial": {"frames": 20, "frame_tokens": 1024},
}
FEW = ("causal", "streaming", "documents", "alibi")
MANY = (
    "full", "sliding_window", "prefix_lm", "block_local", "dilated", "strided", "longformer", "bigbird", "power",
    "log_sparse", "s2", "block_diffusion", "blockrank", "neighborhood_1d", "neighborhood_2d", "neighborhood_3d",
    "sliding_tile_3d", "radial", "softcap", "head_modes",
)  # fmt: skip
DTYPES = ("bf16", "fp16", "fp32")
DIMS = (64, 128, 256)
MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024 + 5 * 1024, "sm_100": 232448, "gfx942": 64 * 1024}


def built(name: str, target: str, dtype: str, dim: int, shape: str = "square") -> tuple[Binary, ...]:
    """All kernels of a library pattern, with gradients for its float inputs."""
    pattern = library(name, heads=8, groups=8, head_dim=dim, opened=True, **PARAMETERS.get(name, {}))
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    problem = Problem(
        pattern=pattern,
        dtype=dtype,  # type: ignore[arg-type]
        value_dim=dim,
        shape=shape,  # type: ignore[arg-type]
        tables=tuple((each.name, types[each.dtype]) for each in pattern.tables),
        gradients=tuple(each.name for each in pattern.tables if each.dtype == "float"),
    )
    binaries = tuple(each for part in plan(problem, target).parts for each in compile_kernels(part, target)[1])
    for binary in binaries:
        assert binary.binary[:4] == b"\x7fELF"
        assert binary.shared <= MEMORY[target], (binary.name, binary.shared)
    return binaries


def combinations() -> list[object]:
    """Every pattern, target, type and head dim.  Those not marked slow hold every pattern for Hopper and for one target
    more, some for all, at types and head dims that go round."""
    found: list[object] = []
    others = [target for target in TARGETS if target != "sm_90"]
    for i, name in enumerate((*FEW, *MANY)):
        for j, target in enumerate(TARGETS):
            here = name in FEW or target in ("sm_90", others[i % len(others)])
            for d, dtype in enumerate(DTYPES):
                for e, dim in enumerate(DIMS):
                    quick = here and (d, e) == ((i + j) % 3, (i + 2 * j) % 3)
                    marks = () if quick else (pytest.mark.slow,)
                    found.append(pytest.param(name, target, dtype, dim, marks=marks))
    return found


@pytest.mark.parametrize(("name", "target", "dtype", "dim"), combinations())
def test_combinations(name: str, target: str, dtype: str, dim: int) -> None:
    names = [binary.name for binary in built(name, target, dtype, dim) if not binary.name.startswith("intervals_")]
    assert names[:4] == ["forward", "delta", "dq", "dkdv"]


@pytest.mark.parametrize(
    ("name", "target", "dtype", "dim", "shape"),
    [
        ("streaming", "sm_80", "fp16", 128, "offset"),
        ("documents", "sm_100", "fp16", 64, "batched"),
        ("alibi", "gfx942", "fp32", 40, "square"),
        ("radial", "sm_80", "bf16", 96, "square"),
    ],
)
def test_shapes_and_odd_dims(name: str, target: str, dtype: str, dim: int, shape: str) -> None:
    built(name, target, dtype, dim, shape)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MANY)]
)  # fmt: skip
def test_spills(name: str, dim: int) -> None:
    spills = {binary.name: binary.spills for binary in built(name, "sm_90", "bf16", dim)}
    assert max(spills.values()) <= 16, spills


def test_unknown_target() -> None:
    with pytest.raises(SpatError, match="SP502"):
        compile_kernels(
            plan(Problem(pattern=library("causal"), dtype="bf16", value_dim=16, shape="square"), "sm_90"), "sm_1"
        )


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_gradients_and_helpers(target: str) -> None:
    """Sinks, sums by distance, and every function that a generated file may hold."""
    distance = op("min", op("abs", op("sub", Q, K)), 50)
    lean, rest = load("lean", H, distance, dtype="float"), load("rest", H, Q, dtype="float")
    found = (
        TableGradient(table="lean", of="bias", factor=Const(value=1.0), indices=(H, distance), by="distance"),
        TableGradient(table="rest", of="sink_logit", factor=Const(value=1.0), indices=(H, Q), by="query"),
    )
    parts = [
        op("isqrt", Q),
        op("bitlen", op("sub", Q, K)),
        op("mod", op("sub", K, Q), 3),
        op("pow", op("sub", Q, K), 3),
    ]
    total = op("floor", op("pow", op("div", Q, 7), 0.5))
    for part in parts:
        total = op("add", total, part)
    chosen = by_hand(
        op("or", op("eq", op("mod", total, 2), 0), op("is_pow2", op("sub", Q, K))),
        bias=lean,
        softcap=3.0,
        sink_logit=rest,
        tables=(table("lean", "float", "h", "100"), table("rest", "float", "h", "q")),
        gradients=found,
        blocks=(32, 32),
        heads=2,
        groups=2,
    )
    # As in the default tiles for gfx942: Triton 3.6 does not translate some pipelined kernels for it.
    single = {kind: replace(getattr(chosen, kind), stages=1) for kind in ("forward", "dq", "dkdv")}
    source, binaries = compile_kernels(replace(chosen, problem=replace(chosen.problem, dtype="fp16"), **single), target)
    assert [binary.name for binary in binaries] == ["forward", "delta", "dq", "dkdv", "distances"]
    # Walks by distance alone search for the first of them.
    assert all(f"def {name}(" in source.text for name in HELPERS if name not in ("halved", "in_list"))


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_lists_are_searched(target: str) -> None:
    """A selection of blocks of 24 keys, which neither fill tiles nor are filled by them."""
    pattern = library("quest", heads=4, groups=2, head_dim=64, page=24)
    assert pattern.graph is not None
    softmax = softmax_pattern(pattern, pattern.graph.attentions[0].name)
    types = tuple((each.name, element(each)) for each in softmax.tables)
    problem = Problem(pattern=softmax, dtype="bf16", value_dim=64, shape="offset", tables=types)
    source, binaries = compile_kernels(plan(problem, target), target, ("forward", "dkdv"))
    assert "def in_list(" in source.text
    assert [binary.name for binary in binaries] == ["forward", "dkdv"]


@pytest.mark.parametrize("page", [16, 64])
def test_keys_in_pages_are_fetched_as_far_ahead(page: int) -> None:
    """The numbers of pages come first, and are not to take the room of keys that are on their way."""
    pattern = library("causal", heads=32, groups=8, head_dim=128, opened=True)
    problem = Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="batched", few=16)
    sizes = []
    for one in (problem, replace(problem, page=page)):
        _, (forward,) = compile_kernels(plan(one, "sm_90"), "sm_90", ("forward",))
        sizes.append(forward.shared)
    assert sizes[0] <= sizes[1] <= sizes[0] + 1024


def picked(name: str, heads: int, groups: int, dim: int, target: str, dtype: str = "bf16") -> tuple[Binary, ...]:
    """The kernels of the last softmax of a pattern that reads a selection."""
    pattern = library(name, heads=heads, groups=groups, head_dim=dim)
    assert pattern.graph is not None
    made = [softmax_pattern(pattern, stage.name) for stage in pattern.graph.attentions]
    softmax = [each for each in made if any(table.listed for table in each.tables)][-1]
    types = tuple((each.name, element(each)) for each in softmax.tables)
    problem = Problem(pattern=softmax, dtype=dtype, value_dim=dim, shape="square", tables=types)  # type: ignore[arg-type]
    binaries = compile_kernels(plan(problem, target).parts[-1], target)[1]
    for binary in binaries:
        assert binary.shared <= MEMORY[target], (binary.name, binary.shared)
    return binaries


@pytest.mark.parametrize(
    ("name", "heads", "groups", "dim"),
    [
        ("nsa", 64, 4, 128),
        pytest.param("infllm_v2", 8, 2, 128, marks=pytest.mark.slow),
        ("nsa", 6, 2, 64),
        ("dsa", 64, 1, 128),
        pytest.param("dsa", 16, 1, 128, marks=pytest.mark.slow),
        pytest.param("moba", 4, 4, 128, marks=pytest.mark.slow),
        pytest.param("nsa", 128, 1, 128, marks=pytest.mark.slow),
        pytest.param("nsa", 16, 1, 256, marks=pytest.mark.slow),
    ],
)
def test_kernels_of_picks_do_not_spill(name: str, heads: int, groups: int, dim: int) -> None:
    spills = {binary.name: binary.spills for binary in picked(name, heads, groups, dim, "sm_90")}
    assert set(spills) >= {"forward", "dq", "dkdv", "dkdv_combine"}
    assert max(spills.values()) <= 16, spills


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("sm_80", "fp16"), ("sm_100", "bf16"), ("gfx942", "bf16"), pytest.param("sm_90", "fp32", marks=pytest.mark.slow)],
)
def test_kernels_of_picks(target: str, dtype: str) -> None:
    picked("nsa", 16, 2, 128, target, dtype)
