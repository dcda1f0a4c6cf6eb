"""The forward with specialised warps compiles for Hopper with no GPU, spills nothing, and leaves room for a second
program where it has one group."""

from __future__ import annotations

import os

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.codegen.aot import compile_kernels
from spdsl.codegen.gluon import emit_gluon
from spdsl.codegen.lower import lower
from tests.library.bound import library

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")

PARAMETERS: dict[str, dict[str, object]] = {
    "block_diffusion": {"half": 4096},
    "neighborhood_2d": {"extents": (192, 192), "window": (25, 25)},
    "neighborhood_3d": {"extents": (30, 48, 80), "window": (19, 25, 25)},
}
QUICK = ("causal", "streaming", "documents", "dilated", "bigbird", "neighborhood_3d")
MORE = (
    "full", "sliding_window", "prefix_lm", "strided", "longformer", "power", "log_sparse", "s2", "block_local",
    "block_diffusion", "alibi", "softcap", "head_modes", "neighborhood_2d",
)  # fmt: skip
SHARED = 233_472
"""Bytes of an SM; a program has 1,024 more than it asks for."""


def planned(name: str, dims: tuple[int, int], dtype: str = "bf16", shape: str = "square", groups: int = 8) -> Plan:
    """A library pattern for Hopper."""
    parameters = PARAMETERS.get(name, {})
    pattern = library(name, heads=8, groups=groups, head_dim=dims[0], opened=True, **parameters)
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    problem = Problem(
        pattern=pattern,
        dtype=dtype,  # type: ignore[arg-type]
        value_dim=dims[1],
        shape=shape,  # type: ignore[arg-type]
        tables=tuple((each.name, types[each.dtype]) for each in pattern.tables),
    )
    return plan(problem, "sm_90")


def check(made: Plan, spills: int = 0) -> None:
    _, (binary,) = compile_kernels(made, "sm_90", ("forward",))
    programs = 2 if made.forward.groups == 1 else 1
    assert made.forward.specialised
    assert binary.spills <= spills
    assert programs * (binary.shared + 1024) <= SHARED
    assert programs * binary.registers * 32 * (4 * made.forward.groups + 4) <= 1 << 16


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)  # fmt: skip
def test_spills_nothing(name: str) -> None:
    check(planned(name, (128, 128)))


@pytest.mark.parametrize(
    ("name", "dims", "dtype", "shape", "groups"),
    [
        ("streaming", (64, 64), "fp16", "offset", 2),
        ("dilated", (72, 40), "bf16", "offset", 1),
        ("bigbird", (16, 16), "bf16", "square", 4),
        ("causal", (192, 128), "bf16", "square", 8),
        ("streaming", (256, 256), "fp16", "square", 8),
    ],
)
def test_dims_and_shapes(name: str, dims: tuple[int, int], dtype: str, shape: str, groups: int) -> None:
    check(planned(name, dims, dtype, shape, groups))


def test_the_second_set_of_a_union() -> None:
    """It goes on from the output and LSE of the first, row by row."""
    first, second = planned("strided", (128, 128)).parts
    check(first)
    check(second)
    for made, resumed in ((first, False), (second, True)):
        graph = lower(made)
        text = emit_gluon(graph, next(each for each in graph.gluon if each.name == "forward")).text
        # A new maximum rescales what has been summed up; before the first tile of the first set that is nothing.
        assert text.count("m_new = ") == 2
        assert text.count("acc = acc * gl.convert_layout(alpha") == 1 + resumed


@pytest.mark.parametrize(
    ("dims", "dtype", "shape", "reason"),
    [
        ((128, 128), "fp32", "square", "tensor cores"),
        ((128, 128), "bf16", "batched", "begin and end inside"),
        ((100, 128), "bf16", "square", "16 bytes"),
        ((512, 128), "bf16", "square", "registers"),
    ],
)
def test_what_stays_in_triton(dims: tuple[int, int], dtype: str, shape: str, reason: str) -> None:
    made = planned("causal", dims, dtype, shape)
    assert not made.forward.specialised
    assert reason in made.forward.plain
