"""Walks of named patterns against brute force: both directions, ragged lengths, unequal tiles, offsets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import SlotWalk, TileRelation
from spdsl.semantics.nodes import Bounds, Const, Table, TableAxis
from tests.analysis.brute import check, environment
from tests.analysis.build import Term, b, causal, g, h, k, load, maximum, minimum, n, q, where

HEADS, GROUPS = 8, 2


def scalar(name: str, low: int | None, dtype: str = "int", axis: str = "b") -> Table:
    size = TableAxis(kind=axis, size=Const(value=4), label=axis)  # type: ignore[arg-type]
    bounds = None if low is None else Bounds(low=low)
    return Table(name=name, dtype=dtype, axes=(size,), bounds=bounds, sorted=False)  # type: ignore[arg-type]


def centre(x: Term, window: int, extent: Term) -> Term:
    return minimum(maximum(x, window // 2), extent - 1 - window // 2)


def block_diffusion(half: int, block: int) -> Term:
    noisy = (q < half) & (k < half) & (q // block).eq(k // block)
    across = (q < half) & (k >= half) & (q // block > (k - half) // block)
    clean = (q >= half) & (k >= half) & ((q - half) // block >= (k - half) // block)
    return noisy | across | clean


d = q - k
PREFIX = scalar("prefix", 0)
TABLES = (PREFIX, scalar("window", 1, axis="h"), scalar("wide", None, "bool", "g"))
VALUES = {"prefix": [0, 1, 37, 64], "window": [1, 5, 16, 40, 64, 100, 3, 2], "wide": [False, True]}

PATTERNS: dict[str, Term] = {
    "full": Term(Const(value=True)),
    "nothing": Term(Const(value=False)),
    "causal": causal,
    "anticausal": k > q,
    "window 1": causal & (d < 1),
    "window 40": causal & (d < 40),
    "both sides": abs(d) <= 33,
    "streaming": causal & ((d < 50) | (k < 4)),
    "prefix": causal | (k < load("prefix", b)),
    "window by head": causal & (d < load("window", h)),
    "head modes": causal & (load("wide", g, dtype="bool") | (d < 40) | (k < 16)),
    "block local": causal & (q // 48).eq(k // 48),
    "blocks": (q // 32).eq(k // 32),
    "dilated": causal & (d < 100) & (d % 4).eq(0),
    "strided": causal & ((d < 32) | (d % 64).eq(0)),
    "fixed": causal & ((q // 32).eq(k // 32) | (k % 32 >= 24)),
    "s2": causal & ((q // 16 - k // 16 < 3) | ((k // 16 + g * 4) % 8).eq(0)),
    "not s2": causal & ~((q // 16 - k // 16 < 3) | ((k // 16 + h) % 8).eq(0)),
    "longformer": (abs(d) <= 32) | (k < 16) | (q < 16),
    "block diffusion": block_diffusion(96, 8),
    "clamped": abs(k - centre(q, 25, n)) <= 12,
    "clamped tiles": abs(k // 16 - minimum(maximum(q // 16, 1), (n + 15) // 16 - 2)) <= 1,
    "not window": ~(causal & (d < 40)),
    "middle": causal & ~((d < 40) | (k < 20)),
    "composed": causal & ((k < 16) | (d < 40) | (k // 16 % 4).eq(3) | (q // 64).eq(k // 64)),
    "by length": causal & where(n > 100, d < 30, d < 60),
    "last key": causal | k.eq(n - 1),
    "neighbours of three": (q % 3).eq(k % 3) & (abs(d) < 64),
}

TILES = ((16, 16), (32, 16), (16, 32), (64, 32), (16, 64), (128, 64), (256, 128))


@cache
def relation(name: str, block_q: int, block_k: int, shape: str) -> TileRelation:
    return tile_relation(
        PATTERNS[name].expr,
        block_q=block_q,
        block_k=block_k,
        shape=shape,  # type: ignore[arg-type]
        heads=HEADS,
        groups=GROUPS,
        tables=TABLES,
    )


def in_slots(found: TileRelation) -> bool:
    return isinstance(found.by_query, SlotWalk) and isinstance(found.by_key, SlotWalk)


def environments(shape: str, block_q: int, block_k: int) -> Sequence[dict[str, int]]:
    unit = max(block_q, block_k)
    heads = [{"h": 0, "g": 0, "b": 0}, {"h": 5, "g": 1, "b": 2}, {"h": 3, "g": 0, "b": 3}]
    if shape == "square":
        lengths = (1, 7, unit - 1, unit, unit + 1, 2 * unit, 130, 192, 4 * unit, 5 * unit + 3)
        return [environment("square", length, **heads[i % 3]) for i, length in enumerate(lengths)]
    cases = [(1, 1, None), (70, 1, None), (129, 40, None), (200, 100, 13), (64, 64, 0), (50, 90, -40), (192, 64, 128)]
    cases += [(33, 70, 33), (160, 160, 5), (0, 20, 0), (90, 30, -10), (20, 33, -40)]
    return [environment("offset", *case, **heads[i % 3]) for i, case in enumerate(cases)]


@pytest.mark.parametrize("shape", ["square", "offset"])
@pytest.mark.parametrize("name", PATTERNS)
def test_named_patterns(name: str, shape: str) -> None:
    for block_q, block_k in TILES:
        walks = relation(name, block_q, block_k, shape)
        if not in_slots(walks):
            assert name in MAY_GIVE_UP, walks
            continue
        for env in environments(shape, block_q, block_k):
            check(walks, PATTERNS[name].expr, env, VALUES, tight=not walks.notes)


MAY_GIVE_UP: set[str] = set()


def near(x: Term, y: Term, window: int, extent: int) -> Term:
    return abs(y - centre(x, window, Term(Const(value=extent)))) <= window // 2


GRIDS: dict[str, tuple[int, Term]] = {
    "block diffusion": (
        512,
        (q // 256).eq(k // 256) & (q % 256 // 16).eq(k % 256 // 16)
        | (k // 256).eq(1) & (k % 256 // 16 < q % 256 // 16 + q // 256),
    ),
    "near in two dimensions": (12 * 20, near(q // 20, k // 20, 5, 12) & near(q % 20, k % 20, 7, 20)),
    "rows of a grid": (15 * 16, (q // 16).eq(k // 16) | (q % 16).eq(k % 16)),
}


@pytest.mark.parametrize("shape", ["square", "offset"])
@pytest.mark.parametrize("name", GRIDS)
def test_known_lengths(name: str, shape: str) -> None:
    length, keep = GRIDS[name]
    for block_q, block_k in ((32, 32), (64, 32), (32, 64)):
        walks = tile_relation(
            keep.expr,
            block_q=block_q,
            block_k=block_k,
            shape=shape,  # type: ignore[arg-type]
            heads=1,
            groups=1,
            length=length,
        )
        if not in_slots(walks):
            assert (name, shape) == ("near in two dimensions", "offset")
            continue
        for queries, start in ((length, 0), (40, length - 40), (100, 33), (1, 77)):
            if shape == "offset" or queries == length:
                check(walks, keep.expr, environment(shape, length, queries, start), tight=False)
