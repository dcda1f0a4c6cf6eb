"""The sums of a softmax: a kernel goes through the columns of some rows and leaves the logarithms.

From: a softmax and the place of its tile.  To: the lines of that kernel.  Tiles whose entries are all present are taken
for numbers, and gone through again with care if one was not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdsl.codegen.chains.parts import Tile
from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.program import NOTHING, Known, Program
from spdsl.codegen.chains.scans import scan_columns
from spdsl.semantics import build
from spdsl.semantics.graph import Softmax
from spdsl.semantics.nodes import Index, Param

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def write_sums(values: Values, stage: Softmax, place: Place) -> None:
    """Write the loops over columns: ``largest`` and ``total`` of each row."""
    program = values.program
    has_full = scan_columns(values, place, stage.only)
    program.line("# A part of these tiles is this program's.")
    program.line("share = tl.cdiv(tl.maximum(tile_end - tile_begin, 0), parts)")
    program.line("tile_begin = tile_begin + part * share")
    program.line("tile_end = tl.minimum(tile_begin + share, tile_end)")
    program.line("full_begin = tl.minimum(tl.maximum(full_begin, tile_begin), tile_end)")
    program.line("full_end = tl.minimum(tl.maximum(full_end, full_begin), tile_end)")
    values.tiles["rows"] = Tile(first=Index(name="row_first"), size="BLOCK_R")
    program.line("largest = tl.full([BLOCK_R], float('-inf'), tl.float32)")
    program.line("total = tl.zeros([BLOCK_R], tl.float32)")
    if has_full:
        _add_full(values, stage, place)
    with program.loop("for rest in range(tile_begin, tile_end - (full_end - full_begin)):", 0, "rest"):
        program.known["columns"] = Known(depth=1, column=True)
        program.line("tile = tl.where(rest < full_begin, rest, rest + full_end - full_begin)")
        program.known["tile"] = Known(depth=1)
        values.tiles["columns"] = _tile_of_columns(program, "tile")
        program.line("columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]")
        logit = program.text(values.logit(stage, place))
        program.line(f"logit = tl.where(columns < column_count, {logit}, float('-inf'))")
        program.line("largest, total = add_up(tl.broadcast_to(logit, BLOCK_R, BLOCK_C), largest, total)")


def _tile_of_columns(program: Program, number: str) -> Tile:
    program.known["BLOCK_C"] = NOTHING
    return Tile(first=build.mul(Index(name=number), Param(name="BLOCK_C", dtype="int")), size="BLOCK_C")


def _add_full(values: Values, stage: Softmax, place: Place) -> None:
    """The tiles whose entries are all present, as long as none is infinite or NaN: there is little to do for each."""
    program = values.program
    with program.loop("for full in range(full_begin, full_end):", 0, "full"):
        program.known["columns"] = Known(depth=1, column=True)
        program.line("columns = full * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]")
        values.tiles["columns"] = _tile_of_columns(program, "full")
        with values.taken_for_ordinary():
            exponent = program.text(values.exponent(stage, place))
        program.line(f"largest, total = add_plain(tl.broadcast_to({exponent}, BLOCK_R, BLOCK_C), largest, total)")
    program.line("# A sum that is no number says that one was: then these tiles are gone through like others.")
    program.line("ordinary = tl.sum((total != total).to(tl.int32), 0) == 0")
    program.line("largest = tl.where(ordinary, largest, float('-inf'))")
    program.line("total = tl.where(ordinary, total, 0.0)")
    program.line("full_end = tl.where(ordinary, full_end, full_begin)")
