"""Rows that grow with the lengths while the others do not, against counts of tiles at growing lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import SlotWalk
from spdsl.semantics.nodes import Const, Table, TableAxis
from tests.analysis.brute import environment
from tests.analysis.build import Term, b, causal, h, k, load, n, parameter, q
from tests.analysis.evaluate import By, evaluate
from tests.analysis.evaluate_rows import tiles_of_rows

PREFIX = Table(
    name="w", dtype="int", axes=(TableAxis(kind="b", size=Const(value=6), label="b"),), bounds=None, sorted=False
)
BLOCKS = (32, 16)
Rows = tuple[int, int] | None


def walks(keep: Term, shape: str = "square", blocks: tuple[int, int] = BLOCKS) -> tuple[SlotWalk, SlotWalk]:
    relation = tile_relation(
        keep.expr,
        block_q=blocks[0],
        block_k=blocks[1],
        shape=shape,  # type: ignore[arg-type]
        heads=8,
        groups=8,
        tables=[PREFIX],
    )
    assert isinstance(relation.by_query, SlotWalk)
    assert isinstance(relation.by_key, SlotWalk)
    return relation.by_query, relation.by_key


def rows_of(walk: SlotWalk, env: dict[str, int], count: int) -> Rows:
    """The long rows that exist, None where none are known."""
    if walk.long is None:
        return None
    lo, hi = (evaluate(bound, env) for bound in (walk.long.lo, walk.long.hi))
    return min(max(lo, 0), count), min(max(hi, lo, 0), count)


def turns(walk: SlotWalk, by: By, env: dict[str, int], count: int) -> np.ndarray:
    found = tiles_of_rows(walk, count, env, by=by)
    return found.end - found.begin


window = causal & (q - k < 100)
both = abs(q - k) <= 60
CASES: dict[str, tuple[Term, Rows, Rows]] = {
    "sinks": (causal & ((q - k < 100) | (k < 40)), None, (0, 3)),
    "globals": (both | (q < 40) | (k < 40), (0, 2), (0, 3)),
    "one head": (causal & ((q - k < 100) | ((k < 40) & h.eq(3))), None, (0, 3)),
    "in the middle": (both | ((k >= 100) & (k < 130)), None, (6, 9)),
    "causal": (causal, None, None),
    "everything": (k >= 0, None, None),
    "window": (window, None, None),
    "every row": (causal & ((q - k < 100) | (k % 64).eq(0)), None, None),
    "many columns": (causal & ((q - k < 100) | ((k // 64 + h) % 4).eq(0)), None, None),
    "prefix of each sequence": (causal & ((q - k < 100) | (k < load("w", b))), None, None),
    "a long window": (causal & (q - k < 50_000), None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_square(name: str) -> None:
    keep, by_query, by_key = CASES[name]
    env = environment("square", 640)
    queries, keys = walks(keep)
    assert rows_of(queries, env, 20) == by_query
    assert rows_of(keys, env, 40) == by_key


def test_the_last_keys() -> None:
    _, keys = walks(both | (k >= n - 20))
    for length in (640, 641, 1000):
        lo, hi = rows_of(keys, environment("square", length), -(-length // 16)) or (0, 0)
        assert lo <= (length - 20) // 16
        assert hi == -(-length // 16)
        assert hi - lo <= 4


@pytest.mark.parametrize("start", [-70, 0, 33, 200])
def test_positions_that_begin_later(start: int) -> None:
    queries, keys = walks(both | (q < 40) | (k < 40), "offset")
    env = environment("offset", 900, 300, start)
    expected = [i for i in range(10) if start + 32 * i < 40 and start + 32 * (i + 1) > 0]
    assert list(range(*(rows_of(queries, env, 10) or (0, 0)))) == expected
    assert rows_of(keys, env, 57) == (0, 3)


@pytest.mark.parametrize(("reach", "many"), [(100, 40), (3, 0), (30, 161)])
def test_parameters_of_a_call(reach: int, many: int) -> None:
    size, sinks = parameter("size", low=0), parameter("sinks", low=0)
    env = {**environment("square", 640), size.variable: reach, sinks.variable: many}
    queries, keys = walks((abs(q - k) <= size) | (q < sinks) | (k < sinks))
    assert rows_of(queries, env, 20) == (0, -(-many // 32))
    assert rows_of(keys, env, 40) == (0, -(-many // 16))
    assert all(walk.long is None for walk in walks(causal & (q - k < size)))


@settings(max_examples=25, deadline=None)
@given(
    bounds=st.tuples(st.integers(0, 200), st.integers(1, 80), st.integers(0, 200), st.integers(1, 80)),
    reach=st.integers(1, 200),
    blocks=st.sampled_from([(32, 16), (16, 32), (16, 16)]),
    past=st.booleans(),
)
def test_other_rows_do_not_grow(
    bounds: tuple[int, int, int, int], reach: int, blocks: tuple[int, int], past: bool
) -> None:
    q_low, q_size, k_low, k_size = bounds
    globals_q, globals_k = (q >= q_low) & (q < q_low + q_size), (k >= k_low) & (k < k_low + k_size)
    keep = abs(q - k) <= reach
    keep = causal & (keep | globals_k) if past else keep | globals_q | globals_k
    for by, walk, block in zip(("query", "key"), walks(keep, blocks=blocks), blocks, strict=True):
        longest = []
        for length in (1600, 3200):
            env, count = environment("square", length), length // block
            lo, hi = rows_of(walk, env, count) or (0, 0)
            found = turns(walk, by, env, count)  # type: ignore[arg-type]
            if walk.long is not None:
                assert found[lo:hi].min() > 800 // max(blocks)
                assert hi - lo <= 2 + max(q_size, k_size) // block
            longest.append(np.delete(found, np.arange(lo, hi)).max())
        if walk.long is not None:
            assert longest[0] == longest[1]
