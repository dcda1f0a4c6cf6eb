"""Where tiles lie in tensors, and how much of them the copy engine moves at once, where warps are specialised.

Groups of warps share the program's own tile, and of what they write together each has its part.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.plans import GROUP_ROWS
from spdsl.codegen.blocks import Argument, Corner
from spdsl.codegen.frame import Frame, head_of
from spdsl.codegen.tensors import joined_heads, plain_tensor
from spdsl.semantics.nodes import Side


def corner(frame: Frame, tensor: str, side: Side, *, shared: bool, by_columns: bool = False) -> Corner:
    """Where a tile of ``tensor`` begins; with ``shared`` each group's rows do, with ``by_columns`` its columns."""
    if shared and frame.kernel.pairs is not None and side == frame.own_side:
        return Corner(tensor=tensor, side=side, head=head_of(side), shared=False)
    found = Corner(
        tensor=tensor, side=side, head=head_of(side), classes=frame.classes, shared=shared, by_columns=by_columns
    )
    boxes = frame.kernel.boxes
    if boxes is None:
        return found
    along = _split_axis(boxes, side, frame.kernel.groups) if shared else None
    return replace(found, box=boxes.box(side), heads=joined_heads(frame, side), split=along)


def described(frame: Frame, name: str, side: Side, dim: int, *, shared: bool, columns: int | None = None) -> Argument:
    """A tensor that the copy engine reads or writes: what a group has of a tile where that is ``shared``, or all of it;
    all columns, or so many."""
    (argument, *_) = plain_tensor(frame, name, side, dim)
    tiles, boxes = frame.kernel, frame.kernel.boxes
    width = columns or frame.width(dim)
    if boxes is None:
        rows = GROUP_ROWS if shared else tiles.block_q if side == "q" else tiles.block_k
        middle = (rows,) if tiles.residues is None else (rows, 1)
        return replace(argument, block=(1, 1, *middle, width), classes=frame.classes)
    box = list(boxes.box(side))
    along = _split_axis(boxes, side, tiles.groups) if shared else None
    if along is not None:
        box[along] //= tiles.groups
    lead = (1,) if joined_heads(frame, side) else (1, 1)
    return replace(argument, block=(*lead, *box, width), extents=boxes.extents)


def _split_axis(boxes: Boxes, side: Side, groups: int) -> int | None:
    """The axis along which groups share a box: the slowest one, so that each has neighbouring lanes."""
    return None if groups == 1 else next(axis for axis, size in enumerate(boxes.box(side)) if size > 1)
