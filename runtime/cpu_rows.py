"""Which rows of tiles the CPU computes together.

From: a `TileList`.  To: chunks of rows with equally many tiles, of bounded size.  Runs of neighbouring tiles keep their
order, so that they are read as slices; other rows have their full tiles first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.runtime.calls import TileList

_CHUNK = 1 << 19
"""Logits that are held at once: two megabytes in fp32, about the size of a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tiles ``[rows, count]`` of the rows of a chunk; ``first`` and ``step`` are set when they are a slice.

    ``masked`` are the half-open ranges of columns that need a mask.  ``masks`` keeps masks that all heads share.
    """

    tiles: Tensor
    masked: tuple[tuple[int, int], ...]
    first: int | None
    step: int
    masks: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows computed together; a long row comes in several segments.  ``first`` is set when rows are neighbours."""

    rows: Tensor
    first: int | None
    segments: tuple[Segment, ...]
    logits: int

    def heads_at_once(self, units: int) -> int:
        """How many pairs of batch and head fit into one computation."""
        return max(1, min(units, _CHUNK // self.logits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Chunks for each batch and head of a list: ``chunks[batch][head]``."""

    chunks: tuple[tuple[tuple[Chunk, ...], ...], ...]


def schedule(lists: TileList, own_block: int, other_block: int) -> Schedule:
    """The chunks of all rows; rows of ``own_block`` elements meet tiles of ``other_block`` elements."""
    begin, middle, end = lists.begin.tolist(), lists.middle.tolist(), lists.end.tolist()
    tiles = lists.tiles.tolist()

    def of(batch: int, head: int) -> tuple[Chunk, ...]:
        return tuple(_chunks(begin[batch][head], middle[batch][head], end[batch][head], tiles, own_block, other_block))

    batches, heads, _ = lists.begin.shape
    return Schedule(chunks=tuple(tuple(of(batch, head) for head in range(heads)) for batch in range(batches)))


def _chunks(
    begin: list[int], middle: list[int], end: list[int], tiles: list[int], own: int, other: int
) -> Iterator[Chunk]:
    groups: dict[tuple[bool, tuple[bool, ...]], list[tuple[int, list[int]]]] = {}
    for row, (start, between, stop) in enumerate(zip(begin, middle, end, strict=True)):
        full, masked = tiles[start:between], tiles[between:stop]
        order, flags, run = _arranged(full, masked)
        if order:
            groups.setdefault((run, flags), []).append((row, order))
    for (_, flags), members in groups.items():
        size = own * other * len(flags)
        step = max(1, _CHUNK // size)
        for start in range(0, len(members), step):
            yield _chunk(members[start : start + step], flags, size, max(1, _CHUNK // (own * other)))


def _arranged(full: list[int], masked: list[int]) -> tuple[list[int], tuple[bool, ...], bool]:
    """Tiles in the order of computation, which of them are masked, and whether they are a run of neighbours."""
    both = sorted(full + masked)
    if both and both[-1] - both[0] + 1 == len(both):
        inside = set(masked)
        return both, tuple(tile in inside for tile in both), True
    return full + masked, (False,) * len(full) + (True,) * len(masked), False


def _chunk(members: list[tuple[int, list[int]]], flags: tuple[bool, ...], size: int, longest: int) -> Chunk:
    rows = torch.tensor([row for row, _ in members])
    tiles = torch.tensor([order for _, order in members])
    cuts = range(0, len(flags), longest)
    segments = tuple(_segment(tiles[:, cut : cut + longest], flags[cut : cut + longest]) for cut in cuts)
    logits = min(size, longest * size // len(flags)) * len(rows)
    return Chunk(rows=rows, first=_slice_start(rows), segments=segments, logits=logits)


def _segment(tiles: Tensor, flags: tuple[bool, ...]) -> Segment:
    run = bool((tiles.diff(dim=1) == 1).all())
    steps = tiles[:, 0].diff()
    even = run and bool((steps == (steps[0] if len(steps) else 0)).all()) and bool((steps >= 0).all())
    return Segment(
        tiles=tiles,
        masked=_ranges(flags),
        first=int(tiles[0, 0]) if even else None,
        step=int(steps[0]) if even and len(steps) else 0,
    )


def _slice_start(rows: Tensor) -> int | None:
    return int(rows[0]) if bool((rows.diff() == 1).all()) else None


def _ranges(flags: tuple[bool, ...]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for column, masked in enumerate(flags):
        if masked and found and found[-1][1] == column:
            found[-1] = (found[-1][0], column + 1)
        elif masked:
            found.append((column, column + 1))
    return tuple(found)
