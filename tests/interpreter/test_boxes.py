"""Kernels that walk boxes of a grid, in Triton's interpreter, against the float64 reference: output and all gradients.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest
import torch

import spdsl
from spdsl.analysis import boxed, boxes
from spdsl.analysis import plan as plan_module
from spdsl.analysis.plans import KernelPlan
from spdsl.kernels import plan_like
from tests.library.cases import Case, Inputs, Sizes
from tests.library.compare import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A pattern's body after its grid, the grid's extents, and its inputs."""

    extents: tuple[int, ...]
    text: str
    inputs: Callable[[Sizes, torch.Generator], Inputs] = lambda sizes, generator: {}
    trained: tuple[str, ...] = ()


def _window(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"window": torch.randint(1, 5, (sizes.heads, 2), generator=generator, dtype=torch.int32)}


NEAR = "abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 3"
CLAMPED = "abs(clamp(q.y, 2, 17) - k.y) <= 2 and abs(clamp(q.x, 3, 19) - k.x) <= 3"

PROGRAMS = {
    "window": Program(extents=(20, 24), text=f"keep {NEAR}"),
    "clamped, ragged": Program(extents=(20, 23), text=f"keep {CLAMPED}"),
    "causal rows": Program(extents=(19, 21), text="keep 0 <= q.y - k.y < 4 and abs(q.x - k.x) <= 3  softcap 4.0"),
    "causal in order": Program(extents=(18, 23), text=f"keep {NEAR} and causal"),
    "strided": Program(extents=(20, 24), text="keep q.y // 4 == k.y // 4 and abs(q.x // 3 * 3 + 1 - k.x) <= 4"),
    "dilated": Program(
        extents=(21, 24), text="keep abs(q.y - k.y) <= 6 and (q.y - k.y) % 3 == 0 and q.x // 5 == k.x // 5"
    ),
    "far columns": Program(extents=(16, 30), text="keep abs(q.x - k.x) <= 2"),
    "two runs": Program(extents=(16, 40), text="keep (abs(q.x - k.x) <= 1 or k.x < 2) and abs(q.y - k.y) <= 1"),
    "three axes": Program(
        extents=(5, 9, 10),
        text="keep abs(q.t - k.t) <= 1 and abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 1",
    ),
    "four axes": Program(
        extents=(3, 4, 5, 7),
        text="keep q.u <= k.u and abs(q.t - k.t) <= 1 and q.y == k.y and abs(q.x - k.x) <= 2",
    ),
    "by head": Program(
        extents=(20, 22),
        text="input window: int[h, 2] in 1..\n  keep abs(q.y - k.y) < window[h, 0] and abs(q.x - k.x) < window[h, 1]",
        inputs=_window,
    ),
    "bias": Program(
        extents=(18, 20),
        text=f"input lean: float[h, 5, 7]\n  keep {NEAR}\n"
        "  bias lean[h, clamp(q.y - k.y + 2, 0, 4), clamp(q.x - k.x + 3, 0, 6)]",
        inputs=lambda sizes, generator: {"lean": torch.randn(sizes.heads, 5, 7, generator=generator)},
    ),
    "by key": Program(
        extents=(17, 20),
        text=f"input lean: float[h, token]\n  keep {NEAR}  bias lean[h, k]",
        inputs=lambda sizes, generator: {"lean": torch.randn(sizes.heads, sizes.n, generator=generator)},
        trained=("lean",),
    ),
    "by distance": Program(
        extents=(17, 20),
        text=f"input lean: float[h, 64]\n  keep {NEAR}  bias lean[h, abs(q - k)]",
        inputs=lambda sizes, generator: {"lean": torch.randn(sizes.heads, 64, generator=generator)},
        trained=("lean",),
    ),
    "sink": Program(
        extents=(17, 20),
        text=f"input rest: float[h]\n  keep {NEAR}  sink_logit rest[h]",
        inputs=lambda sizes, generator: {"rest": torch.randn(sizes.heads, generator=generator)},
        trained=("rest",),
    ),
    "marked": Program(
        extents=(18, 20),
        text=f"input mark: bool[token]\n  keep {NEAR} and (mark[k] or q == k)",
        inputs=lambda sizes, generator: {"mark": torch.rand(sizes.n, generator=generator) < 0.5},
    ),
    "nothing for some": Program(extents=(18, 20), text=f"keep {NEAR} and k.y != q.y and q.y < 9"),
}


def case(name: str, folder: Path) -> Case:
    program = PROGRAMS[name]
    path = folder / "boxes.spat"
    names = "utyx"[-len(program.extents) :]
    grid = ", ".join(f"{axis}: {extent}" for axis, extent in zip(names, program.extents, strict=True))
    path.write_text(f"pattern boxes() {{\n  grid ({grid})\n  {program.text}\n}}\n")
    return Case(name=str(path), inputs=program.inputs, trained=program.trained)


def kernels(path: str, shape: Sizes, dtype: torch.dtype = torch.float32) -> tuple[KernelPlan, ...]:
    """The kernels for such a call."""
    return plan_of(spdsl.compile(path)._key, shape, dtype)


def plan_of(key: str, shape: Sizes, dtype: torch.dtype) -> tuple[KernelPlan, ...]:
    q = torch.empty(shape.batch, shape.heads, shape.nq, 16, dtype=dtype)
    k = torch.empty(shape.batch, shape.groups, shape.n, 16, dtype=dtype)
    found = plan_like(key, q, k, k, "sm_90").plan
    return found.forward, found.dq, found.dkdv


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Boxes on grids so small that runs of rows compute less."""
    monkeypatch.setattr(boxes, "GAIN", float("inf"))
    monkeypatch.setattr(boxed, "find_boxes", boxes.boxes_of)  # not in the worker, whose limit is another
    plan_module.plan.cache_clear()
    yield
    plan_module.plan.cache_clear()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, tmp_path: Path) -> None:
    length = prod(PROGRAMS[name].extents)
    shape = Sizes(batch=1, heads=1, groups=1, nq=length, n=length)
    given = case(name, tmp_path)
    assert all(kernel.boxes is not None for kernel in kernels(given.name, shape))
    check(given, shape, d=16, dv=16, dtype=torch.float32, backend="triton")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["causal rows", "by head"])
def test_batches_and_groups(name: str, tmp_path: Path) -> None:
    length = prod(PROGRAMS[name].extents)
    shape = Sizes(batch=2, heads=2, groups=1, nq=length, n=length)
    check(case(name, tmp_path), shape, d=24, dv=8, dtype=torch.float32, backend="triton")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["clamped, ragged", "three axes", "four axes"])
def test_half_precision(name: str, tmp_path: Path) -> None:
    """The copy engine loads boxes of at most three axes."""
    length = prod(PROGRAMS[name].extents)
    shape = Sizes(batch=2, heads=2, groups=1, nq=length, n=length)
    given = case(name, tmp_path)
    found = kernels(given.name, shape, torch.float16)
    assert all(kernel.descriptors == (name != "four axes") for kernel in found)
    check(given, shape, d=16, dv=16, dtype=torch.float16, backend="triton")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["far columns", "three axes"])
def test_layouts(name: str, tmp_path: Path) -> None:
    """Heads beside each other in memory, which joins no batch and heads: the same bits."""
    length = prod(PROGRAMS[name].extents)
    attn = spdsl.compile(case(name, tmp_path).name, backend="triton")
    stored = torch.randn(3, 2, length, 2, 16, generator=torch.Generator().manual_seed(0)).half()
    q, k, v = stored.transpose(2, 3).unbind(0)
    assert torch.equal(attn(q, k, v), attn(q.contiguous(), k.contiguous(), v.contiguous()))


GENERALIZED: dict[str, dict[str, object]] = {
    "dilated": {"extents": (16, 21), "window": (3, 4), "dilation": (2, 3)},
    "strided": {"extents": (17, 24), "window": (6, 5), "stride": (2, 4)},
    "causal": {"extents": (15, 20), "window": (4, 3), "dilation": (1, 2), "causal_axes": (True, False)},
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", GENERALIZED)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_generalized_neighborhoods(name: str, dtype: torch.dtype) -> None:
    """Dilated axes are parted into classes of places, which no longer lie side by side for the copy engine."""
    given = Case(name="neighborhood_2d", parameters=GENERALIZED[name])
    length = prod(GENERALIZED[name]["extents"])  # type: ignore[call-overload]
    shape = Sizes(batch=1, heads=2, groups=1, nq=length, n=length)
    found = plan_of(spdsl.compile(given.name, **given.parameters)._key, shape, dtype)
    for kernel in found:
        assert kernel.boxes is not None
        assert name != "dilated" or kernel.boxes.steps == (2, 3)
        assert kernel.descriptors == (dtype == torch.float16 and kernel.boxes.steps == (1, 1))
    check(given, shape, d=16, dv=16, dtype=dtype, backend="triton")


def _tiles_by_head(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"window": torch.tensor([[1, 3, 1], [3, 1, 3]], dtype=torch.int32)[: sizes.heads]}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("more", [0, 37, -29])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_text_after_the_video(more: int, dtype: torch.dtype) -> None:
    """Rows after the grid meet all others; where there are fewer rows than places, those do not exist."""
    extents = (6, 8, 10)
    given = Case(name="sliding_tile_3d", parameters={"extents": extents, "tile": (2, 4, 4)}, inputs=_tiles_by_head)
    length = prod(extents) + more
    shape = Sizes(batch=1, heads=2, groups=1, nq=length, n=length)
    found = plan_of(spdsl.compile(given.name, **given.parameters)._key, shape, dtype)
    for kernel in found:
        assert kernel.boxes is not None
        assert kernel.boxes.tail
    check(given, shape, d=16, dv=16, dtype=dtype, backend="triton")


@pytest.mark.parametrize("name", ["far columns", "four axes"])
def test_chosen(name: str, tmp_path: Path) -> None:
    """Boxes are taken of themselves where they compute less."""
    length = prod(PROGRAMS[name].extents)
    shape = Sizes(batch=1, heads=2, groups=2, nq=length, n=length)
    given = case(name, tmp_path)
    assert all(kernel.boxes is not None for kernel in kernels(given.name, shape))
    check(given, shape, d=16, dv=16, dtype=torch.float32, backend="triton")
