"""Values of pairs of a row and an entry coarser than the columns of a kernel: left by a kernel before, once for each.

From: a stage that is read at keys, but has one value for all keys of a member of an axis by a table.  To: lines that
look it up.  So each product is made once, and keys of one member have one number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.program import Known
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Score, Softmax, Stage, index_of, on_side
from spdsl.semantics.nodes import Expr, Extent, Index

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def is_coarser(values: Values, stage: Stage, place: Place) -> bool:
    """Whether a stage is of the rows of the kernel, and of members of an axis by a table that hold several columns."""
    rows, column = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    if values.pairs is None or not isinstance(stage, Pool | Score | Softmax) or stage.dtype != "float":
        return False
    if rows is None or column is None or column == values.column:
        return False
    others = [axis for axis in stage.axes if axis not in (rows, column)]
    axis = values.places.named.get(column.partition(".")[2])
    row: Expr = build.add(Index(name="rows"), Extent(name="q_start")) if rows == "q" else Index(name="rows")
    fits = axis is not None and axis.table is not None and axis.of == (Index(name="k"),)
    return (
        fits
        and values.at(index_of(rows), place) == row
        and all(values.at(index_of(each), place) == Index(name="head") for each in others)
        and len(others) <= 1
    )


def coarse_value(values: Values, stage: Stage, place: Place) -> Expr:
    """The value of such a stage."""
    program, name = values.program, stage.name
    column = on_side(stage.axes, "k")
    assert column is not None
    assert values.pairs is not None
    values.pairs[name] = has_heads = len(stage.axes) > 2
    entry = values.at(index_of(column), place)
    at = [f"tl.cast(b, tl.int64) * {name}_b", *([f"head * {name}_h"] if has_heads else [])]
    at += [f"tl.cast(tl.minimum(rows - first_row, chunk_rows - 1), tl.int64) * {name}_r"]
    at += [f"tl.minimum(tl.maximum({program.atom(entry, 'entry')}, 0), {name}_r - 1)"]
    what = Known(row=True) | program.of(entry)
    return program.let("value_of", f"tl.load({name} + {' + '.join(at)})", what, "float")
