"""Numbers and conditions that look at no query: one kernel in the place of an operation of torch for each step.

From: a condition on what belongs to heads, keys or distances, or a reduction of such numbers over all keys.  To: its
kernel, which reads all other stages as arrays.  Heads are programs; so are tiles of keys or distances, but for
reductions, which are gone through by one program each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.codegen.chains.places import FIRST_DISTANCE, Place
from spdsl.codegen.chains.program import NOTHING, Known
from spdsl.codegen.chains.rows import KINDS, write_reduction
from spdsl.semantics import build
from spdsl.semantics.graph import DISTANCE, Mark, Pool, Stage, side_of
from spdsl.semantics.nodes import Const, Expr

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def is_alone(stage: Stage) -> bool:
    """Whether a stage is a condition without queries, or a reduction of such numbers to one for each head."""
    match stage:
        case Mark(axes=axes):
            return _heads(axes[:1]) + _entries(axes[-1:]) == len(axes) > 0
        case Pool(per=None, over=over, kind=kind, windows=windows, axes=axes, value=value):
            # Entries that count once for each of their positions are left to torch.
            once = over == "k" or windows is not None or kind != "sum"
            kinds = kind in KINDS.get(stage.dtype, ()) and not isinstance(value, Const)
            return side_of(over) == "k" and once and kinds and _heads(axes) == len(axes)
        case _:
            return False


def _heads(axes: tuple[str, ...]) -> int:
    return sum(axis in ("h", "g") for axis in axes[:1])


def _entries(axes: tuple[str, ...]) -> int:
    return sum(axis == DISTANCE or side_of(axis) == "k" for axis in axes)


def entries_of(stage: Mark | Pool) -> str:
    """The axis of keys or distances along which a program goes, or has a tile of; "" where there is none."""
    if isinstance(stage, Pool):
        return stage.over
    return stage.axes[-1] if _entries(stage.axes[-1:]) else ""


def write_alone(values: Values, stage: Mark | Pool) -> None:
    """Write ``row_value`` of a reduction, or ``left`` of the entries of a tile."""
    program, axis = values.program, entries_of(stage)
    for name in ("b", "head", "tile_begin", "tile_end"):
        program.declare(name, NOTHING)
    column: Expr = program.declare("columns", Known(column=True))
    at: dict[str, Expr] = {each: program.declare("head", NOTHING) for each in stage.axes[:1] if each in ("h", "g")}
    if axis:
        at[axis] = build.add(column, FIRST_DISTANCE) if axis == DISTANCE else column
    place = Place(at=at)
    if isinstance(stage, Pool):
        program.line("tile_begin, tile_end = 0, tiles")
        write_reduction(values, stage, place)
        return
    found = program.text(values.at(stage.value, place))
    program.line(f"left = tl.reshape(tl.broadcast_to({found}, 1, BLOCK_C), [BLOCK_C])")
