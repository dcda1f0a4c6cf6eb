"""Lists of distances against all pairs, and how often they are built."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from spdsl.analysis.distances import with_distances
from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import DistanceWalk, ListWalk, TileRelation
from spdsl.counting import count_by_tiles
from spdsl.runtime import distance_lists as module
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.distance_lists import distance_lists, row_lists
from spdsl.runtime.lists import lists_for
from spdsl.semantics.nodes import Expr
from tests.analysis.brute import mask_of, tiles_of_mask
from tests.runtime.build import CAUSAL, B, H, K, Q, every, load, op, plan, table

D = op("sub", Q, K)
LISTED = ListWalk(reason="test")
SIZES = (16, 32, 64, 128, 256)
EXAMPLES = int(os.environ.get("SPDSL_EXAMPLES", "60"))


def repeating(keep: Expr, *, blocks: tuple[int, int], shape: str = "square", **rest: Any) -> Plan:
    """A plan with walks by distance."""
    relation = TileRelation(block_q=blocks[0], block_k=blocks[1], shape=shape, by_query=LISTED, by_key=LISTED)  # type: ignore[arg-type]
    found = with_distances(relation, keep)
    return plan(keep, walks=(found.by_query, found.by_key), blocks=blocks, shape=shape, **rest)  # type: ignore[arg-type]


def call_of(
    chosen: Plan, nq: int, n: int, q_start: int = 0, heads: int = 1, batch: int = 1, **tables: torch.Tensor
) -> Call:
    q, k = torch.zeros(batch, heads, nq, 8), torch.zeros(batch, heads, n, 8)
    return Call(plan=chosen, q=q, k=k, v=k, q_start=q_start, tables=tables)


# ---------------------------------------------------------------- against all pairs


@st.composite
def distances(draw: st.DrawFn) -> Expr:
    """An int that stays the same when queries and keys move together by some positions."""
    kind = draw(st.sampled_from(("tokens", "blocks", "tokens and head", "inside")))
    if kind == "inside":
        return op("mod", draw(st.sampled_from((Q, K))), draw(st.sampled_from((3, 16, 40))))
    if kind == "tokens":
        found = op("add", D, draw(st.integers(-70, 70)))
    elif kind == "tokens and head":
        found = op("add", D, op("mul", H, draw(st.integers(-20, 20))))
    else:
        size = draw(st.sampled_from((4, 16, 24, 64, 100)))
        found = op("sub", op("floordiv", Q, size), op("floordiv", K, size))
    return op("abs", found) if draw(st.booleans()) else found


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> Expr:
    """A bool of such ints."""
    if depth and draw(st.booleans()):
        parts = [draw(conditions(depth=depth - 1)) for _ in range(2)]
        return op("not", parts[0]) if draw(st.integers(0, 4)) == 0 else op(draw(st.sampled_from(("and", "or"))), *parts)
    x, m = draw(distances()), draw(st.integers(2, 9))
    match draw(st.sampled_from(("pow2", "bitlen", "isqrt", "mod", "div", "product", "less", "causal"))):
        case "pow2":
            return op("is_pow2", x)
        case "bitlen":
            return op("eq", op("mod", op("bitlen", x), m), draw(st.integers(0, m - 1)))
        case "isqrt":
            return op("eq", op("mul", op("isqrt", x), op("isqrt", x)), x)
        case "mod":
            return op("lt", op("mod", x, 16 * m), draw(st.integers(1, 40)))
        case "div":
            return op("eq", op("mod", op("floordiv", x, 8 * m), 3), 1)
        case "product":
            return op("lt", op("mod", op("mul", x, x), 1000), 100)
        case "less":
            return op("lt", x, draw(st.integers(-20, 300)))
        case _:
            return CAUSAL


def kernels(chosen: Plan) -> tuple[KernelPlan, ...]:
    return chosen.forward, chosen.dkdv


def rows(lists: TileList, head: int) -> list[tuple[list[int], list[int]]]:
    h = min(head, lists.begin.shape[1] - 1)
    ends = (each[0, h].tolist() for each in (lists.begin, lists.middle, lists.end))
    return [(lists.tiles[a:b].tolist(), lists.tiles[b:c].tolist()) for a, b, c in zip(*ends, strict=True)]


def check(call: Call, heads: int) -> None:
    """Tiles of existing pairs are touched and full exactly as the mask says; at edges none is missed.

    The pairs that are kept are counted exactly.
    """
    blocks = call.plan.forward.block_q, call.plan.forward.block_k
    nq, n, start = call.q.shape[2], call.k.shape[2], call.q_start
    first = start + np.arange(-(-nq // blocks[0])) * blocks[0]
    last = np.arange(1, -(-n // blocks[1]) + 1) * blocks[1]
    whole = ((first >= 0) & (first + blocks[0] <= start + nq))[:, None] & (last <= n)[None, :]
    masked_anyway = (first < 0)[:, None] | (last > n)[None, :]
    pairs = 0
    for head in range(heads):
        env = {"n": n, "nq": nq, "q_start": start, "h": head, "g": head, "b": 0}
        mask = mask_of(call.plan.keep, env)
        pairs += int(mask[np.arange(start, start + nq) >= 0].sum())
        touched, full = tiles_of_mask(mask, start, *blocks)
        for kernel in kernels(call.plan):
            found = np.zeros((2, *touched.shape), dtype=bool)
            for row, parts in enumerate(rows(row_lists(call, kernel), head)):
                for kind, tiles in enumerate(parts):
                    assert tiles == sorted(set(tiles))
                    assert all(0 <= tile < touched.shape[1 if kernel.kind == "forward" else 0] for tile in tiles)
                    found[kind][(row, tiles) if kernel.kind == "forward" else (tiles, row)] = True
            unmasked, masked = found
            assert not (unmasked & masked).any()
            assert (touched <= (unmasked | masked)).all()
            assert (unmasked <= full).all()
            assert not (unmasked & masked_anyway).any()
            assert ((unmasked | masked) == touched)[whole].all()
            assert (unmasked == full)[whole & touched].all()
    assert count_by_tiles(call) == pairs


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    keep=conditions(),
    blocks=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    n=st.integers(1, 700),
)
def test_square(keep: Expr, blocks: tuple[int, int], n: int) -> None:
    chosen = repeating(keep, blocks=blocks, heads=2, groups=2)
    assume(all(isinstance(kernel.walk, DistanceWalk) for kernel in kernels(chosen)))
    check(call_of(chosen, n, n, heads=2), 2)


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    keep=conditions(),
    blocks=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    nq=st.integers(1, 300),
    n=st.integers(1, 400),
    q_start=st.integers(-200, 500),
)
def test_offset(keep: Expr, blocks: tuple[int, int], nq: int, n: int, q_start: int) -> None:
    chosen = repeating(keep, blocks=blocks, shape="offset", heads=2, groups=2)
    assume(all(isinstance(kernel.walk, DistanceWalk) for kernel in kernels(chosen)))
    check(call_of(chosen, nq, n, q_start, heads=2), 2)


def test_odd_tiles() -> None:
    keep = op("or", op("is_pow2", D), op("is_pow2", op("sub", op("floordiv", Q, 20), op("floordiv", K, 20))))
    check(call_of(repeating(keep, blocks=(24, 40)), 300, 300), 1)
    check(call_of(repeating(keep, blocks=(24, 40), shape="offset"), 100, 300, 77), 1)


def test_tables_by_head_and_batch() -> None:
    keep = every(CAUSAL, load("allowed", B, op("min", op("max", D, 0), 99), dtype="bool"), op("lt", D, load("size", H)))
    tables = (table("allowed", "bool", "b", "100"), table("size", "int", "h"))
    allowed = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) < 0.05
    size = torch.tensor([[50, 90]])
    chosen = repeating(keep, blocks=(16, 32), heads=2, groups=2, tables=tables)
    call = call_of(chosen, 200, 200, heads=2, batch=2, allowed=allowed, size=size)
    lists = row_lists(call, chosen.forward)
    assert lists.begin.shape == (2, 2, 13)
    for batch in range(2):
        for head in range(2):
            env = {"n": 200, "nq": 200, "q_start": 0, "h": head, "g": head, "b": batch}
            mask = mask_of(keep, env, {"allowed": allowed.numpy(), "size": size[0].numpy()})
            touched, _ = tiles_of_mask(mask, 0, 16, 32)
            ends = (each[batch, head].tolist() for each in (lists.begin, lists.end))
            for row, (begin, end) in enumerate(zip(*ends, strict=True)):
                if row < 12:
                    assert sorted(lists.tiles[begin:end].tolist()) == np.nonzero(touched[row])[0].tolist()
    changed = replace(call, tables={"allowed": ~allowed, "size": size})
    assert len(distance_lists(changed, chosen.forward).tiles) > len(distance_lists(call, chosen.forward).tiles)


def test_a_length_in_the_predicate() -> None:
    from spdsl.semantics.nodes import Extent

    keep = every(CAUSAL, op("lt", op("bitlen", D), op("floordiv", Extent(name="n"), 50)))
    chosen = repeating(keep, blocks=(16, 16))
    for n in (100, 300, 500):
        check(call_of(chosen, n, n), 1)


# ---------------------------------------------------------------- when, and how large


def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the longest distance of every build from now on."""
    found: list[int] = []
    make = module._lists

    def counted(*args: Any) -> TileList:
        found.append(args[-1])
        return make(*args)

    monkeypatch.setattr(module, "_lists", counted)
    return found


def test_lengths_below_one_power_of_two_share_their_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = built(monkeypatch)
    chosen = repeating(op("is_pow2", D), blocks=(64, 64))
    for n in range(4100, 8192, 140):  # 30 lengths
        lists_for(call_of(chosen, n, n), ("forward", "dq", "dkdv"))
    assert builds == [8192, 8192]  # forward and dq share theirs
    lists_for(call_of(chosen, 8193, 8193), ("forward",))
    assert builds[2:] == [16384]


def test_queries_anywhere_share_their_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = built(monkeypatch)
    keep = op("is_pow2", op("sub", op("floordiv", Q, 128), op("floordiv", K, 128)))
    chosen = repeating(keep, blocks=(64, 64), shape="offset")
    for start in range(1030, 1230):
        lists_for(call_of(chosen, 1, start + 1, start), ("forward",))
    assert len(builds) == 1


@pytest.mark.parametrize(("name", "most"), [("log_sparse", 200), ("power", 400)])
def test_a_million_tokens(name: str, most: int) -> None:
    from spdsl.analysis.plan import plan as planned
    from spdsl.analysis.plans import Problem
    from tests.library.bound import library

    pattern = library(name, heads=1, groups=1, head_dim=64)
    chosen = planned(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), "sm_90")
    q = torch.zeros(1, 1, 1, 1).expand(1, 1, 1 << 20, 64)
    call = lists_for(Call(plan=chosen, q=q, k=q, v=q), ("forward", "dq", "dkdv"))
    for lists in call.lists.values():
        assert lists.nbytes <= most, lists.nbytes


def test_a_free_parameter_makes_lists_of_its_own_for_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    import spdsl

    builds = built(monkeypatch)
    text = "pattern near(local: int = 3) { axis c = token by 32  keep causal and (is_pow2(APART) or APART < local) }"
    attend = spdsl.loads(text.replace("APART", "q.c - k.c"))
    q, k, v = torch.randn(3, 1, 2, 300, 16).unbind()
    for local in (1, 3, 1, 5):
        compiled = spdsl.compile(attend, local=local)
        assert (compiled(q, k, v).double() - compiled.reference(q, k, v)).norm() < 1e-4
    assert len(builds) == 3
