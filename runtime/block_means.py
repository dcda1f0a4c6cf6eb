"""Means and sums of vectors over blocks of neighbours, by one kernel that reads them where they lie.

From: a reduction of a tensor, or of means of it, per an axis of blocks or windows of one size.  To: its whole array;
None where it is of another kind.  It is differentiated by a kernel, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from spdsl.runtime.memo import Memo
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import TENSORS, Pool, Stage, side_of
from spdsl.semantics.nodes import Axis, Const, Coord, Index, Load

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


def block_means(arrays: Arrays, stage: Stage) -> Tensor | None:
    """The array ``[batch, heads, blocks, features]`` of such a reduction, in fp32; else None."""
    match stage:
        case Pool(kind="mean" | "sum", only=only, windows=None, per=str() as per, over=over) if only == TRUE:
            pass
        case _:
            return None
    source, side = _source(arrays, stage), side_of(over)
    # Blocks align to position 0, and so have to do the rows of queries.
    if not arrays.kernels or source is None or side is None or (side == "q" and arrays.lines.q_start != 0):
        return None
    axes = {axis.name: axis for axis in arrays.lines.pattern.axes}
    each = _positions(axes, over.partition(".")[2])
    size, step = _window(axes, per.partition(".")[2])
    if size is None or each is None or size % each or size == each or step % each:
        return None
    from spdsl.runtime.mean_kernels import of_blocks

    entries, length = source.shape[2], arrays.lines.size(side)
    blocks = arrays.lines.size(per) if step != size else -(-entries // (size // each))
    return of_blocks(source, size // each, step // each, blocks, each, length, stage.kind == "mean")


def _source(arrays: Arrays, stage: Pool) -> Tensor | None:
    """What is reduced, ``[batch, heads, entries, features]``, where it is an array that is there or made so."""
    if not isinstance(stage.value, Load) or not arrays.reads_whole(stage.value):
        return None
    name = stage.value.table
    if len(stage.axes) != 3 or stage.axes[1] != stage.per:
        return None
    if name in TENSORS:
        return arrays.tensors[name]
    below = arrays.stages.get(name)
    inner = (stage.axes[0], stage.over, stage.axes[2])
    if below is None or below.axes != inner or not isinstance(below, Pool):
        return None
    found = arrays.array(name, None, Memo())
    return found if found.dim() == 4 and found.is_floating_point() else None


def _window(axes: dict[str, Axis], name: str) -> tuple[int | None, int]:
    """How many positions a member has, and how many there are from one to the next."""
    match axes.get(name):
        case Axis(
            of=(Index(name="k"),),
            size=(Const(value=int() as size),),
            step=Const(value=int() as step),
            table=None,
            into=None,
        ):
            return size, step
        case _:
            found = _positions(axes, name)
            return found, found or 0


def _positions(axes: dict[str, Axis], name: str) -> int | None:
    """How many positions a member has, of an axis of blocks of positions or of such blocks; 1 for positions."""
    if not name:
        return 1
    match axes.get(name):
        case Axis(of=(Index(name="k"),), size=(Const(value=int() as size),), step=None, table=None, into=None):
            return size
        case Axis(of=(Coord(axis=inner),), size=(Const(value=int() as size),), step=None, table=None, into=None):
            each = _positions(axes, inner) if inner in axes else None
            return None if each is None else size * each
        case _:
            return None
