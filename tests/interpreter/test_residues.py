"""Kernels that walk residue classes, in Triton's interpreter, against the float64 reference: output and all gradients.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import spdsl
from tests.library.cases import Case, Inputs, Sizes
from tests.library.compare import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def _floats(**shapes: Callable[[Sizes], tuple[int, ...]]) -> Callable[[Sizes, torch.Generator], Inputs]:
    """Inputs drawn at random in the shapes that the sizes of a call give."""

    def make(sizes: Sizes, generator: torch.Generator) -> Inputs:
        return {name: torch.randn(shape(sizes), generator=generator) for name, shape in shapes.items()}

    return make


@dataclass(frozen=True, kw_only=True)
class Program:
    """The body of a pattern and its float inputs, which all get gradients."""

    text: str
    inputs: Callable[[Sizes, torch.Generator], Inputs] = lambda sizes, generator: {}
    trained: tuple[str, ...] = ()


PROGRAMS = {
    "window": Program(text="keep causal and q - k < 70 and (q - k) % 4 == 0"),
    "shift": Program(text="keep causal and q - k < 90 and (q - k) % 3 == 2  softcap 5.0"),
    "both sides": Program(text="keep abs(q - k) <= 60 and q % 5 == k % 5"),
    "future": Program(text="keep q < k and (q - k) % 6 == 1"),
    "whole class": Program(text="keep (q - k) % 3 == 1"),
    "by head": Program(text="keep causal and q % 3 == h % 3 and k % 3 == h % 3"),
    "blocks": Program(text="axis blk = token by 48\n  keep q.blk == k.blk and (q - k) % 2 == 0"),
    "sink": Program(
        text="input rest: float[h]\n  keep causal and (q - k) % 4 == 1  sink_logit rest[h]",
        inputs=_floats(rest=lambda sizes: (sizes.heads,)),
        trained=("rest",),
    ),
    "slope": Program(
        text="input slope: float[h]\n  keep causal and (q - k) % 4 == 0  bias slope[h] * (k - q) / 64",
        inputs=_floats(slope=lambda sizes: (sizes.heads,)),
        trained=("slope",),
    ),
    "by key": Program(
        text="input lean: float[h, token]\n  keep causal and (q - k) % 3 == 1  bias lean[h, k]",
        inputs=_floats(lean=lambda sizes: (sizes.heads, sizes.n)),
        trained=("lean",),
    ),
    "by query": Program(
        text="input lean: float[h, token]\n  keep causal and (q - k) % 3 == 0  bias lean[h, q] * (k % 2)",
        inputs=_floats(lean=lambda sizes: (sizes.heads, sizes.n)),
        trained=("lean",),
    ),
    "by distance": Program(
        text="input lean: float[h, 64]\n  keep causal and (q - k) % 3 == 2  bias lean[h, min(q - k, 63)]",
        inputs=_floats(lean=lambda sizes: (sizes.heads, 64)),
        trained=("lean",),
    ),
    "by pair": Program(
        text="input lean: float[h, token, token]\n  keep causal and (q - k) % 3 == 0  bias lean[h, q, k]  softcap 8.0",
        inputs=_floats(lean=lambda sizes: (sizes.heads, sizes.n, sizes.n)),
        trained=("lean",),
    ),
}


def case(name: str, folder: Path) -> Case:
    program = PROGRAMS[name]
    path = folder / "classes.spat"
    path.write_text(f"pattern classes() {{\n  {program.text}\n}}\n")
    return Case(name=str(path), inputs=program.inputs, trained=program.trained)


def assert_classes(path: str, shape: Sizes) -> None:
    """The kernels for such a call gather residue classes."""
    q = torch.empty(shape.batch, shape.heads, shape.nq, 16)
    k = torch.empty(shape.batch, shape.groups, shape.n, 16)
    (text,) = spdsl.compile(path).kernels(q, k, k).values()
    assert text.count("k_class = ") == 3


@pytest.mark.parametrize("name", PROGRAMS)
def test_square(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=4, groups=2, nq=151, n=151)
    assert_classes(case(name, tmp_path).name, shape)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("name", PROGRAMS)
def test_fewer_queries(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=2, heads=2, groups=2, nq=39, n=142)
    assert_classes(case(name, tmp_path).name, shape)
    check(case(name, tmp_path), shape, d=24, dv=8, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("name", ["window", "shift", "both sides", "by head", "sink"])
@pytest.mark.parametrize("start", [0, 7, 61])
def test_start(name: str, start: int, tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=2, groups=1, nq=70, n=131)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton", q_start=start)


@pytest.mark.parametrize("name", ["window", "shift", "both sides", "by head", "sink", "blocks"])
def test_places_of_each_sequence(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=3, heads=4, groups=2, nq=30, n=141)
    check(
        case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton",
        q_start=torch.tensor([5, 60, 101], dtype=torch.int32),
        k_start=torch.tensor([3, 0, 10], dtype=torch.int32),
        k_len=torch.tensor([50, 141, 131], dtype=torch.int32),
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 3, 5, 63, 64, 65, 257])
def test_lengths(length: int, tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=1, groups=1, nq=length, n=length)
    for name in ("window", "shift"):
        check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")


def test_half_precision_has_full_tiles(tmp_path: Path) -> None:
    """Tiles of 128 and 64 rows, more than a tile of each class, so that some need no mask."""
    path = tmp_path / "wide.spat"
    path.write_text("pattern wide() { keep causal and q - k < 700 and (q - k) % 2 == 1 }\n")
    shape = Sizes(batch=1, heads=2, groups=1, nq=900, n=900)
    assert "full in" in spdsl_explain(str(path), shape)
    check(Case(name=str(path)), shape, d=16, dv=16, dtype=torch.float16, backend="triton")


def spdsl_explain(path: str, shape: Sizes) -> str:
    from spdsl.explain import explain

    q = torch.empty(1, shape.heads, shape.nq, 16, dtype=torch.float16)
    k = torch.empty(1, shape.groups, shape.n, 16, dtype=torch.float16)
    return explain(spdsl.compile(path)._key, q, k, k, {}, "sm_90").text()
