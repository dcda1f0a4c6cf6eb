"""Corners of grids and axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.semantics.corner import SEGMENT, Corner, Point

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
