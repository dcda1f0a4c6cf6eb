"""Patterns from the corners of the language, each with the same set written again in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One pair: sequence, head, key/value head, query and key, and the sizes of the call."""

    b: int
    h: int
    g: int
    q: int
    k: int
    n: int
    nq: int


Kept = Callable[[Point, dict[str, Any]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """A pattern, a call of it, and whether a pair is kept, by the text of the language reference.

    ``trained`` names the inputs whose gradients are compared, too.
    """

    name: str
    text: str
    kept: Kept
    n: int
    nq: int | None = None
    batch: int = 2
    heads: int = 2
    groups: int = 1
    layer: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    trained: tuple[str, ...] = ()


def _random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _bools(seed: int, shape: tuple[int, ...], share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


# ---------------------------------------------------------------- grids


def _nested(p: Point, _: dict[str, Any]) -> bool:
    def cell(x: int) -> tuple[int, int, int] | None:
        frame, i = divmod(x, 14)
        return (frame, *divmod(i, 4)) if i < 12 else None

    one, two = cell(p.q), cell(p.k)
    if one is None or two is None:
        return p.q == p.k
    return (one[0] == two[0] and abs(one[1] - two[1]) <= 1 and one[2] == two[2]) or p.q == p.k


NESTED = Corner(
    name="nested_grids",
    text="""
        # Frames of 3 x 4 places and two more tokens, which are outside the inner grid.
        pattern nested_grids(frames: int in 1.. = 3) {
          grid (frame: frames, i: 14)
          grid picture (y: 3, x: 4) from i
          keep q.frame == k.frame and abs(q.y - k.y) <= 1 and q.x == k.x or q == k
        }""",
    kept=_nested,
    n=42,
)


def _video(p: Point, _: dict[str, Any]) -> bool:
    def cell(x: int) -> tuple[int, int] | None:
        return divmod(x - 7, 5) if 7 <= x < 37 else None

    one, two = cell(p.q), cell(p.k)
    if one is None or two is None:
        return p.k <= p.q
    return abs(one[0] - two[0]) <= 1 and one[1] != two[1]


FROM = Corner(
    name="grid_from",
    text="""
        # Text, a picture, text again.
        pattern grid_from(text: int in 0.. = 7) {
          grid picture (y: 6, x: 5) from text
          let both = q in picture and k in picture
          keep abs(q.y - k.y) <= 1 and q.x != k.x
          keep causal and not both
        }""",
    kept=_video,
    n=43,
)


def _tiles(p: Point, _: dict[str, Any]) -> bool:
    def tile(x: int) -> int:
        y, x = divmod(x, 7)
        return y // 2 * 3 + x // 3

    # The tiles are numbered row-major: 3 rows of 3.
    return tile(p.q) == tile(p.k) or tile(p.q) + 1 == tile(p.k) or tile(p.k) == 9 - 1


TILES = Corner(
    name="tiles_2d",
    text="""
        pattern tiles_2d(tile_size: int[2] in 1.. = (2, 3)) {
          grid (y: 5, x: 7)
          axis tile = (y, x) by tile_size
          keep k.tile - q.tile in (0, 1) or k.tile == tile.count - 1
        }""",
    kept=_tiles,
    n=35,
)

# ---------------------------------------------------------------- axes

SEGMENT = np.sort(np.random.default_rng(3).integers(0, 5, 37)).astype(np.int32) * 2


def _segments(p: Point, given: dict[str, Any]) -> bool:
    segment = given["segment"]
    one, two = segment[p.q], segment[p.k]
    # Segments that begin at an even position; segment numbers may leave gaps.
    begin = int(np.flatnonzero(segment == two)[0])
    return bool((one - two in (0, 2) and p.k <= p.q) or (begin % 2 == 0 and p.k == begin))


SORTED = Corner(
    name="sorted_axis",
    text="""
        pattern sorted_axis() {
          input segment: int[token] sorted
          axis seg = token by segment
          let begin = min(k, per = k.seg)
          keep q.seg - k.seg in (0, 2) and causal
          keep begin % 2 == 0 and k == begin
        }""",
    kept=_segments,
    n=37,
    inputs={"segment": SEGMENT},
)


def _windows(p: Point, _: dict[str, Any]) -> bool:
    def windows(x: int) -> list[int]:
        return [w for w in range(x // 3 + 1) if w * 3 <= x < w * 3 + 7]

    return any(w in windows(p.q) for w in windows(p.k)) and p.k <= p.q


WINDOWS = Corner(
    name="overlapping_windows",
    text="""
        pattern overlapping_windows(size: int in 1.. = 7, step_of: int in 1.. = 3) {
          axis win = token by size step step_of
          keep causal and q.win == k.win
        }""",
    kept=_windows,
    n=41,
)


def _done(p: Point, _: dict[str, Any]) -> bool:
    # Windows of 3 every 5: positions 3 and 4 of every five are in none.
    inside = p.k % 5 < 3
    return p.q - p.k in (0, 1) or (inside and p.k // 5 * 5 + 2 <= p.q)


GAPS = Corner(
    name="windows_with_gaps",
    text="""
        # A window is seen once it is done; what is in no window is seen from nearby only.
        pattern windows_with_gaps() {
          axis win = token by 3 step 5
          keep q - k in (0, 1)
          keep k.win.last <= q
        }""",
    kept=_done,
    n=43,
)


def _pyramid(p: Point, _: dict[str, Any]) -> bool:
    size = min(4, p.n - p.k // 4 * 4)
    first, last = p.k // 12 * 12, p.k // 12 * 12 + 11
    # Parts of equal length, rounded down at their beginnings.
    part_q, part_k = p.q * 5 // p.n, p.k * 5 // p.n
    count = -(-p.n // 12)
    return (last <= p.q and p.k == first) or (part_q == part_k and size == 4) or p.k // 12 == count - 1


PYRAMID = Corner(
    name="axes_of_axes",
    text="""
        pattern axes_of_axes() {
          axis blk = token by 4
          axis big = blk by 3
          axis part = token into 5
          keep k.big.last <= q and k == k.big.first
            or q.part == k.part and k.blk.size == 4
            or k.big == big.count - 1
        }""",
    kept=_pyramid,
    n=45,
)

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
        "wanted": _bools(1, (2, 30, 4), 0.3),
        "lean": _random(1, (2, 30)),
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
        "rel": _random(2, (2, 7)),
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
    inputs={"slope": _random(3, (2,)), "rest": _random(4, (2,))},
    trained=("slope", "rest"),
)

# ---------------------------------------------------------------- reductions and noise


def _rounding(p: Point, _: dict[str, Any]) -> bool:
    def rule(q: int, k: int) -> bool:
        return k <= q and (q - k) % 5 < 2

    def block(x: int) -> range:
        return range(x // 4 * 4, min(x // 4 * 4 + 4, p.n))

    hits = sum(rule(q, k) for q in block(p.q) for k in block(p.k))
    share = np.mean([rule(p.q, k) for k in range(p.n)])
    full = any(all(rule(q, k) for q in block(p.q)) for k in block(p.k))
    return bool(hits > 6 or full or (p.k == 0 and share > 0.3))


REDUCTIONS = Corner(
    name="reductions",
    text="""
        pattern reductions(size: int in 1.. = 4) {
          axis blk = token by size
          let rule = causal and (q - k) % 5 < 2
          let hits = sum(rule, per = (q.blk, k.blk))
          keep hits > 6
          keep any(all(rule, per = q.blk), per = k.blk)
          keep k == 0 and mean(rule, over = k) > 0.3
        }""",
    kept=_rounding,
    n=38,
)


def _extremes(p: Point, given: dict[str, Any]) -> bool:
    weight, marked = given["weight"], given["marked"]
    blocks = [list(range(start, min(start + 5, p.n))) for start in range(0, p.n, 5)]
    own = blocks[p.k // 5]
    best = max(weight[x] for x in own)
    return bool((any(marked[x] for x in own) and p.k <= p.q) or (weight[p.k] == best and weight[p.k] > min(weight)))


EXTREMES = Corner(
    name="extremes",
    text="""
        pattern extremes() {
          input weight: int[token]
          input marked: bool[token]
          axis blk = token by 5
          keep any(marked[k], per = k.blk) and causal
          keep weight[k] == max(weight[k], per = k.blk) and weight[k] > min(weight[k], over = k)
        }""",
    kept=_extremes,
    n=39,
    inputs={"weight": np.random.default_rng(5).integers(0, 9, 39).astype(np.int32), "marked": _bools(6, (39,), 0.2)},
)


def philox(seed: int, *counter: int) -> float:
    """Philox4x32-10 (Salmon et al., 2011), first word / 2**32."""
    word = 0xFFFFFFFF
    c = [*counter, 0, 0, 0, 0][:4]
    low, high = seed & word, seed >> 32 & word
    for _ in range(10):
        one, two = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [two >> 32 ^ c[1] ^ low, two & word, one >> 32 ^ c[3] ^ high, one & word]
        low, high = (low + 0x9E3779B9) & word, (high + 0xBB67AE85) & word
    return c[0] / 2**32


def _drawn(p: Point, _: dict[str, Any]) -> bool:
    mine, count = p.q // 4, -(-p.n // 4)
    candidates = sorted((j for j in range(count) if j < mine - 1), key=lambda j: (-philox(7, p.h, mine, j), j))
    # Three keys that everybody sees, and for every block of keys one of queries.
    known = sorted(range(p.n), key=lambda k: (-philox(8, k), k))[:3]
    seers = sorted(range(count), key=lambda i: (-philox(9, i, p.k // 4), i))[:1]
    return p.k // 4 in candidates[:2] or p.k in known or mine in seers or p.q == p.k


DRAWS = Corner(
    name="draws",
    text="""
        pattern draws(seed: int in 0.. = 7, picks: int in 0.. = 2) {
          axis blk = token by 4
          let blocks = noise(seed, per = (h, q.blk, k.blk)) |> only(k.blk < q.blk - 1) |> top(picks)
          let tokens = noise(seed + 1, per = k) |> top(3)
          let seers = noise(seed + 2, per = (q.blk, k.blk)) |> top(1, over = q.blk)
          keep blocks or tokens or seers or q == k
        }""",
    kept=_drawn,
    n=30,
)

# ---------------------------------------------------------------- arithmetic


def _arithmetic(p: Point, _: dict[str, Any]) -> bool:
    away = p.q - p.k
    return (
        (-away) // 3 % 2 == 0
        and (away % -4) > -3
        and -(2**2) + 4 == 0
        and 2.0**-1 == 0.5
        and (away / 2) // 1 != 3
        and (1 <= abs(away) < 9 != p.k)
        and -(away**2) > -70
    )


ARITHMETIC = Corner(
    name="arithmetic",
    text="""
        pattern arithmetic() {
          let away = q - k
          keep (-away) // 3 % 2 == 0
            and away % -4 > -3
            and -2 ** 2 + 4 == 0
            and 2 ** -1 == 0.5
            and away / 2 // 1 != 3
            and 1 <= abs(away) < 9 != k
            and -away ** 2 > -70
        }""",
    kept=_arithmetic,
    n=34,
)


def _functions(p: Point, _: dict[str, Any]) -> bool:
    away = p.q - p.k
    power = away > 0 and (away).bit_count() == 1
    return (
        power
        or int(abs(away) ** 0.5 + 1e-9) == 4
        or abs(away).bit_length() == 2
        or np.exp(-abs(away) / 8.0) > 0.9
        or np.ceil(p.k / 4) == np.floor(p.q / 4) + 5
    )


FUNCTIONS = Corner(
    name="functions",
    text="""
        pattern functions(fade: float in 0.1.. = 8.0) {
          let away = q - k
          keep is_pow2(away)
          keep isqrt(abs(away)) == 4
          keep bitlen(away) == 2
          keep exp(-abs(away) / fade) > 0.9 or ceil(k / 4) == floor(q / 4) + 5
        }""",
    kept=_functions,
    n=44,
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
    inputs={"rest": _random(9, (9,)), "lean": _random(10, (47,)), "blocks": _random(11, (2, 12))},
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


CORNERS = (
    NESTED, FROM, TILES, SORTED, WINDOWS, GAPS, PYRAMID, PARTIAL, TREE, OWN, CHOICES, SOFTMAXES, REDUCTIONS, EXTREMES,
    DRAWS, ARITHMETIC, FUNCTIONS, CALLS, LIBRARY, LATE, COUNTING,
)  # fmt: skip
