"""Boxes of a grid: touched and full boxes of random masks against brute force, and the sizes that are chosen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from spdsl.analysis.box_sizes import Reach, best_sizes
from spdsl.analysis.box_tiles import Boxes, BoxRelation
from spdsl.analysis.boxes import boxes_of
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.analysis.stages import stage
from spdsl.analysis.tiles import BoxWalk, Interval
from spdsl.semantics.nodes import BoundPattern, Index, Side
from spdsl.semantics.rewrite import free_indices
from tests.analysis.build import Term, h, load, maximum, minimum
from tests.analysis.evaluate_rows import evaluate_many
from tests.library.bound import library, program

Env = dict[str, Any]
SIDES: tuple[Side, Side] = ("q", "k")
Rule = Callable[[Term, Term, int], Term]


def coordinate(side: str, axis: int) -> Term:
    return Term(Index(name=f"{side}{axis}"))


def flat(side: str) -> Term:
    return Term(Index(name=side))


def clamped(window: int, stride: int = 1) -> Rule:
    """The rule of neighborhood attention: the window keeps its size at the edges."""

    def rule(q: Term, k: Term, extent: int) -> Term:
        size = min(window, extent)
        leader = minimum((q // stride) * stride + stride // 2, extent - 1)
        middle = minimum(maximum(leader, size // 2), extent - size + size // 2)
        place = k - middle + size // 2
        return (place >= 0) & (place < size)

    return rule


RULES: dict[str, Rule] = {
    "all": lambda q, k, extent: (q >= 0) & (k >= 0),
    "same": lambda q, k, extent: q.eq(k),
    "near": lambda q, k, extent: abs(q - k) <= 3,
    "behind": lambda q, k, extent: (q >= k) & (q - k < 4),
    "ahead": lambda q, k, extent: (k - q >= 1) & (k - q < 6),
    "causal": lambda q, k, extent: q >= k,
    "odd": clamped(5),
    "even": clamped(4),
    "wide": clamped(9),
    "strided": clamped(5, 3),
    "strided, even": clamped(6, 4),
    "blocks": lambda q, k, extent: (q // 3).eq(k // 3),
    "neighbouring blocks": lambda q, k, extent: abs(q // 4 - k // 4) <= 1,
    "dilated": lambda q, k, extent: (abs(q - k) <= 6) & ((q - k) % 2).eq(0),
    "dilated, causal": lambda q, k, extent: (q >= k) & (q - k < 7) & (q % 3).eq(k % 3),
    "every second": lambda q, k, extent: ((q - k) % 2).eq(1),
    "first": lambda q, k, extent: k < 3,
    "first or near": lambda q, k, extent: (k < 2) | (abs(q - k) <= 1),
    "not near": lambda q, k, extent: abs(q - k) > 2,
    "some queries": lambda q, k, extent: (q < 4) & (k > q),
}


def places(extents: tuple[int, ...]) -> np.ndarray:
    """Coordinates of all positions, ``[axes, n]``."""
    return np.stack(np.unravel_index(np.arange(prod(extents)), extents))


def mask_of(keep: Term, extents: tuple[int, ...], more: Env | None = None, tables: Env | None = None) -> np.ndarray:
    n = prod(extents)
    at = places(extents)
    env: Env = {"q": np.arange(n)[:, None], "k": np.arange(n)[None, :], "n": n, "nq": n, **(more or {})}
    for axis in range(len(extents)):
        env |= {f"q{axis}": at[axis][:, None], f"k{axis}": at[axis][None, :]}
    return np.broadcast_to(evaluate_many(keep.expr, env, tables), (n, n))


def boxes_of_mask(mask: np.ndarray, boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """(touched, full) of every box of queries and every box of keys, by their numbers."""
    numbers = [numbers_of(places(boxes.extents), boxes, side) for side in SIDES]
    counts = [prod(boxes.counts(side)) for side in SIDES]
    kept, lacking = np.zeros(counts, int), np.zeros(counts, int)
    where = np.broadcast_to(numbers[0][:, None], mask.shape), np.broadcast_to(numbers[1][None, :], mask.shape)
    np.add.at(kept, where, mask)
    np.add.at(lacking, where, ~mask)
    return kept > 0, lacking == 0


def numbers_of(at: np.ndarray, boxes: Boxes, side: Side) -> np.ndarray:
    """The numbers of the boxes that hold the coordinates ``at [axes, places]``."""
    steps, sizes = np.array(boxes.steps)[:, None], np.array(boxes.box(side))[:, None]
    along = at // steps // sizes * steps + at % steps
    return np.asarray(np.ravel_multi_index(tuple(along), boxes.counts(side)))


def walked(walk: BoxWalk, boxes: Boxes, side: Side, more: Env, tables: Env | None) -> tuple[np.ndarray, np.ndarray]:
    """(walked, of these not masked) of every own box, as a kernel does."""
    own, other = ("i", "k") if side == "q" else ("j", "q")
    counts, others = boxes.counts(side), boxes.counts(other)  # type: ignore[arg-type]
    touched, full = np.zeros((prod(counts), prod(others)), bool), np.zeros((prod(counts), prod(others)), bool)
    for number, turns in enumerate(product(*map(range, counts))):
        classes = [turn % step for turn, step in zip(turns, boxes.steps, strict=True)]
        env = {f"class{axis}": at for axis, at in enumerate(classes)} | more
        env |= {f"{own}{axis}": turn // boxes.steps[axis] for axis, turn in enumerate(turns)}

        def ends(intervals: tuple[Interval, ...], env: Env = env) -> list[tuple[int, int]]:
            return [(int(evaluate_many(e.lo, env, tables)), int(evaluate_many(e.hi, env, tables))) for e in intervals]

        inner = None if walk.full is None else ends(walk.full)
        for tile in product(*(range(lo, hi) for lo, hi in ends(walk.touched))):
            assert min(tile) >= 0
            along = [t * step + c for t, step, c in zip(tile, boxes.steps, classes, strict=True)]
            if any(at >= count for at, count in zip(along, others, strict=True)):
                assert max(boxes.steps) > 1  # the last box of a class that has fewer places than others
                continue
            at = int(np.ravel_multi_index(along, others))
            assert not touched[number, at]
            touched[number, at] = True
            full[number, at] = inner is not None and all(lo <= t < hi for t, (lo, hi) in zip(tile, inner, strict=True))
    return touched, full


def check(found: BoxRelation, keep: Term, *, exact: bool, more: Env | None = None, tables: Env | None = None) -> int:
    """Both walks against the mask; returns how many boxes are walked without a mask."""
    boxes, count = found.boxes, 0
    mask = mask_of(keep, boxes.extents, more, tables)
    meet = np.ones_like(mask)
    for at, step in zip(places(boxes.extents), boxes.steps, strict=True):
        meet &= at[:, None] % step == at[None, :] % step
    assert not (mask & ~meet).any()
    assert (mask_of(Term(boxes.keep), boxes.extents, more, tables) & meet == mask).all()
    touched, full = boxes_of_mask(mask, boxes)
    for side, walk, t, f in (("q", found.by_query, touched, full), ("k", found.by_key, touched.T, full.T)):
        seen, bare = walked(walk, boxes, side, more or {}, tables)  # type: ignore[arg-type]
        assert (seen | ~t).all()
        assert (f | ~bare).all()
        other: Side = "k" if side == "q" else "q"
        sizes = np.bincount(numbers_of(places(boxes.extents), boxes, other), minlength=prod(boxes.counts(other)))
        assert ((sizes == prod(boxes.box(other))) | ~bare).all()  # loads of full boxes are not guarded
        if exact and not boxes.ragged("q") and not boxes.ragged("k"):
            assert (seen == t).all()
            assert (bare == (t & f)).all()
        count += int(bare.sum())
    return count


def relation(keep: Term, extents: tuple[int, ...], sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> BoxRelation:
    found = boxes_of(
        keep.expr, extents=extents, block_q=prod(sizes[0]), block_k=prod(sizes[1]), heads=4, groups=2, sizes=sizes
    )
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(20))
def test_random_grids(seed: int) -> None:
    """Fifty grids of one to four axes each, their rules, extents and boxes drawn at random."""
    random = np.random.default_rng(seed)
    full = exact = 0
    for _ in range(50):
        axes = int(random.choice((1, 2, 2, 2, 3, 4)))
        extents = tuple(int(e) for e in random.choice((1, 2, 3, 5, 8, 12, 13, 16), axes))
        while prod(extents) > 700:
            extents = tuple(max(1, extent // 2) for extent in extents)
        names = [str(name) for name in random.choice(list(RULES), axes)]
        sizes = tuple(tuple(int(s) for s in random.choice((1, 2, 4, 8), axes)) for _ in "qk")
        keep: Term | None = None
        for axis, name in enumerate(names):
            rule = RULES[name](coordinate("q", axis), coordinate("k", axis), extents[axis])
            keep = rule if keep is None else keep & rule
        assert keep is not None
        found = relation(keep, extents, sizes)  # type: ignore[arg-type]
        exact += not found.notes
        full += check(found, keep, exact=not found.notes)
    assert exact > 20
    assert full > 0


@pytest.mark.parametrize("more", ["causal", "diagonal", "parity"])
def test_clauses_about_several_axes_are_masked(more: str) -> None:
    """They are tested pair by pair, and leave no box full."""
    rest = {
        "causal": flat("q") >= flat("k"),
        "diagonal": abs(coordinate("q", 0) - coordinate("k", 1)) <= 2,
        "parity": ((coordinate("q", 0) + coordinate("q", 1)) % 2).eq(0),
    }[more]
    keep = (abs(coordinate("q", 0) - coordinate("k", 0)) <= 2) & (coordinate("q", 1) >= coordinate("k", 1)) & rest
    found = relation(keep, (9, 14), ((2, 4), (4, 4)))
    assert found.by_query.full is None
    assert "pair by pair" in found.notes[-1]
    check(found, keep, exact=False)


def test_windows_by_head() -> None:
    """Loads that are constant for a program stay in the bounds."""
    tables = {"window": np.array([[0, 1], [3, 2], [1, 9], [20, 0]])}
    near = [abs(coordinate("q", axis) - coordinate("k", axis)) <= load("window", h, axis) for axis in range(2)]
    keep = near[0] & near[1]
    found = relation(keep, (12, 10), ((4, 2), (2, 4)))
    assert not found.notes
    for head in range(4):
        check(found, keep, exact=head < 3, more={"h": head, "g": head // 2}, tables=tables)


def test_sizes_are_the_best() -> None:
    """The totals are those of brute force over all pairs of boxes, and the smallest is taken."""
    random = np.random.default_rng(5)
    axes = []
    for extent in (12, 13, 7):
        lows = np.sort(random.integers(0, extent, extent))
        axes.append(
            Reach(
                lows=tuple(map(int, lows)), highs=tuple(int(min(extent, low + random.integers(0, 6))) for low in lows)
            )
        )
    best_q, best_k, computed = best_sizes(axes, 32, 16)
    assert prod(best_q) == 32
    assert prod(best_k) == 16
    totals = {}
    for sizes_q in product((1, 2, 4, 8, 16, 32), repeat=3):
        for sizes_k in product((1, 2, 4, 8, 16), repeat=3):
            if prod(sizes_q) == 32 and prod(sizes_k) == 16:
                boxes = prod(
                    _boxes(axis, *pair) for axis, pair in zip(axes, zip(sizes_q, sizes_k, strict=True), strict=True)
                )
                totals[sizes_q, sizes_k] = boxes * 32 * 16
    assert computed == totals[best_q, best_k] == min(totals.values())


def _boxes(axis: Reach, box_q: int, box_k: int) -> int:
    count = 0
    for start in range(0, axis.extent, box_q):
        rows = [(lo, hi) for lo, hi in zip(axis.lows, axis.highs, strict=True)][start : start + box_q]
        keys = [key for lo, hi in rows for key in range(lo, hi)]
        count += len(range(min(keys) // box_k, max(keys) // box_k + 1)) if keys else 0
    return count


def problem(pattern: BoundPattern, shape: str = "square") -> Problem:
    return Problem(pattern=pattern, dtype="bf16", value_dim=16, shape=shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "parameters", "most", "most_forward"),
    [
        ("neighborhood_2d", {"extents": (192, 192), "window": (25, 25)}, 0.040, 0.040),
        # Boxes of 128 keys compute a little more than those of 64, and were measured to be a tenth faster.
        ("neighborhood_3d", {"extents": (30, 48, 80), "window": (19, 25, 25)}, 0.180, 0.188),
    ],
)
def test_published_grids(name: str, parameters: dict[str, object], most: float, most_forward: float) -> None:
    """The shares of all pairs that are computed; tiles of consecutive rows compute 13.3 % and 34.8 %."""
    found = plan(problem(library(name, **parameters)), "sm_90")
    for kernel in (found.forward, found.dq, found.dkdv):
        assert kernel.boxes is not None
        assert isinstance(kernel.walk, BoxWalk)
        own = ("j", "k") if kernel.kind == "dkdv" else ("i", "q")
        boxes = prod(
            sum(
                int(evaluate_many(ends.hi, {f"{own[0]}{axis}": at}) - evaluate_many(ends.lo, {f"{own[0]}{axis}": at}))
                for at in range(kernel.boxes.counts(own[1])[axis])  # type: ignore[arg-type]
            )
            for axis, ends in enumerate(kernel.walk.touched)
        )
        share = boxes * kernel.block_q * kernel.block_k / prod(kernel.boxes.extents) ** 2
        assert share < (most_forward if kernel.kind == "forward" else most), (kernel.kind, share)


@pytest.mark.parametrize(
    "text",
    [
        "pattern p() { grid (y: 64, x: 64)  keep abs(q.y - k.y) <= 4 }",  # runs of rows do as well
        "pattern p() { grid (y: 64, x: 64)  keep causal }",
        "pattern p() { grid (x: 4096)  keep abs(q.x - k.x) <= 12 }",
        "pattern p() { grid video (y: 64, x: 64)  keep abs(q.y - k.y) <= 4 and abs(q.x - k.x) <= 4 }",
    ],
)
def test_no_boxes(text: str) -> None:
    assert plan(problem(program(text)), "sm_90").forward.boxes is None


def test_sliding_tiles() -> None:
    """Boxes lie inside the tiles of the pattern, whatever the windows of the heads; text follows the grid."""
    found = plan(problem(library("sliding_tile_3d", heads=4, groups=4, extents=(30, 48, 80))), "sm_90")
    for kernel in (found.forward, found.dq, found.dkdv):
        assert kernel.boxes is not None
        assert kernel.boxes.tail
        assert isinstance(kernel.walk, BoxWalk)
        assert kernel.walk.full is not None
        for side in SIDES:
            assert all(tile % box == 0 for tile, box in zip((6, 8, 8), kernel.boxes.box(side), strict=True))


def test_boxes_are_for_gpus_and_whole_grids() -> None:
    pattern = library("neighborhood_2d", extents=(192, 192), window=(25, 25))
    assert plan(problem(pattern), "cpu").forward.boxes is None
    assert plan(problem(pattern, "offset"), "sm_90").forward.boxes is None


def test_coordinates_of_the_grid_stay() -> None:
    pattern = library("neighborhood_2d", extents=(192, 192), window=(25, 25))
    staged = stage(pattern)
    assert staged.on_grid is not None
    assert free_indices(staged.on_grid) == {"q0", "q1", "k0", "k1"}
    assert free_indices(staged.keep) == {"q", "k"}
