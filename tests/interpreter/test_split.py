"""Long rows and columns in parts, in Triton's interpreter, against the float64 reference: output and all gradients.

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
from spdsl.runtime import split
from tests.library.cases import Case, Inputs, Sizes
from tests.library.compare import check, poisoned

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

GLOBALS = (0, 1, 64, 65, 130)


def _floats(**shapes: Callable[[Sizes], tuple[int, ...]]) -> Callable[[Sizes, torch.Generator], Inputs]:
    """Inputs drawn at random in the shapes that the sizes of a call give."""

    def make(sizes: Sizes, generator: torch.Generator) -> Inputs:
        return {name: torch.randn(shape(sizes), generator=generator) for name, shape in shapes.items()}

    return make


def _marked(sizes: Sizes, generator: torch.Generator) -> Inputs:
    positions = torch.arange(sizes.n)
    return {"marked": sum((positions == each) for each in GLOBALS).bool()}


def _marked_by_head(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"marked": torch.rand(sizes.batch, sizes.heads, sizes.n, generator=generator) < 0.01}


@dataclass(frozen=True, kw_only=True)
class Program:
    """The body of a pattern, its inputs, those that get gradients, and the kernels that split rows."""

    text: str
    kinds: tuple[str, ...]
    inputs: Callable[[Sizes, torch.Generator], Inputs] = lambda sizes, generator: {}
    trained: tuple[str, ...] = ()


ALL = ("forward", "dq", "dkdv")
LONGFORMER = "keep abs(q - k) <= 20 or q < 40 or k < 40"
PROGRAMS = {
    "streaming": Program(text="keep causal and (q - k < 30 or k < 70)", kinds=("dkdv",)),
    "longformer": Program(text=LONGFORMER, kinds=ALL),
    "last": Program(text="keep abs(q - k) <= 20 or k >= n - 5", kinds=("dkdv",)),
    "middle": Program(text="keep abs(q - k) <= 20 or 66 <= q <= 70 or 90 <= k < 130", kinds=("dkdv",)),
    "some heads": Program(text="keep causal and (q - k < 30 or (k < 70 and h == 1))", kinds=("dkdv",)),
    "residues": Program(text="keep abs(q - k) % 2 == 0 and (abs(q - k) <= 40 or q < 40 or k < 40)", kinds=ALL),
    "softcap": Program(text=f"{LONGFORMER}  softcap 5.0", kinds=ALL),
    "sink": Program(
        text=f"input rest: float[h]\n  {LONGFORMER}  sink_logit rest[h]",
        inputs=_floats(rest=lambda sizes: (sizes.heads,)),
        trained=("rest",),
        kinds=ALL,
    ),
    "by query": Program(
        text=f"input lean: float[h, token]\n  {LONGFORMER}  bias lean[h, q] * (k % 2)",
        inputs=_floats(lean=lambda sizes: (sizes.heads, sizes.n)),
        trained=("lean",),
        kinds=ALL,
    ),
    "by key": Program(
        text=f"input lean: float[h, token]\n  {LONGFORMER}  bias lean[h, k]",
        inputs=_floats(lean=lambda sizes: (sizes.heads, sizes.n)),
        trained=("lean",),
        kinds=ALL,
    ),
    "by pair": Program(
        text=f"input lean: float[h, token, token]\n  {LONGFORMER}  bias lean[h, q, k]",
        inputs=_floats(lean=lambda sizes: (sizes.heads, sizes.n, sizes.n)),
        trained=("lean",),
        kinds=ALL,
    ),
    "table": Program(
        text="input marked: bool[token]\n  keep abs(q - k) <= 20 or marked[q] or marked[k]", inputs=_marked, kinds=ALL
    ),
    "table by head": Program(
        text="input marked: bool[b, h, token]\n  keep causal and (q - k < 20 or marked[b, h, q] or marked[b, h, k])",
        inputs=_marked_by_head,
        kinds=ALL,
    ),
    "documents": Program(
        text="input doc: int[token] sorted\n  keep doc[q] == doc[k] and causal and (q - k < 30 or k < 40)",
        inputs=lambda sizes, generator: {"doc": torch.arange(sizes.n, dtype=torch.int32) // 140},
        kinds=("dkdv",),
    ),
    "causal table": Program(
        text="input marked: bool[h, token]\n  keep causal and (abs(q - k) <= 20 or marked[h, k // 2])  sink_logit 0.5",
        inputs=_marked_by_head,
        kinds=ALL,
    ),
}


def case(name: str, folder: Path) -> Case:
    program = PROGRAMS[name]
    path = folder / "long.spat"
    path.write_text(f"pattern long() {{\n  {program.text}\n}}\n")
    return Case(name=str(path), inputs=program.inputs, trained=program.trained)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, split.Split]]:
    """Short rows count as long; what was split is told."""
    from spdsl.runtime import launch

    found: list[tuple[str, split.Split]] = []

    def told(call, kernel, programs, heads):  # type: ignore[no-untyped-def]
        chosen = split.split_of(call, kernel, programs, heads)
        found.append((kernel.kind, chosen))
        return chosen

    monkeypatch.setattr(split, "TURNS", 1)
    monkeypatch.setattr(split, "INTERPRETER", 32)
    monkeypatch.setattr(launch, "split_of", told)
    return found


def kinds_split(launched: list[tuple[str, split.Split]]) -> set[str]:
    return {kind for kind, each in launched if each.parts > 1 and each.long}


@pytest.mark.parametrize("name", PROGRAMS)
def test_square(name: str, tmp_path: Path, launched: list[tuple[str, split.Split]]) -> None:
    shape = Sizes(batch=1, heads=2, groups=2, nq=210, n=210)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")
    assert kinds_split(launched) == set(PROGRAMS[name].kinds)


@pytest.mark.parametrize("name", PROGRAMS)
def test_fewer_queries_and_shared_keys(name: str, tmp_path: Path, launched: list[tuple[str, split.Split]]) -> None:
    shape = Sizes(batch=2, heads=2, groups=1, nq=90, n=175)
    check(case(name, tmp_path), shape, d=24, dv=8, dtype=torch.float32, backend="triton")
    assert launched


@pytest.mark.parametrize("name", ["longformer", "middle", "sink", "table", "residues"])
@pytest.mark.parametrize("start", [-20, 0, 35])
def test_start(name: str, start: int, tmp_path: Path, launched: list[tuple[str, split.Split]]) -> None:
    shape = Sizes(batch=1, heads=2, groups=1, nq=120, n=171)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton", q_start=start)
    assert "dkdv" in kinds_split(launched)


@pytest.mark.parametrize("name", ["streaming", "longformer", "sink", "table"])
def test_places_of_each_sequence(name: str, tmp_path: Path, launched: list[tuple[str, split.Split]]) -> None:
    shape = Sizes(batch=3, heads=2, groups=1, nq=70, n=161)
    check(
        case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton",
        q_start=torch.tensor([5, 60, 21], dtype=torch.int32),
        k_start=torch.tensor([3, 0, 10], dtype=torch.int32),
        k_len=torch.tensor([90, 161, 151], dtype=torch.int32),
    )  # fmt: skip
    assert "dkdv" in kinds_split(launched)


@pytest.mark.parametrize("sinks", [0, 5, 100])
def test_parameters_of_a_call(sinks: int, launched: list[tuple[str, split.Split]]) -> None:
    shape = Sizes(batch=1, heads=2, groups=1, nq=200, n=200)
    streaming = Case(name="streaming", parameters={"window": 30, "sinks": sinks})
    check(streaming, shape, d=16, dv=16, dtype=torch.float32, backend="triton")
    assert kinds_split(launched) == ({"dkdv"} if sinks else set())


@pytest.mark.parametrize("length", [1, 40, 64, 65])
def test_lengths(length: int, tmp_path: Path, launched: list[tuple[str, split.Split]]) -> None:
    shape = Sizes(batch=1, heads=1, groups=1, nq=length, n=length)
    for name in ("streaming", "longformer", "table", "middle"):
        check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")


def test_bitwise_the_same_in_every_run(tmp_path: Path, launched: list[tuple[str, split.Split]]) -> None:
    attn = spdsl.compile(case("longformer", tmp_path).name, backend="triton")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 250, 16, requires_grad=True) for _ in range(3))
    runs = []
    for _ in range(2):
        with poisoned():
            out, lse = attn(q, k, v, return_lse=True)
            runs.append([out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), (q, k, v))])
    assert kinds_split(launched) == set(ALL)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
