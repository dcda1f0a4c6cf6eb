"""Corners of inputs, of choices, and of calls of definitions and patterns."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.semantics.corner import SEGMENT, Corner, Point, bools, random

# ---------------------------------------------------------------- tables


def _partial(p: Point, given: dict[str, Any]) -> bool:
    width = int(given["width"][p.b, p.h])
    return bool(p.q - p.k in range(width) or given["wanted"][p.h, p.q, p.k // 8])


PARTIAL = Corner(
    name="partial_indexing",
    text="""
        # Trailing index axes are implied: `width` is `width[b, h]`, and `wanted` is `wanted[h, q, k.blk]`.
        pattern partial_indexing() {
          axis blk = token by 8
          input width: int[b, h] in 0..
          input wanted: bool[h, q, k.blk]
          input lean: float[h, q]
          keep 0 <= q - k < width or wanted
          bias lean[h] * 0.5
        }""",
    kept=_partial,
    n=30,
    inputs={
        "width": np.array([[0, 3], [5, 1]], dtype=np.int32),
        "wanted": bools(1, (2, 30, 4), 0.3),
        "lean": random(1, (2, 30)),
    },
    trained=("lean",),
)

# Parents of the draft nodes of two sequences, and who is an ancestor of whom.
PARENTS = [[0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 3, 3]]


def _ancestors(parents: list[int]) -> np.ndarray:
    found = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        found[node] |= found[parent]
    return found


def _tree(p: Point, given: dict[str, Any]) -> bool:
    root = int(given["root"][p.b])
    if p.k < root:
        return True
    return bool(p.q >= root and given["ancestor"][p.b, p.q - root, p.k - root])


TREE = Corner(
    name="draft_tree",
    text="""
        pattern draft_tree(nodes: int in 1.. = 6) {
          input root: int[b] in 0..
          input ancestor: bool[b, nodes, nodes]
          keep k < root or q >= root and ancestor[b, q - root[b], k - root[b]]
        }""",
    kept=_tree,
    n=26,
    nq=6,
    inputs={
        "root": np.array([20, 20], dtype=np.int32),
        "ancestor": np.stack([_ancestors(parents) for parents in PARENTS]),
    },
)


def _own(p: Point, given: dict[str, Any]) -> bool:
    distance = min(max(p.q - p.k, -3), 3) + 3
    return bool(given["open"][p.h, distance] and p.k <= p.q + given["ahead"])


OWN = Corner(
    name="own_sizes",
    text="""
        # Relative positions, cut off at `far` on both sides.
        def place(far) = clamp(q - k, -far, far) + far

        pattern own_sizes(far: int in 0.. = 3) {
          input open: bool[h, 2 * far + 1]
          input rel: float[h, side: 2 * far + 1]
          input ahead: int in 0..
          keep open[h, place(far)] and k <= q + ahead
          bias rel[h, place(far)]
        }""",
    kept=_own,
    n=33,
    inputs={
        "open": np.array([[1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1, 1]], dtype=bool),
        "rel": random(2, (2, 7)),
        "ahead": np.array(2, dtype=np.int32),
    },
    trained=("rel",),
)


# ---------------------------------------------------------------- choices


def _choices(p: Point, given: dict[str, Any]) -> bool:
    layer = 3
    near = p.q - p.k < (8 if p.h < 2 else 3)
    if given["full"][p.g]:
        return p.k <= p.q
    if p.n >= 32 and layer in (0, 3):
        return p.k <= p.q and near
    return p.k % 2 == 0


CHOICES = Corner(
    name="choices",
    text="""
        # By group, length, layer and head.
        pattern choices(first: bool = true) {
          input full: bool[g]
          let window = if h < heads // 2 then 8 else 3
          keep if full then causal
            else if n >= 32 and layer in (0, 3) and first then causal and q - k < window
            else k % 2 == 0
        }""",
    kept=_choices,
    n=40,
    heads=4,
    groups=2,
    layer=3,
    inputs={"full": np.array([True, False])},
)


def _softmaxes(p: Point, given: dict[str, Any]) -> bool:
    return p.k <= p.q and p.q - p.k < 6 if p.h == 0 else p.k % 3 == 0


SOFTMAXES = Corner(
    name="softmaxes_by_head",
    text="""
        pattern softmaxes_by_head() {
          input slope: float[h]
          input rest: float[h]
          let near = attend { keep causal and q - k < 6  bias -slope * (q - k)  sink_logit rest }
          let wide = attend { keep k % 3 == 0  sink_logit rest * 2.0 }
          return if h == 0 then near else wide
        }""",
    kept=_softmaxes,
    n=31,
    inputs={"slope": random(3, (2,)), "rest": random(4, (2,))},
    trained=("slope", "rest"),
)


# ---------------------------------------------------------------- calls


def _calls(p: Point, given: dict[str, Any]) -> bool:
    """Blocks of 3 and of 5, and the library's streaming in the second document only."""
    same = p.q // 3 == p.k // 3 or p.q // 5 == p.k // 5
    stream = p.k <= p.q and (p.q - p.k < 4 or p.k < 1)
    return bool((same and given["doc"][p.q] == given["doc"][p.k]) or (stream and given["doc"][p.q] == 1))


CALLS = Corner(
    name="calls",
    text="""
        use "streaming.spat"

        # Both calls have an axis `blk` of their own, and the input of the caller.
        pattern blocks(size: int in 1..) {
          axis blk = token by size
          input doc: int[token]
          keep q.blk == k.blk and doc[q] == doc[k]
        }

        pattern calls(sizes: int[2] in 1.. = (3, 5)) {
          input doc: int[token]
          keep blocks(sizes[0]) or blocks(size = sizes[1])
          keep streaming(4, sinks = 1) and doc[q] == 1
        }""",
    kept=_calls,
    n=36,
    inputs={"doc": np.random.default_rng(8).integers(0, 3, 36).astype(np.int32)},
)


def _library(p: Point, _: dict[str, Any]) -> bool:
    """A neighborhood of 5 along rows of 9; the row's edges push it inwards."""
    (row_q, x), (row_k, y) = divmod(p.q, 9), divmod(p.k, 9)
    return row_q == row_k and abs(min(max(x, 2), 6) - y) <= 2


LIBRARY = Corner(
    name="library_definitions",
    text="""
        use "gna.spat"

        pattern library_definitions() {
          grid (row: 4, x: 9)
          keep q.row == k.row and near(q.x, k.x, 9, 5, 1, 1, false)
        }""",
    kept=_library,
    n=36,
)


def _lately(p: Point, given: dict[str, Any]) -> bool:
    """The queries are the last; the third of them sees nothing."""
    return p.q != p.n - p.nq + 2 and p.k <= p.q and p.q - p.k < 7


LATE = Corner(
    name="late_queries",
    text="""
        pattern late_queries() {
          input rest: float[q]
          input lean: float[token]
          input blocks: float[h, 12]
          keep causal and q - k < 7 and q != n - nq + 2
          sink_logit rest[q]
          bias lean[k] + blocks[h, k // 4] + (if q % 2 == 0 then 0.5 else 0.0)
        }""",
    kept=_lately,
    n=47,
    nq=9,
    inputs={"rest": random(9, (9,)), "lean": random(10, (47,)), "blocks": random(11, (2, 12))},
    trained=("rest", "lean", "blocks"),
)


def _counting(p: Point, given: dict[str, Any]) -> bool:
    doc, weight = given["doc"], given["weight"]
    size = int((doc == doc[p.k]).sum())
    return bool(p.k <= p.q and (size > 7 or min(5, p.n - p.k // 5 * 5) == 2 or weight.max() == weight[p.k]))


COUNTING = Corner(
    name="counting",
    text="""
        # Sums count positions, also of what does not vary along them; a number may stand for all keys.
        pattern counting() {
          input doc: int[token] sorted
          input weight: int[token]
          axis part = token by doc
          axis blk = token by 5
          let most = max(weight[k], over = k)
          keep causal and (sum(1, per = k.part) > 7 or sum(all, per = k.blk) == 2 or weight[k] == most)
          sink_logit 0.1 * most
        }""",
    kept=_counting,
    n=37,
    inputs={"doc": SEGMENT // 2, "weight": np.random.default_rng(12).integers(0, 99, 37).astype(np.int32)},
)
