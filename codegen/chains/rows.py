"""Reductions that leave one value for each row: over all keys, where a kernel goes through the columns of some rows,
and of such values over the queries of blocks.

From: a reduction that belongs to rows of queries afterwards.  To: its kernel.  Later kernels read what it left as they
read inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spdsl.codegen.chains.places import Place, UncoveredError
from spdsl.codegen.chains.program import Known
from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Stage, on_side, side_of
from spdsl.semantics.nodes import Const

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

NOTHING = {"max": "float('-inf')", "min": "float('inf')", "sum": "0.0", "any": "False", "all": "True"}
KINDS = {"float": ("max", "min", "sum"), "bool": ("any", "all")}
"""Reductions by the type of their values."""


def is_of_rows(stages: Mapping[str, Stage], name: str) -> bool:
    """Whether a stage is a reduction over all keys that leaves one value for each row of queries, and head."""
    match stages[name]:
        case Pool(per=None, over=over, kind=kind, windows=windows) as stage:
            # Entries that count once for each of their positions are left to torch.
            once = over == "k" or windows is not None or kind != "sum"
            return side_of(over) == "k" and kind in KINDS.get(stage.dtype, ()) and once and belongs_to_rows(stage)
        case _:
            return False


def is_of_blocks(stages: Mapping[str, Stage], name: str) -> bool:
    """Whether a stage is a reduction of one value for each query over the queries of blocks."""
    match stages[name]:
        case Pool(over="q", per=str() as per, windows=None) as stage:
            return side_of(per) == "q" and belongs_to_rows(stage)
        case _:
            return False


def belongs_to_rows(stage: Stage) -> bool:
    """Whether a reduction leaves one value for each row of queries, and head: an array that is made beforehand."""
    others = [axis for axis in stage.axes if side_of(axis) is None]
    return (
        isinstance(stage, Pool)
        and stage.dtype in KINDS
        and on_side(stage.axes, "q") is not None
        and on_side(stage.axes, "k") is None
        and all(axis in ("h", "g") for axis in others)
        and len(others) <= 1
    )


def write_reduction(values: Values, stage: Pool, place: Place) -> None:
    """Write the loop over columns: ``row_value`` of each row."""
    program, kind = values.program, stage.kind
    dtype = "tl.float32" if stage.dtype == "float" else "tl.int1"
    program.line(f"row_value = tl.full([BLOCK_R], {NOTHING[kind]}, {dtype})")
    program.line("row_count = tl.full([BLOCK_R], 0, tl.int32)")
    with program.loop("for tile in range(tile_begin, tile_end):", 0, "tile"):
        program.known["columns"] = Known(depth=1, column=True)
        program.line("columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]")
        if isinstance(stage.value, Const):
            raise UncoveredError("reductions of numbers")
        value, only = values.at(stage.value, place), values.at(stage.only, place)
        there = f"(columns < column_count) & {program.atom(only)}" if only != build.TRUE else "columns < column_count"
        program.line(f"part = tl.broadcast_to({program.text(value)}, BLOCK_R, BLOCK_C)")
        program.line(f"part_there = tl.broadcast_to({there}, BLOCK_R, BLOCK_C)")
        match kind:
            case "any":
                program.line("row_value = row_value | (tl.max((part & part_there).to(tl.int32), 1) != 0)")
            case "all":
                program.line("row_value = row_value & (tl.min((part | ~part_there).to(tl.int32), 1) != 0)")
            case "sum":
                program.line("row_value += tl.sum(tl.where(part_there, part, 0.0), 1)")
            case _:
                better = "maximum" if kind == "max" else "minimum"
                program.line("part_there = part_there & (part == part)")
                program.line(f"part_left = tl.where(part_there, part, {NOTHING[kind]})")
                program.line(f"row_value = tl.{better}(row_value, tl.{kind}(part_left, 1))")
        program.line("row_count += tl.sum(part_there.to(tl.int32), 1)")
    if kind in ("max", "min"):
        program.line("row_value = tl.where(row_count > 0, row_value, 0.0)")
