"""What `explain` counts: tiles of walks against the walks themselves, pairs against the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl import walks
from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import Interval, Slot, SlotWalk
from spdsl.counting import count_by_tiles, count_pairs
from spdsl.explain import call_like, explain
from spdsl.runtime import visits
from spdsl.runtime.calls import Call
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.runtime.lists import walk_lists
from spdsl.runtime.parts import parts_of
from spdsl.runtime.tile_grid import By, TileGrid
from spdsl.runtime.visits import is_tested_by_row, list_visits, slot_visits
from spdsl.semantics.nodes import Extent, Index
from spdsl.states import tile_rows, tile_states
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term
from tests.analysis.evaluate import tiles_of
from tests.analysis.programs import HEADS, SHAPES, SMALL, WINDOW, predicates
from tests.library.cases import CASES, Case, Sizes
from tests.runtime.build import H, const, every, op, plan

I, J = Index(name="i"), Index(name="j")  # noqa: E741  # as in tile bounds
N = Extent(name="n")
VALUES = {"w": list(SMALL.values)}


def call_of(keep: Term, shape: str, env: dict[str, int], batch: int, **more: object) -> Call:
    chosen = plan(keep.expr, tables=(WINDOW,), shape=shape, heads=HEADS, groups=HEADS, **more)  # type: ignore[arg-type]
    q = torch.empty(batch, HEADS, env["nq"], 8)
    k = torch.empty(batch, HEADS, env["n"], 8)
    given = {"w": torch.tensor(VALUES["w"][:batch])}
    parameters = {name: value for name, value in env.items() if name.startswith("p_")}
    return Call(plan=chosen, q=q, k=k, v=k, q_start=env["q_start"], tables=given, parameters=parameters)


def brute(walk: SlotWalk, by: By, env: dict[str, int], block_q: int, block_k: int, batch: int) -> tuple[int, int]:
    """(touched, full) over heads and batches, one row after the other, with the edges of the tensors masked."""
    touched = full = 0
    rows = -(-env["nq"] // block_q) if by == "query" else -(-env["n"] // block_k)
    for b in range(batch):
        for h in range(HEADS):
            for row in range(rows):
                unmasked, masked = tiles_of(walk, row, {**env, "h": h, "g": h, "b": b}, VALUES, by=by)
                touched += len(unmasked) + len(masked)
                for other in unmasked:
                    i, j = (row, other) if by == "query" else (other, row)
                    over = (j + 1) * block_k > env["n"] if by == "query" else (i + 1) * block_q > env["nq"]
                    full += not over and env["q_start"] + i * block_q >= 0
    return touched, full


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keep=predicates(),
    tiles=st.sampled_from([(16, 16), (16, 8), (8, 16), (4, 24), (1, 1)]),
    shape=SHAPES,
    numbers=st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(-20, 60), st.integers(1, 2)),
)
def test_random_walks(keep: Term, tiles: tuple[int, int], shape: str, numbers: tuple[int, int, int, int]) -> None:
    length, queries, start, batch = numbers
    facts = {"heads": HEADS, "groups": HEADS, "tables": (WINDOW,)}
    relation = tile_relation(keep.expr, block_q=tiles[0], block_k=tiles[1], shape=shape, **facts)  # type: ignore[arg-type]
    env = environment(shape, length, queries, start)
    call = call_of(keep, shape, env, batch)
    for by, walk in (("query", relation.by_query), ("key", relation.by_key)):
        if isinstance(walk, SlotWalk):
            found = slot_visits(call, walk, TileGrid(by=by, block_q=tiles[0], block_k=tiles[1]))  # type: ignore[arg-type]
            assert (found.touched, found.full) == brute(walk, by, env, *tiles, batch)  # type: ignore[arg-type]
            assert found.metadata == 0


WALKS = {
    "lattice": Slot(touched=Interval(lo=const(0), hi=op("add", I, 1)), step=5, run=2, phase=op("sub", I, 9)),
    "by head": Slot(touched=Interval(lo=const(0), hi=op("add", I, H)), step=3, phase=H),
    "tested": Slot(touched=Interval(lo=const(1), hi=N), filter=op("eq", op("mod", op("add", J, H), 3), 1)),
    "tested on a lattice": Slot(
        touched=Interval(lo=op("sub", I, 7), hi=N), step=4, run=3, phase=H, filter=op("ne", op("mod", J, 5), 1)
    ),
    "tested by row": Slot(
        touched=Interval(lo=const(0), hi=N),
        full=Interval(lo=op("sub", I, 3), hi=op("add", I, 9)),
        filter=every(op("eq", op("mod", op("add", op("mul", J, J), I), 3), 1), op("ne", J, H)),
    ),
    "out of range": Slot(touched=Interval(lo=const(-9), hi=const(9000)), full=Interval(lo=const(-9), hi=const(9000))),
    "empty": Slot(touched=Interval(lo=op("add", I, 4), hi=I), full=Interval(lo=const(0), hi=N)),
}


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_walks_by_hand(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "_CHUNK", chunk)
    walk, grid = SlotWalk(slots=(WALKS[name],)), TileGrid(by="query", block_q=1, block_k=1)
    call = call_of(Term(const(True)), "square", environment("square", 61), 2)
    found, listed = slot_visits(call, walk, grid), list_visits(walk_lists(call, walk, grid), 2, HEADS)
    assert (found.touched, found.full) == (listed.touched, listed.full)
    assert listed.metadata > 4 * listed.touched // (2 * HEADS)
    assert is_tested_by_row(walk, grid) == (name == "tested by row")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize(("nq", "target"), [(None, "sm_90"), (37, "sm_90"), (None, "cpu")])
def test_pairs_of_the_library(case: Case, nq: int | None, target: str) -> None:
    n = case.n or 150
    sizes = Sizes(batch=2, heads=4, groups=2, nq=nq or n, n=n)
    inputs = case.inputs(sizes, torch.Generator().manual_seed(0))
    attn = spdsl.compile(case.name, **case.parameters)
    q, k = (torch.empty(2, heads, rows, 16) for heads, rows in ((4, sizes.nq), (2, n)))
    given = {name: torch.as_tensor(value) for name, value in inputs.items()}
    call = call_like(attn._key, q, k, k, given, target)
    mask = attn.pattern.mask(sizes.nq, n, 4, 2, **case.parameters, **inputs)
    expected = int(mask.sum()) * (2 if mask.dim() == 3 else 1)
    parts = list(parts_of(call, lambda _: ()))
    assert sum(map(count_pairs, parts)) == expected
    assert sum(map(count_by_tiles, parts)) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keep=predicates(),
    shape=SHAPES,
    numbers=st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(-20, 60)),
)
def test_random_pairs(keep: Term, shape: str, numbers: tuple[int, int, int]) -> None:
    env = environment(shape, *numbers)
    call = call_of(keep, shape, env, 2, blocks=(16, 24))
    each = [mask_of(keep.expr, {**env, "h": h, "g": h, "b": b}, VALUES).sum() for h in range(HEADS) for b in range(2)]
    assert count_pairs(call) == int(np.sum(each))
    assert count_by_tiles(call) == int(np.sum(each))


MILLION = 1 << 20
ROWS = np.arange(MILLION)
PAIRS = {
    "causal": ROWS + 1,
    "streaming": np.minimum(ROWS + 1, 1024) + np.clip(ROWS - 1023, 0, 4),
    "dilated": np.minimum(ROWS // 4 + 1, 1024),
    "strided": np.minimum(ROWS + 1, 128) + ROWS // 128,
    "block_local": np.full(MILLION, 128),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_million_tokens(name: str) -> None:
    """What explaining costs does not grow with the pairs, or this would take minutes."""
    q = torch.empty(1, dtype=torch.bfloat16).expand(1, 8, MILLION, 64)
    report = explain(spdsl.compile(name)._key, q, q, q, {}, "sm_90")
    assert report.pairs == 8 * int(PAIRS[name].sum())
    assert report.metadata == 0
    for kernel in report.kernels:
        assert kernel.full * kernel.block_q * kernel.block_k <= kernel.pairs <= kernel.computed
    assert sum(kernel.pairs for kernel in report.kernels if kernel.kind == "forward") == report.pairs


GRIDS = {
    "neighborhood_2d": {"extents": (48, 64), "window": (9, 9)},
    "neighborhood_1d": {"extents": (1024,), "window": (33,), "dilation": (2,)},
    "sliding_tile_3d": {"extents": (12, 16, 16), "tile": (4, 4, 4)},
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("nq", [None, 100])
def test_pictures_of_the_library(case: Case, nq: int | None) -> None:
    """The tiles of every kernel, by the rows that they hold: all kept pairs in touched ones, only kept ones in full."""
    n = case.n or 700
    sizes = Sizes(batch=1, heads=4, groups=2, nq=nq or n, n=n)
    inputs = case.inputs(sizes, torch.Generator().manual_seed(0))
    attn = spdsl.compile(case.name, **case.parameters)
    q, k = (torch.empty(1, heads, rows, 64, dtype=torch.bfloat16) for heads, rows in ((4, sizes.nq), (2, n)))
    call = call_like(attn._key, q, k, k, {name: torch.as_tensor(value) for name, value in inputs.items()}, "sm_90")
    mask = attn.pattern.mask(sizes.nq, n, 4, 2, **case.parameters, **inputs).reshape(-1, sizes.nq, n)[-1]
    for part in parts_of(call, lambda _: ()):
        assert_tiles_hold(part, mask if not call.plan.more else mask & mask_of_part(part))


def mask_of_part(call: Call) -> Tensor:
    """The set of one of several parts, for the last head."""
    q, k = torch.arange(call.q.shape[2])[:, None] + call.q_start, torch.arange(call.k.shape[2])
    env = {"q": q, "k": k, "h": 3, "g": 1, "b": 0, "n": call.k.shape[2], "nq": call.q.shape[2], "q_start": call.q_start}
    return evaluate(call.plan.keep, {**env, **call.parameters}, tables_for(call.plan.tables, call.tables))


def assert_tiles_hold(call: Call, mask: Tensor) -> None:
    """All kept pairs lie in touched tiles, and only kept ones in full tiles."""
    for kernel in call.plan.kernels:
        states = tile_states(call, kernel, head=3)
        states = states.T if kernel.by == "key" else states
        rows, keys = (tile_rows(call, kernel, side) for side in ("q", "k"))
        assert states.shape == (len(rows), len(keys))
        exist = (rows >= 0)[:, None, :, None] & (keys >= 0)[None, :, None, :]
        kept = mask[rows[:, None, :, None], keys[None, :, None, :]] & exist
        assert (states[kept.any(-1).any(-1)] > 0).all()
        assert (kept | ~exist).all(-1).all(-1)[states == 2].all()
        if kernel.classes == 1:
            assert int(kept.sum()) == int(mask.sum())


@pytest.mark.parametrize("more", [0, 70])
@pytest.mark.parametrize("name", GRIDS)
def test_pictures_show_as_many_tiles_as_are_counted(name: str, more: int) -> None:
    parameters = GRIDS[name]
    n = int(np.prod(parameters["extents"])) + (more if name == "sliding_tile_3d" else 0)
    q = torch.empty(1, dtype=torch.bfloat16).expand(1, 2, n, 64)
    windows = {"window": torch.tensor([[3, 3, 3], [1, 3, 3]])} if name == "sliding_tile_3d" else {}
    call = call_like(spdsl.compile(name, **parameters)._key, q, q, q, windows, "sm_90")
    for kernel in call.plan.kernels:
        states = [tile_states(call, kernel, head=head) for head in (0, 1)]
        counted = walks.visits(call, kernel)
        if kernel.classes == 1:
            assert sum(int((each > 0).sum()) for each in states) == counted.touched
            assert sum(int((each == 2).sum()) for each in states) == counted.full
