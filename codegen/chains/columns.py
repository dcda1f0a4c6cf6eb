"""Reductions over all queries: a kernel goes through the rows of some columns and leaves one value for each.

From: a reduction that belongs to keys, or to distances, afterwards.  To: its kernel.  A tile of distances is made of
tiles of rows and columns that are *sheared*, so that what has one distance stands in one column; each program has its
distances for itself, and adds in an order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.program import Known
from spdsl.codegen.chains.rows import KINDS, NOTHING
from spdsl.codegen.chains.scans import scan_rows
from spdsl.semantics import build
from spdsl.semantics.graph import DISTANCE, Pool, Select, Smooth, Stage, is_free, on_side, side_of

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def belongs_to_columns(stage: Stage) -> bool:
    """Whether a stage is a reduction over all queries that leaves one value for each key, or distance, and head."""
    match stage:
        case Pool(over="q", per=None, axes=axes):
            fits = bool(axes) and side_of(axes[-1]) == "k"
        case Pool(over=over, axes=axes) if over == DISTANCE:
            fits = axes[-1:] == (DISTANCE,)
        case _:
            return False
    assert isinstance(stage, Pool)
    heads = stage.axes[:-1]
    return fits and heads in ((), ("h",), ("g",)) and stage.kind in KINDS.get(stage.dtype, ())


def is_made_before(stage: Stage) -> bool:
    """Whether a stage is an array of keys, or distances, alone that kernels read as one."""
    heads = stage.axes[:-1]
    alone = on_side(stage.axes, "q") is None and heads in ((), ("h",), ("g",))
    # Sums along features read single numbers of vectors.
    closes = isinstance(stage, Pool) and is_free(stage.over) and stage.dtype in KINDS
    return alone and (belongs_to_columns(stage) or is_without_queries(stage) or isinstance(stage, Smooth) or closes)


def is_without_queries(stage: Stage) -> bool:
    """Whether a stage is a selection among keys, or distances, that looks at no query."""
    if not isinstance(stage, Select):
        return False
    return on_side(stage.axes, "q") is None and (stage.over == DISTANCE or side_of(stage.over) == "k")


def write_columns(values: Values, stage: Pool, place: Place) -> None:
    """Write the loop over rows: ``left`` of each column, or distance."""
    program, kind, sheared = values.program, stage.kind, stage.over == DISTANCE

    def columns(first: str, last: str) -> tuple[str, str]:
        if not sheared:
            return "column_begin", "column_end"
        # Of rows r the distances from entry_first on meet the keys r + n - 1 - entry_first, and those before.
        key = "n - entry_first - DISTANCES"
        return f"tl.maximum({first} + {key}, 0)", f"tl.minimum({last} + {key} + BLOCK_C, n) - 1"

    condition = build.conj(stage.only, stage.value) if kind == "any" else stage.only
    scan_rows(values, place, condition, columns)
    nothing = NOTHING[kind]
    size, dtype = ("DISTANCES" if sheared else "BLOCK_C"), "tl.float32" if stage.dtype == "float" else "tl.int1"
    program.line(f"left = tl.full([{size}], {nothing}, {dtype})")
    program.line(f"count = tl.full([{size}], 0, tl.int32)")
    with program.loop("for tile in range(tile_begin, tile_end):", 0, "tile"):
        program.known["rows"] = Known(depth=1, row=True)
        program.known["columns"] = Known(depth=int(sheared), column=True)
        program.line("rows = tile * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]")
        there = "(rows < nq) & (rows + q_start >= 0)"
        if sheared:
            program.line("columns = tile * BLOCK_R + n - entry_first - DISTANCES + tl.arange(0, BLOCK_C)[None, :]")
            there += " & (columns >= 0) & (columns < n)"
        value, only = values.at(stage.value, place), values.at(stage.only, place)
        there += f" & {program.atom(only)}" if only != build.TRUE else ""
        program.line(f"entry = tl.broadcast_to({program.text(value)}, BLOCK_R, BLOCK_C)")
        program.line(f"entry_there = tl.broadcast_to({there}, BLOCK_R, BLOCK_C)")
        if kind in ("max", "min"):
            program.line("entry_there = entry_there & (entry == entry)")
        counted = "entry_there.to(tl.int32)"
        if kind in ("any", "all"):
            # As numbers, of which the largest tells.
            entry = "entry & entry_there" if kind == "any" else "entry_there & ~entry"
            program.line(f"entry_left = ({entry}).to(tl.int32)")
        else:
            program.line(f"entry_left = tl.where(entry_there, entry, {nothing})")
        left = "shear(entry_left, BLOCK_R, DISTANCES)" if sheared else "entry_left"
        match kind:
            case "any":
                program.line(f"left = left | (tl.max({left}, 0) != 0)")
            case "all":
                program.line(f"left = left & (tl.max({left}, 0) == 0)")
            case "sum":
                program.line(f"left += tl.sum({left}, 0)")
            case _:
                counted = f"shear({counted}, BLOCK_R, DISTANCES)" if sheared else counted
                better = "maximum" if kind == "max" else "minimum"
                program.line(f"left = tl.{better}(left, tl.{kind}({left}, 0))")
                program.line(f"count += tl.sum({counted}, 0)")
    if kind in ("max", "min"):
        program.line("left = tl.where(count > 0, left, 0.0)")
