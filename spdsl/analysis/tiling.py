"""Tile sizes and launch options to begin with, for each kernel and machine.

The numbers come from measurements on an H100 and an H200 with bf16 (causal, window and listed tiles); other machines
take the nearest that fits their shared memory and registers.  Autotuning may replace them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spdsl.analysis.plans import Precision, Tiles
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, PickWalk, SlotWalk, Walk, lanes_of

Kind = Literal["forward", "dq", "dkdv"]


def default_tiles(
    kind: Kind | Literal["fused"],
    *,
    dtype: Precision,
    head_dim: int,
    value_dim: int,
    walk: Walk | None,
    crowded: bool,
    descriptors: bool,
    specialised: bool,
    target: str,
    capped: bool = False,
    coarse: bool = False,
) -> Tiles:
    """Good first tiles for a kernel on ``target`` (``cpu``, ``sm_80``, ``sm_90``, ``sm_100``, ``gfx942``, …).

    ``walk`` is None before the walk is known; the caller asks again when it is.  ``crowded`` says that the logits or
    the set need registers of their own, ``descriptors`` that tiles are loaded by the copy engine, which needs none,
    ``specialised`` that a warp of its own sees to that, ``capped`` that logits have a soft cap,
    ``coarse`` that lists of tiles are made of pairs of runs of tokens.
    """
    width = max(head_dim, value_dim)
    if kind == "fused":
        return Tiles(block_q=64 if width > 64 else 128, block_k=128, warps=4, stages=2, specialised=True)
    if kind == "forward" and specialised:
        return _specialised(width, None if coarse and isinstance(walk, ListWalk) else walk, capped)
    if target == "cpu":
        return Tiles(block_q=64, block_k=64, warps=4, stages=1)
    if dtype == "fp32":
        return _single(kind, width)
    if target.startswith("gfx"):
        return _cdna(kind, width)
    if descriptors:
        if kind == "dkdv" and 64 < width <= 128 and isinstance(walk, BoxWalk):
            return Tiles(block_q=32, block_k=64, warps=4, stages=2)  # coordinates of several axes take registers
        plain = _edges(walk) <= 2 and not isinstance(walk, ListWalk | DistanceWalk) and not crowded
        tiles = _copied(kind, width, plain, _takes_scratch(walk))
        # Blackwell's products keep more of a wide tile in shared memory.
        return replace(tiles, stages=1) if target == "sm_100" and kind == "dkdv" and width > 128 else tiles
    if target in ("sm_90", "sm_100"):
        return _hopper(kind, width, _edges(walk), isinstance(walk, ListWalk | DistanceWalk), crowded)
    return _ampere(kind, width)


def _specialised(width: int, walk: Walk | None, capped: bool) -> Tiles:
    """The forward on Hopper: two groups of four warps, or one, so that two programs share an SM.

    Tiles of 128 by 128 are a fifth faster for what they compute, which is more where a pattern has a finer grain.  A
    soft cap is computed beside the products of another program: 1.3 to 1.5 times as fast.
    """
    if width > 128:
        return Tiles(block_q=128, block_k=64, warps=4, stages=2, specialised=True)
    match walk:
        case ListWalk() | PickWalk():
            fine = True
        case DistanceWalk(period=period):
            fine = period % 128 != 0
        case SlotWalk(slots=slots):
            fine = any(slot.step > 1 for slot in slots)
        case BoxWalk(touched=touched):
            fine = len(touched) == 2  # of three axes a box has few places along each as it is
        case None:
            fine = False
    if fine or capped:
        return Tiles(block_q=64, block_k=64, warps=4, stages=3 if width > 64 else 4, specialised=True)
    return Tiles(block_q=128, block_k=128, warps=4, stages=2 if width > 64 else 4, specialised=True)


def _edges(walk: Walk | None) -> int:
    """How many loops a row needs when each slot has a masked head, a full middle and a masked tail."""
    match walk:
        case None:
            return 2
        case ListWalk() | DistanceWalk() | PickWalk():
            return 2
        case BoxWalk():
            return 3  # the smaller the boxes, the less they compute in vain
        case SlotWalk(slots=slots):
            loops = 0
            for slot in slots:
                loops += 1 if slot.full is None else 2 if slot.full.lo == slot.touched.lo else 3
            return loops


def _takes_scratch(walk: Walk | None) -> bool:
    """Whether a program takes shared memory beside its tiles: for the sums of a part, or to search distances."""
    match walk:
        case SlotWalk(long=long):
            return long is not None
        case None | BoxWalk() | PickWalk():
            return False
        case ListWalk() | DistanceWalk():
            return True


BITS = 32
"""Queries of a tile that have a bit each in the list of what they have picked."""

FEW = 4
"""Heads that share a list, up to which queries are gathered by the blocks that they have picked: a tile of neighbours
would hold many queries, which have picked many blocks."""

KEPT = 16
"""Picks of a query up to which queries are gathered by block: a row of output is kept for each at once."""

_PICKED_ROWS = 64
"""Rows of a tile of queries whose heads are packed: those of a matrix instruction of Hopper.  What is read of keys and
values bounds such kernels, so that rows of queries that have not picked a block cost nothing."""


TILE = 64
"""Keys of a tile at best: smaller blocks are gathered into it where all of its queries have picked them."""


LONG_BLOCK = 256
"""Keys of a block from which on many queries have picked it, so that twice as many rows meet each tile of keys."""

_LONG_FORWARD = Tiles(block_q=2 * _PICKED_ROWS, block_k=64, warps=4, stages=2)
_LONG_DQ = Tiles(block_q=2 * _PICKED_ROWS, block_k=32, warps=4, stages=3)


def positions_of(dtype: Precision, heads: int) -> int:
    """How many queries a tile holds, for ``heads`` rows of each."""
    return max(1, (32 if dtype == "fp32" else _PICKED_ROWS) // lanes_of(heads))


def picked_tiles(
    kind: Kind | Literal["fused"],
    *,
    dtype: Precision,
    head_dim: int,
    value_dim: int,
    positions: int,
    heads: int,
    block: int,
    run: int,
    fine: bool,
    gathered: bool,
    target: str,
) -> Tiles:
    """Tiles of a kernel that walks what queries have picked: blocks of ``block`` keys, once for ``heads`` heads of
    ``positions`` queries, of which ``run`` neighbours have picked alike; with ``fine`` keys are ``gathered``, else that
    says that queries are."""
    width = max(head_dim, value_dim)
    rows = positions * lanes_of(heads)
    small = dtype == "fp32" or target.startswith("gfx") or width > 128
    # Addresses and bits of queries that are gathered take registers.
    tight = kind == "dkdv" and lanes_of(heads) >= (_PICKED_ROWS if fine else 2 * _PICKED_ROWS)
    sizes = (32, 16) if small or tight else (64, 32, 16)
    keys = sizes[0] if fine else next(size for size in sizes if block % size == 0)
    hopper = target in ("sm_90", "sm_100") and not small
    if hopper and gathered and kind != "dkdv" and (rows, width) == (_PICKED_ROWS, 128) and block % LONG_BLOCK == 0:
        return _LONG_FORWARD if kind == "forward" else _LONG_DQ
    wide = rows > _PICKED_ROWS or width > 128
    match kind:
        case "forward" if fine and hopper and rows <= 16 and width <= 64:
            # The sums of a row stay within the one warp, and many programs hide what it waits for.
            return Tiles(block_q=rows, block_k=keys, warps=1, stages=2)
        case "dq" if fine and hopper and width <= 64:
            return Tiles(block_q=rows, block_k=keys, warps=2 if rows <= 16 else 4, stages=2 if rows <= 16 else 3)
        case "forward" | "dq" if fine and hopper:
            return Tiles(block_q=rows, block_k=keys, warps=8 if wide else 4, stages=2 if wide else 3)
        case "forward":
            return Tiles(block_q=rows, block_k=keys, warps=8 if wide else 4, stages=3 if hopper else 1)
        case "dq":
            return Tiles(block_q=rows, block_k=keys, warps=8 if wide else 4, stages=2 if hopper else 1)
        case _ if hopper and lanes_of(heads) <= 32:
            # Half a tile: addresses of rows that are gathered take registers.
            if keys == 16 and width <= 64 and lanes_of(heads) == 1:
                long = run >= _PICKED_ROWS
                return Tiles(block_q=_PICKED_ROWS if long else 32, block_k=keys, warps=4 if long else 2, stages=3)
            return Tiles(block_q=32, block_k=keys, warps=4, stages=3)
        case _ if hopper and fine and not wide:
            return Tiles(block_q=rows, block_k=keys, warps=4, stages=2)
        case _:
            return Tiles(block_q=rows, block_k=keys, warps=8, stages=2 if hopper else 1)


def _copied(kind: Kind, width: int, plain: bool, scratch: bool) -> Tiles:
    """The fastest of those tried on an H200 with tiles that the copy engine loads; ``plain`` rows are long and have one
    edge, as those of causal patterns; with ``scratch`` a program takes shared memory beside its tiles."""
    match kind:
        case "forward" if width > 128:
            return Tiles(block_q=128, block_k=64, warps=8, stages=2)
        case "forward" if width > 64 and plain:
            return Tiles(block_q=128, block_k=128, warps=8, stages=3)
        case "forward":
            # Two programs share the memory of an SM: three stages and any scratch are just too much for that.
            return Tiles(block_q=64, block_k=64, warps=4, stages=2 if scratch and width > 64 else 3)
        case "dq" if width > 128:
            return Tiles(block_q=128, block_k=32, warps=8, stages=2)
        case "dq" if plain:
            return Tiles(block_q=128, block_k=64, warps=8 if width > 64 else 4, stages=3)
        case "dq":
            return Tiles(block_q=64, block_k=64, warps=4, stages=2)
        case "dkdv" if width > 128:
            return Tiles(block_q=64, block_k=64, warps=8, stages=2)
        case "dkdv" if width > 64:
            return Tiles(block_q=64, block_k=64, warps=4, stages=2)
        case "dkdv":
            return Tiles(block_q=64, block_k=128, warps=8, stages=2)


def _hopper(kind: Kind, width: int, loops: int, listed: bool, crowded: bool) -> Tiles:
    """The fastest of those tried on an H200 (causal, windows, lists) that spill 16 registers at most."""
    match kind:
        case "forward" if width <= 128 and (loops > 2 or listed):
            return Tiles(block_q=64, block_k=64, warps=4, stages=3 if listed else 2)
        case "forward":
            return Tiles(block_q=128, block_k=64, warps=8, stages=3 if width <= 128 else 2)
        case "dq" if width <= 64:
            return Tiles(block_q=64, block_k=64, warps=4, stages=3 if loops <= 2 and not listed else 2)
        case "dq" if width <= 128:
            wide = loops <= 2 or listed
            return Tiles(block_q=128 if wide else 64, block_k=64, warps=8 if wide else 4, stages=3 if wide else 2)
        case "dq":
            return Tiles(block_q=64, block_k=32, warps=8, stages=2)
        case "dkdv" if width <= 64:
            return Tiles(block_q=32 if crowded else 64, block_k=64, warps=4, stages=2)
        case "dkdv" if width <= 128:
            return Tiles(block_q=32, block_k=128, warps=8, stages=2)
        case "dkdv":
            return Tiles(block_q=64, block_k=32, warps=8, stages=1)


def _ampere(kind: Kind, width: int) -> Tiles:
    """Within 99 KB of shared memory, which the smaller machines of the family have."""
    if width <= 64:
        return Tiles(block_q=128 if kind == "forward" else 64, block_k=32 if kind == "dkdv" else 64, warps=4, stages=2)
    if width <= 128:
        return Tiles(block_q=64, block_k=64 if kind != "dkdv" else 32, warps=4, stages=2 if kind == "forward" else 1)
    return Tiles(block_q=32, block_k=32, warps=4, stages=1)


def _cdna(kind: Kind, width: int) -> Tiles:
    """Within the 64 KB of local memory of a compute unit."""
    if width <= 128:
        return Tiles(block_q=128 if kind == "forward" else 64, block_k=64 if width <= 64 else 32, warps=4, stages=1)
    return Tiles(block_q=32, block_k=32, warps=4, stages=1)


def _single(kind: Kind, width: int) -> Tiles:
    """fp32: products run without tensor cores, so registers and shared memory bound the tile."""
    if width <= 64:
        return Tiles(block_q=32 if kind == "dkdv" else 64, block_k=32, warps=4 if kind == "dkdv" else 8, stages=1)
    if width <= 128:
        return Tiles(block_q=32, block_k=32, warps=4 if kind == "dkdv" else 8, stages=1)
    return Tiles(block_q=16, block_k=16, warps=4, stages=1)
