"""Kernels whose walks are clamped by intervals of tables, in Triton's interpreter, against the float64 reference.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.cases import Case, Inputs, Sizes
from tests.library.compare import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def _documents(*lead: int, many: float = 6) -> Callable[[Sizes, torch.Generator], Inputs]:
    """Sorted document numbers with these leading axes (-1 stands for the batch)."""

    def make(sizes: Sizes, generator: torch.Generator) -> Inputs:
        shape = [sizes.batch if axis < 0 else axis for axis in lead]
        starts = torch.rand(*shape, sizes.n, generator=generator) < many / sizes.n
        return {"doc": starts.cumsum(-1).int()}

    return make


def _ends(*lead: int) -> Callable[[Sizes, torch.Generator], Inputs]:
    """For every position an end of what it sees, or the beginning, in rising order."""

    def make(sizes: Sizes, generator: torch.Generator) -> Inputs:
        shape = [sizes.batch if axis < 0 else axis for axis in lead]
        return {"end": torch.randint(0, sizes.n + 1, (*shape, sizes.n), generator=generator).sort()[0].int()}

    return make


def _far(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """Document numbers in 64 bits, up to the largest that fit 32."""
    (doc,) = _documents()(sizes, generator).values()
    return {"doc": (doc.long() * 1_000_000_000 - (1 << 31)).clamp(max=(1 << 31) - 1)}


@dataclass(frozen=True, kw_only=True)
class Program:
    """The body of a pattern, its inputs, and how many kernels find intervals."""

    text: str
    inputs: Callable[[Sizes, torch.Generator], Inputs]
    kernels: int = 2


DOC = "input doc: int[token] sorted\n  "
END = "input end: int[token] sorted\n  "

PROGRAMS = {
    "documents": Program(text=DOC + "keep causal and doc[q] == doc[k]", inputs=_documents()),
    "of each sequence": Program(text=DOC + "keep causal and doc[q] == doc[k]", inputs=_documents(-1)),
    "both ways": Program(text=DOC + "keep doc[q] == doc[k]", inputs=_documents(many=3)),
    "single tokens": Program(text=DOC + "keep causal and doc[q] == doc[k]", inputs=_documents(many=200)),
    "one document": Program(text=DOC + "keep causal and doc[q] == doc[k]", inputs=_documents(many=0)),
    "64 bits": Program(text=DOC + "keep causal and doc[q] == doc[k]", inputs=_far),
    "neighbours": Program(text=DOC + "keep abs(doc[q] - doc[k]) <= 1 and causal", inputs=_documents()),
    "earlier ones": Program(text=DOC + "keep doc[k] < doc[q]", inputs=_documents()),
    "window": Program(text=DOC + "keep causal and q - k < 40 and doc[q] == doc[k]", inputs=_documents()),
    "streaming": Program(
        text=DOC + "keep causal and (q - k < 30 or k < 5 or (q - k) % 64 == 0) and doc[q] == doc[k]",
        inputs=_documents(many=3),
    ),
    "blocks of documents": Program(
        text=DOC + "axis part = token by doc\n  keep causal and q.part // 2 == k.part // 2", inputs=_documents()
    ),
    "dilated": Program(text=DOC + "keep causal and (q - k) % 3 == 1 and doc[q] == doc[k]", inputs=_documents(many=3)),
    "of heads": Program(
        text="input doc: int[h, token] sorted\n  keep causal and doc[h, q] == doc[h, k]",
        inputs=lambda sizes, generator: _documents(sizes.heads)(sizes, generator),
    ),
    "of groups": Program(
        text="input doc: int[g, token] sorted\n  keep causal and doc[g, q] == doc[g, k]",
        inputs=lambda sizes, generator: _documents(sizes.groups)(sizes, generator),
    ),
    "of sequences": Program(
        text="input doc: int[b, token] sorted\n  keep causal and doc[b, q] == doc[b, k]", inputs=_documents(-1)
    ),
    "ends": Program(text=END + "keep k < end[q]", inputs=_ends()),
    "ends beside causal": Program(text=END + "keep causal or k < end[q]", inputs=_ends(-1)),
    "beginnings": Program(text=END + "keep causal and k >= end[q]", inputs=_ends()),
    "two tables": Program(
        text=DOC + END + "keep causal and doc[q] == doc[k] and not (k > end[q])",
        inputs=lambda sizes, generator: {**_documents()(sizes, generator), **_ends(-1)(sizes, generator)},
    ),
    "by query alone": Program(
        text="input end: int[token]\n  keep causal and k < end[q]",
        inputs=lambda sizes, generator: {"end": torch.randint(0, sizes.n, (sizes.n,), generator=generator)},
        kernels=1,
    ),
    "an input of that name": Program(
        text="input full_to: int[token] sorted\n  keep causal and full_to[q] == full_to[k]",
        inputs=lambda sizes, generator: {"full_to": _documents()(sizes, generator)["doc"]},
    ),
}  # fmt: skip


def case(name: str, folder: Path) -> Case:
    path = folder / "cut.spat"
    path.write_text(f"pattern cut() {{\n  {PROGRAMS[name].text}\n}}\n")
    return Case(name=str(path), inputs=PROGRAMS[name].inputs)


def assert_intervals(path: str, kernels: int, shape: Sizes) -> None:
    """The kernels for such a call find intervals, and lists have no part in them except where they must."""
    q = torch.empty(shape.batch, shape.heads, shape.nq, 16)
    k = torch.empty(shape.batch, shape.groups, shape.n, 16)
    for text in spdsl.compile(path).kernels(q, k, k).values():
        assert text.count("def intervals_") == kernels
        assert ("list_begin" in text) == (kernels < 2)


@pytest.mark.parametrize("name", PROGRAMS)
def test_square(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=2, heads=2, groups=1, nq=101, n=101)
    made = case(name, tmp_path)
    assert_intervals(made.name, PROGRAMS[name].kernels, shape)
    check(made, shape, d=16, dv=16, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("name", PROGRAMS)
def test_fewer_queries(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=2, heads=2, groups=2, nq=39, n=142)
    check(case(name, tmp_path), shape, d=24, dv=8, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("name", ["documents", "window", "dilated", "ends beside causal", "of heads"])
@pytest.mark.parametrize("start", [0, 7, 61])
def test_start(name: str, start: int, tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=2, groups=1, nq=70, n=131)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton", q_start=start)


@pytest.mark.parametrize("name", ["documents", "of each sequence", "both ways", "dilated", "ends", "of groups"])
def test_places_of_each_sequence(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=3, heads=4, groups=2, nq=30, n=141)
    check(
        case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton",
        q_start=torch.tensor([5, 60, 101], dtype=torch.int32),
        k_start=torch.tensor([3, 0, 10], dtype=torch.int32),
        k_len=torch.tensor([50, 141, 131], dtype=torch.int32),
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
def test_lengths(length: int, tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=1, groups=1, nq=length, n=length)
    check(case("documents", tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")


def test_full_tiles_of_half_precision(tmp_path: Path) -> None:
    """Documents of several tiles, so that some need no mask; the end of one and the start of the next share tiles."""
    starts = torch.zeros(700, dtype=torch.int32)
    starts[[300, 301, 520]] = 1
    path = tmp_path / "wide.spat"
    path.write_text("pattern wide() {\n  " + DOC + "keep causal and doc[q] == doc[k]\n}\n")
    shape = Sizes(batch=1, heads=2, groups=1, nq=700, n=700)
    made = Case(name=str(path), inputs=lambda sizes, generator: {"doc": starts.cumsum(0).int()})
    check(made, shape, d=16, dv=16, dtype=torch.float16, backend="triton")


@pytest.mark.parametrize("seed", range(12))
def test_intervals_equal_those_of_torch(seed: int, tmp_path: Path) -> None:
    """What the kernels write is what the CPU and `explain` count with."""
    from dataclasses import replace

    from spdsl.kernels import plan_like
    from spdsl.runtime.calls import Call
    from spdsl.runtime.cuts import intervals
    from spdsl.runtime.evaluate import tables_for, with_batch
    from spdsl.runtime.interval_kernels import interval_values
    from spdsl.runtime.launch import call_values, loaded
    from spdsl.runtime.pairs import pairs_of
    from spdsl.runtime.tile_grid import TileGrid

    generator = torch.Generator().manual_seed(seed)
    name = sorted(PROGRAMS)[seed]
    n = int(torch.randint(1, 400, (1,), generator=generator))
    nq = n if seed % 3 else int(torch.randint(1, n + 1, (1,), generator=generator))
    sizes = Sizes(batch=2, heads=4, groups=2, nq=nq, n=n)
    made = case(name, tmp_path)
    q, k = torch.zeros(2, 4, nq, 16), torch.zeros(2, 2, n, 16)
    plan = plan_like(spdsl.compile(made.name)._key, q, k, k, "sm_90").plan
    inputs: dict[str, Tensor] = made.inputs(sizes, generator)
    tables = {table.name: with_batch(table, inputs[table.name]) for table in plan.problem.pattern.tables}
    element = tuple((name, str(table.dtype).removeprefix("torch.")) for name, table in tables.items())
    plan = replace(plan, problem=replace(plan.problem, tables=element))
    call = Call(plan=plan, q=q, k=k, v=k, q_start=n - nq, tables=tables)
    for kind in ("forward", "dkdv"):
        kernel = getattr(plan, kind)
        if kernel.cuts is None:
            continue
        found = interval_values(call, kernel, call_values(call, kind), loaded(plan).launch)["intervals"]
        assert isinstance(found, Tensor)
        expected = intervals(kernel.cuts, pairs_of(call), tables_for(plan.tables, tables), TileGrid.of(kernel))
        assert torch.equal(found.long().view(-1), expected.expand(found.shape[0], *expected.shape[1:]).reshape(-1))


def test_values_of_more_than_32_bits_are_refused() -> None:
    """Cut to 32 bits they would all be alike."""
    q, k, v = (torch.randn(1, 1, 40, 16) for _ in range(3))
    doc = torch.arange(40) // 10
    with pytest.raises(spdsl.SpatError, match=r"SP351.*32 bits"):
        spdsl.compile("documents", backend="triton")(q, k, v, doc=doc << 34)
    attn = spdsl.compile("documents", backend="triton")
    assert torch.allclose(attn(q, k, v, doc=doc), attn.reference(q, k, v, doc=doc).float(), atol=1e-5)
    cpu = spdsl.compile("documents", backend="cpu")
    assert torch.allclose(cpu(q, k, v, doc=doc << 34), attn.reference(q, k, v, doc=doc).float(), atol=1e-5)
