"""Tiles of picked blocks for the forward with specialised warps: where queries of a tile have picked alike.

From a kernel's frame to what differs from tiles of neighbouring keys.  Blocks that fill a tile are copied as any other;
smaller ones are put together: the copying warp reads the list and takes each from where it lies, so that no thread that
computes holds an address.  A block of 8 rows is what a swizzled tile is made of, and so stands alone in memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spdsl.codegen.arith import index
from spdsl.codegen.blocks import Argument, Block, Define, ListedBlocks, Loop, PickedKeys, Program, SendBlocks
from spdsl.codegen.frame import COLUMNS, Frame
from spdsl.codegen.walks import MASKED


def picked_begin(frame: Frame) -> tuple[Block, ...]:
    """What a program works on: a tile of queries of one head, which has a list of its own."""
    assert frame.kernel.picks is not None
    shape = frame.plan.problem.shape
    begin = Program(
        by="query", ratio=frame.ratio, reverse=True, shape=shape, counted=True, looped=frame.kernel.persistent
    )
    return begin, *(Define(name=name, value=index("h")) for name in ("owner", "h_rows"))


def of_blocks(frame: Frame, argument: Argument) -> Argument:
    """A tensor of keys: a block of it is what the copy engine moves at once."""
    picks = frame.kernel.picks
    if picks is None or not frame.gathers_keys:
        return argument
    return replace(argument, block=(1, 1, picks.block, COLUMNS))


def sizes_of_blocks(frame: Frame) -> tuple[tuple[str, int], ...]:
    """Compile-time sizes of tiles that are put together."""
    if not frame.gathers_keys:
        return ()
    return ("COLUMNS", COLUMNS), ("HALVES", _halves(frame)), ("BLOCKS", _count(frame))


def blocks_told(frame: Frame) -> int:
    """Of how many blocks of a tile it is told where they begin."""
    return _count(frame) if frame.gathers_keys else 0


def listed_by(frame: Frame, *, every: bool) -> Literal["masked", "every"] | None:
    """Where the numbers of keys are read: for masks, or in ``every`` tile."""
    if not frame.gathers_keys:
        return None
    return "every" if every else "masked"


def send_blocks(frame: Frame, loops: tuple[Block, ...]) -> tuple[Block, ...]:
    """The loop over a list, whose tiles are put together."""
    (loop,) = loops
    assert isinstance(loop, Loop)
    listed, flag, _ = loop.body
    assert isinstance(listed, PickedKeys)
    sizes = {"block": listed.block, "count": _count(frame)}
    body = (ListedBlocks(**sizes), flag, SendBlocks(**sizes, halves=_halves(frame), masked=MASKED))
    return (replace(loop, body=body),)


def _count(frame: Frame) -> int:
    """Blocks of a tile."""
    assert frame.kernel.picks is not None
    return frame.kernel.block_k // frame.kernel.picks.block


def _halves(frame: Frame) -> int:
    """How many times a row of keys is as wide as one of a swizzled tile."""
    return frame.plan.problem.pattern.head_dim // COLUMNS
