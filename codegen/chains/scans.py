"""Which tiles of a row, or of a column, a condition touches: a scan over the ends of tiles, before the loop.

From: a condition at a place.  To: scalars of a whole tile, or lines that leave the first and the last tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.places import Place
from spdsl.codegen.chains.presence import opened
from spdsl.codegen.chains.program import NOTHING, Known, Program
from spdsl.codegen.chains.touched import intervals
from spdsl.semantics import build
from spdsl.semantics.nodes import Expr, Index
from spdsl.semantics.rewrite import conjuncts, walk

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values

SCANNED = 128
"""Tiles of which a kernel of sums asks at once whether its condition touches them."""


ENDS = {
    "rows": (Index(name="row_first"), Index(name="row_last")),
    "columns": (Index(name="column_first"), Index(name="column_last")),
}
"""The ends of a tile."""


def may(values: Values, place: Place, condition: Expr, ends: Mapping[str, tuple[Expr, Expr]] = ENDS) -> Expr:
    """Whether a condition may hold somewhere in the tile, or between other ends, as a scalar."""
    return tidy(intervals(values, ends).may(opened(values, condition, place)))


def must(values: Values, place: Place, condition: Expr) -> Expr:
    """Whether a condition holds everywhere in the tile, as far as its ends tell, as a scalar."""
    return tidy(intervals(values, ENDS).must(opened(values, condition, place)))


def write_passed(values: Values, place: Place, where: Expr, touches: Expr, nothing: int, *, always: bool) -> None:
    """Leave a tile in which no entry can be chosen: ``nothing`` is there if a tile after it may have some, or
    ``always``."""
    program = values.program
    program.line("# No entry of the tile can be chosen.")
    rest = may(values, place, where, {**ENDS, "columns": (Index(name="column_first"), Index(name="column_end"))})
    rest = build.TRUE if always else rest
    program.declare("column_end", NOTHING)
    program.line("column_end = column_count - 1")
    after, touched = program.text(rest), program.text(touches)
    with program.loop(f"if ~({touched}):", 0):
        if rest != touches:
            with program.loop(f"if {after}:", 1):
                program.line("inside = (rows <= row_last) & (columns <= column_last)")
                program.line(f"tl.store(keys + key_row * pitch + columns, {nothing}, mask=inside)")
        program.line("return")


def scan_columns(values: Values, place: Place, condition: Expr) -> bool:
    """The tiles from the first to the last that the condition touches, and among them the first run of those in which
    it holds everywhere; whether there can be any."""
    program = values.program
    for name in ("tile_begin", "tile_end", "full_begin", "full_end", "tiles", "column_count"):
        program.declare(name, NOTHING)
    touches, fills = may(values, place, condition), must(values, place, condition)
    if touches == build.TRUE and fills in (build.TRUE, build.FALSE):
        program.line("tile_begin, tile_end = 0, tiles")
        program.line(f"full_begin, full_end = 0, {'column_count // BLOCK_C' if fills == build.TRUE else 0}")
        return fills == build.TRUE
    program.line(
        "# The first and the last tile that the condition touches, and the first run of those that it leaves whole."
    )
    program.line("tile_begin, tile_end, full_begin, full_end = tiles, 0, tiles, tiles")
    # Of rows that a probe leaves out no tile is looked at.
    ends = {Index(name="column_first"), Index(name="column_last")}
    alone = build.conj(*(each for each in conjuncts(touches) if ends.isdisjoint(walk(each))))
    scanned = "tiles" if alone == build.TRUE else f"tl.where({program.text(alone)}, tiles, 0)"
    run = {
        "columns_first": "scan * BLOCK_C",
        "columns_last": "tl.minimum(run_end * BLOCK_C, column_count) - 1",
    }
    with _scan(values, place, condition, {"rows": ENDS["rows"], "columns": _ends_named("columns")}, run, scanned):
        program.known |= dict.fromkeys(("column_first", "column_last"), Known(depth=2))
        program.line("column_first = each * BLOCK_C")
        program.line("column_last = tl.minimum(column_first + BLOCK_C, column_count) - 1")
        program.line(f"touched = ({program.text(touches)}) & (each < tiles)")
        _note_touched(program)
        program.line(f"whole = ({program.text(fills)}) & (column_first + BLOCK_C <= column_count)")
        program.line("full_begin = tl.minimum(full_begin, tl.min(tl.where(whole, each, tiles), 0))")
        program.line("full_end = tl.minimum(full_end, tl.min(tl.where(whole | (each < full_begin), tiles, each), 0))")
    program.line("full_end = tl.minimum(full_end, tl.maximum(tile_end, full_begin))")
    return fills != build.FALSE


def scan_rows(values: Values, place: Place, condition: Expr, columns: Callable[[str, str], tuple[str, str]]) -> None:
    """The tiles of rows from the first to the last that the condition touches; ``columns`` gives the first and the last
    column of the tiles from one row on to another, where the last begins."""
    program = values.program
    for name in ("tile_begin", "tile_end"):
        program.declare(name, NOTHING)
    program.line("# The first and the last tile of rows that the condition touches.")
    program.line("tile_begin, tile_end = tiles, 0")
    first, last = columns("scan * BLOCK_R", "(run_end - 1) * BLOCK_R")
    run = {
        "rows_first": "scan * BLOCK_R",
        "rows_last": "tl.minimum(run_end * BLOCK_R, nq) - 1",
        "columns_first": first,
        "columns_last": last,
    }
    with _scan(values, place, condition, {"rows": _ends_named("rows"), "columns": _ends_named("columns")}, run):
        program.known |= dict.fromkeys(("row_first", "row_last", "column_first", "column_last"), Known(depth=2))
        program.line("row_first = each * BLOCK_R")
        program.line("row_last = tl.minimum(row_first + BLOCK_R, nq) - 1")
        first, last = columns("row_first", "row_first")
        program.line(f"column_first = {first}")
        program.line(f"column_last = {last}")
        touches = program.text(may(values, place, condition))
        program.line(f"touched = ({touches}) & (each < tiles) & (column_first <= column_last)")
        _note_touched(program)


def _ends_named(side: str) -> tuple[Expr, Expr]:
    return Index(name=f"{side}_first"), Index(name=f"{side}_last")


@contextmanager
def _scan(
    values: Values,
    place: Place,
    condition: Expr,
    ends: Mapping[str, tuple[Expr, Expr]],
    run: Mapping[str, str],
    tiles: str = "tiles",
) -> Iterator[None]:
    """A loop over runs of so many tiles, ``each`` of one; ``run`` are its ``ends``, and one that the condition cannot
    touch is passed over."""
    program = values.program
    with program.loop(f"for scan in range(0, {tiles}, {SCANNED}):", 0, "scan"):
        program.line(f"run_end = tl.minimum(scan + {SCANNED}, tiles)")
        for name, text in run.items():
            program.known[name] = Known(depth=1)
            program.line(f"{name} = {text}")
        touches = may(values, place, condition, ends)
        with program.loop(f"if ({program.text(touches)}) & (columns_first <= columns_last):", 1):
            program.line(f"each = scan + tl.arange(0, {SCANNED})")
            yield


def _note_touched(program: Program) -> None:
    program.line("tile_begin = tl.minimum(tile_begin, tl.min(tl.where(touched, each, tiles), 0))")
    program.line("tile_end = tl.maximum(tile_end, tl.max(tl.where(touched, each + 1, 0), 0))")
