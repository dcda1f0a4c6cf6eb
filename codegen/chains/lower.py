"""From a selection of a pattern to the kernels that compute it: one for each softmax on the way, one for the scores.

A kernel of a softmax goes through the columns of some rows and leaves the logarithm of their sums.  The kernel of
scores computes one tile of rows and columns, whatever loops that takes, and leaves for each entry its *key*, an int32
in the order of which entries are chosen.  Choosing among keys is the same for all patterns: `choose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spdsl.codegen.chains.alone import entries_of, is_alone, write_alone
from spdsl.codegen.chains.below import below, softmaxes
from spdsl.codegen.chains.candidates import Candidates, candidates_of, outer_of
from spdsl.codegen.chains.columns import belongs_to_columns, is_without_queries, write_columns
from spdsl.codegen.chains.descents import Descent, descent_of, write_descent
from spdsl.codegen.chains.parts import ABSENT, Arguments, Fold, Terms, Tile
from spdsl.codegen.chains.places import FIRST_DISTANCE, Place, UncoveredError
from spdsl.codegen.chains.program import NOTHING, Known, Program
from spdsl.codegen.chains.reductions import pooled
from spdsl.codegen.chains.rows import is_of_blocks, is_of_rows, write_reduction
from spdsl.codegen.chains.scans import may, scan_columns, write_passed
from spdsl.codegen.chains.sums import write_sums
from spdsl.codegen.chains.sweeps import Sweep, sweep_of, write_sweep
from spdsl.codegen.chains.values import Values
from spdsl.semantics import build
from spdsl.semantics.graph import (
    DISTANCE,
    Mark,
    Pool,
    Select,
    Softmax,
    Stage,
    is_free,
    on_side,
    side_of,
)
from spdsl.semantics.nodes import BoundPattern, Expr, Extent, Index
from spdsl.semantics.rewrite import free_axes
from spdsl.semantics.show import stage_text

By: TypeAlias = Literal["count", "mass", "mark"]
Role: TypeAlias = Literal["keys", "sums", "values", "columns", "distances", "sweep", "pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainKernel:
    """A kernel: what it computes (a `Softmax`, or the last stage), its lines, and what it takes besides lengths.

    ``sums``: whether it goes through the columns of its rows; ``loops``: how deep loops are nested otherwise; ``fold``:
    whether a column is made of finer ones; ``deep``: how many queries are folded into a row, if any; ``paired``: how
    many products a score is the sum of, or 0.  Its ``role``: to leave keys, the sums of a softmax, a value for each
    row, column or distance, for each pair of a row and a coarser entry, or what searches meet in all blocks.
    """

    name: str
    stage: str
    notes: tuple[str, ...]
    lines: tuple[str, ...]
    arguments: Arguments
    helpers: tuple[str, ...]
    sums: bool
    loops: int
    role: Role
    fold: Fold | None
    deep: int | None
    paired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The kernels of one selection, in the order in which they run; the last one leaves keys.

    ``heads`` is the axis of heads of the selection, ``rows`` and ``columns`` its axes of queries and keys; without
    queries heads are the rows, and "" is one row.  With
    ``among`` keys are those of candidates, in the order of the list that these are members of; with ``queries``
    candidates are searched, and a tile holds so many queries of one row; where a ``sweep`` can take the place of this
    search and of those above, its kernel is the first.
    """

    stage: str
    by: By
    heads: str | None
    rows: str
    columns: str
    kernels: tuple[ChainKernel, ...]
    among: Candidates | None = None
    queries: int = 0
    sweep: Sweep | None = None


def keys_by(stage: Select) -> Literal["count", "mass"]:
    """Whether keys are in the order of numbers, or bits of shares; where at least some are chosen numbers may be 0."""
    return "count" if stage.least is not None else stage.by


def ranks_together(stage: Select) -> bool:
    """Whether keys are ranked together with the rows of a head, or the heads of a row, for one number or share."""
    fits = len(stage.also) == 1 and (side_of(stage.also[0]) == "q" or stage.also[0] in ("h", "g"))
    pairs = on_side(stage.axes, "q") is not None and side_of(stage.over) == "k"
    return fits and pairs and not free_axes(stage.amount)


def lower_chain(pattern: BoundPattern, name: str, terms: tuple[tuple[str, Terms], ...]) -> Chain:
    """The kernels of the selection ``name``; ``terms`` as in `Values`, for every score that it reads.

    Raises:
        UncoveredError: the selection is left to torch, and why.
    """
    assert pattern.graph is not None
    stages = {stage.name: stage for stage in pattern.graph.stages}
    stage = stages[name]
    if isinstance(stage, Pool) and is_of_rows(stages, name):
        return _of_rows(pattern, stages, stage, dict(terms))
    if isinstance(stage, Pool) and is_of_blocks(stages, name):
        return _of_blocks(pattern, stages, stage)
    if belongs_to_columns(stage):
        assert isinstance(stage, Pool)
        return _of_columns(pattern, stages, stage, dict(terms))
    if is_without_queries(stage):
        assert isinstance(stage, Select)
        return _without_queries(pattern, stages, stage)
    if is_alone(stage):
        assert isinstance(stage, Mark | Pool)
        return _alone(pattern, stages, stage)
    if not isinstance(stage, Select | Mark):
        raise UncoveredError("sets that are neither chosen nor compared")
    heads, rows, columns = _axes(stage)
    if isinstance(stage, Select) and stage.over != columns:
        raise UncoveredError("choices of queries or of heads")
    descent = descent_of(stages, stage)
    if descent is not None:
        return _searched(pattern, stages, stage, descent, dict(terms))
    among, outer = None, outer_of(stages, stage)
    if outer is not None:
        stages[name] = stage = outer[1]
        among = candidates_of(pattern, stages, outer[0], stage)
        if softmaxes(stages, name):
            raise UncoveredError("shares of candidates")
    kernels = [
        _softmax(Values(pattern=pattern, stages=stages, terms=dict(terms), program=Program()), stages[each])
        for each in softmaxes(stages, name)
    ]
    values = Values(pattern=pattern, stages=stages, terms=dict(terms), program=Program())
    keys = _keys(values, stage, among)
    kernels += [_pairs(pattern, stages, stages[each], heads, dict(terms)) for each, _ in keys.arguments.pairs]
    kernels.append(keys)
    by: By = stage.by if isinstance(stage, Select) else "mark"
    return Chain(stage=name, by=by, heads=heads, rows=rows, columns=columns, kernels=tuple(kernels), among=among)


def _axes(stage: Stage) -> tuple[str | None, str, str]:
    """The axes of heads, queries and keys of a stage."""
    rows, columns = on_side(stage.axes, "q"), on_side(stage.axes, "k")
    others = [axis for axis in stage.axes if axis not in (rows, columns)]
    if rows is None or columns is None or len(others) > 1 or any(is_free(axis) or axis == "q-k" for axis in others):
        raise UncoveredError("sets that are not of pairs, for each head")
    return others[0] if others else None, rows, columns


def _searched(
    pattern: BoundPattern, stages: dict[str, Stage], stage: Stage, found: Descent, terms: dict[str, Terms]
) -> Chain:
    """The kernel of a selection by searches."""
    assert isinstance(stage, Select)
    heads, rows, columns = _axes(stage)
    among = None if found.outer is None else candidates_of(pattern, stages, found.outer, stage)
    if among is not None and among.rows != 1:
        raise UncoveredError("searches for fewer queries than candidates are chosen for")
    values = Values(pattern=pattern, stages=stages, terms=terms, program=Program())
    program = values.program
    _start(values, heads, rows, columns)
    program.declare("columns", Known(column=True))
    for name in ("candidates", "there"):
        program.declare(name, NOTHING)
    queries = write_descent(values, found, heads, rows, columns)
    program.line(f"key = tl.where(there, best, {ABSENT})")
    program.line("tl.store(keys + key_row * pitch + candidates, key, mask=candidates < total)")
    kernels = [_kernel(values, "keys", stage, "keys")]
    sweep = sweep_of(pattern, stages, stage, terms)
    if sweep is not None:
        swept = Values(pattern=pattern, stages=stages, terms=terms, program=Program())
        write_sweep(swept, sweep, found.pool)
        kernels.insert(0, _kernel(swept, "sweep", stage, "sweep"))
    return Chain(
        stage=stage.name,
        by="count",
        heads=heads,
        rows=rows,
        columns=columns,
        kernels=tuple(kernels),
        among=among,
        queries=queries,
        sweep=sweep,
    )


def _of_rows(pattern: BoundPattern, stages: dict[str, Stage], stage: Pool, terms: dict[str, Terms]) -> Chain:
    """The kernels of a reduction over all keys."""
    heads = next((axis for axis in stage.axes if side_of(axis) is None), None)
    rows = on_side(stage.axes, "q")
    assert rows is not None
    kernels = [
        _softmax(Values(pattern=pattern, stages=stages, terms=terms, program=Program()), stages[each])
        for each in softmaxes(stages, stage.name)
    ]
    values = Values(pattern=pattern, stages=stages, terms=terms, program=Program())
    place = _start(values, heads, rows, stage.over)
    scan_columns(values, place, stage.only)
    write_reduction(values, stage, place)
    kernels.append(_kernel(values, "values", stage, "values"))
    return Chain(stage=stage.name, by="mark", heads=heads, rows=rows, columns=stage.over, kernels=tuple(kernels))


def _of_blocks(pattern: BoundPattern, stages: dict[str, Stage], stage: Pool) -> Chain:
    """The kernel of a reduction over the queries of blocks, of which each has one value."""
    heads = next((axis for axis in stage.axes if side_of(axis) is None), None)
    rows = on_side(stage.axes, "q")
    assert rows is not None
    values = Values(pattern=pattern, stages=stages, terms={}, program=Program())
    place = _start(values, heads, rows, None)
    found = values.program.text(pooled(values, stage, place))
    values.program.line(f"row_value = tl.reshape(tl.broadcast_to({found}, BLOCK_R, 1), [BLOCK_R])")
    kernel = _kernel(values, "values", stage, "values")
    return Chain(stage=stage.name, by="mark", heads=heads, rows=rows, columns=rows, kernels=(kernel,))


def _of_columns(pattern: BoundPattern, stages: dict[str, Stage], stage: Pool, terms: dict[str, Terms]) -> Chain:
    """The kernels of a reduction over all queries."""
    heads = next((axis for axis in stage.axes if axis in ("h", "g")), None)
    kernels = [
        _softmax(Values(pattern=pattern, stages=stages, terms=terms, program=Program()), stages[each])
        for each in softmaxes(stages, stage.name)
    ]
    values = Values(pattern=pattern, stages=stages, terms=terms, program=Program())
    columns = stage.axes[-1]
    place = _start(values, heads, "q", "k" if columns == DISTANCE else columns)
    write_columns(values, stage, place)
    kernels.append(_kernel(values, "values", stage, "distances" if columns == DISTANCE else "columns"))
    return Chain(stage=stage.name, by="mark", heads=heads, rows="q", columns=columns, kernels=tuple(kernels))


def _alone(pattern: BoundPattern, stages: dict[str, Stage], stage: Mark | Pool) -> Chain:
    """The kernel of a condition without queries, or of a reduction of such numbers."""
    heads = next((axis for axis in stage.axes if axis in ("h", "g")), None)
    values = Values(pattern=pattern, stages=stages, terms={}, program=Program(), alone=True)
    write_alone(values, stage)
    kernel = _kernel(values, "values", stage, "values" if isinstance(stage, Pool) else "columns")
    return Chain(stage=stage.name, by="mark", heads=heads, rows="", columns=entries_of(stage), kernels=(kernel,))


def _without_queries(pattern: BoundPattern, stages: dict[str, Stage], stage: Select) -> Chain:
    """The kernel of a selection among keys, or distances, for each head: heads are the rows of its tile."""
    rows = next((axis for axis in stage.axes if axis != stage.over), None)
    if len(stage.axes) > 2 or rows not in ("h", "g", None):
        raise UncoveredError("sets that are not of keys, or of distances, for each head")
    values = Values(pattern=pattern, stages=stages, terms={}, program=Program())
    program = values.program
    program.declare("b", NOTHING)
    for name in ("row_first", "row_last", "column_first", "column_last"):
        program.declare(name, NOTHING)
    column: Expr = program.declare("columns", Known(column=True))
    if stage.over == DISTANCE:
        column = build.add(column, FIRST_DISTANCE)
    at = {stage.over: column}
    if rows is not None:
        program.line("owners = tl.minimum(rows, row_last)")
        at[rows] = program.declare("owners", Known(row=True))
    kernel = _written(values, stage, Place(at=at))
    if stage.least is not None and stage.forced != build.FALSE:
        raise UncoveredError("selections of at least a number, with some that come first")
    return Chain(
        stage=stage.name, by=keys_by(stage), heads=None, rows=rows or "", columns=stage.over, kernels=(kernel,)
    )


def _start(values: Values, heads: str | None, rows: str, columns: str | None) -> Place:
    """The names that every kernel has, and the place of its tile."""
    program = values.program
    for name in ("b", "head", "row_first", "row_last"):
        program.declare(name, NOTHING)
    row: Expr = program.declare("rows", Known(row=True))
    if rows == "q":
        row = build.add(row, Extent(name="q_start"))
    at = {rows: row} if columns is None else {rows: row, columns: Index(name="columns")}
    if heads is not None:
        at[heads] = Index(name="head")
    return Place(at=at)


def _keys(values: Values, stage: Select | Mark, among: Candidates | None) -> ChainKernel:
    program = values.program
    place = _start(values, *_axes(stage))
    program.declare("columns", Known(column=True))
    for name in ("column_first", "column_last") if among is None else ("candidates", "there"):
        program.declare(name, NOTHING)
    if among is None:
        values.tiles["rows"] = Tile(first=Index(name="row_first"), size="BLOCK_R")
        values.tiles["columns"] = Tile(first=Index(name="column_first"), size="BLOCK_C")
        values.pairs, values.column = {}, _axes(stage)[2]
    return _written(values, stage, place, among)


def _pairs(
    pattern: BoundPattern, stages: dict[str, Stage], stage: Stage, heads: str | None, terms: dict[str, Terms]
) -> ChainKernel:
    """The kernel that leaves a value for each of some rows and each of its columns."""
    values = Values(pattern=pattern, stages=stages, terms=terms, program=Program())
    own, rows, columns = _axes(stage)
    assert own in (None, heads)
    place = _start(values, own, rows, columns)
    program = values.program
    program.declare("columns", Known(column=True))
    found = program.text(values.stage(stage, place))
    program.line(f"left = tl.broadcast_to({found}, BLOCK_R, BLOCK_C)")
    return _kernel(values, f"pairs_{stage.name}", stage, "pairs")


def _written(values: Values, stage: Select | Mark, place: Place, among: Candidates | None = None) -> ChainKernel:
    """The kernel that leaves the keys of a tile."""
    program = values.program
    where = build.disj(stage.only, stage.forced) if isinstance(stage, Select) else stage.value
    nothing = 0 if isinstance(stage, Select) and keys_by(stage) == "mass" else ABSENT
    # Candidates lie anywhere.
    touches = may(values, place, where) if among is None else build.TRUE
    if touches != build.TRUE:
        # Many programs look at the keys of a row without queries, and know no end of it.
        write_passed(values, place, where, touches, nothing, always=on_side(stage.axes, "q") is None)
    match stage:
        case Mark(value=value):
            text = f"tl.where({program.text(values.at(value, place))}, 1, {ABSENT})"
        case Select(value=value, only=only, forced=forced):
            what = values.at(value, place)
            given = program.text(values.at(only, place))
            text = {"count": "count_key", "mass": "mass_key"}[keys_by(stage)]
            text = f"{text}({program.text(what)}, {given}, {program.text(values.at(forced, place))})"
    program.line(f"key = {text}")
    if among is not None:
        program.line(f"key = tl.where(there, key, {nothing})")
        program.line(
            "tl.store(keys + key_row * pitch + candidates, key, mask=(rows <= row_last) & (candidates < total))"
        )
        return _kernel(values, "keys", stage, "keys")
    program.line("leave(keys, row_end, key, key_row, rows, columns, pitch, row_last, column_last)")
    return _kernel(values, "keys", stage, "keys")


def _softmax(values: Values, stage: Stage) -> ChainKernel:
    assert isinstance(stage, Softmax)
    write_sums(values, stage, _start(values, *_axes(stage)))
    return _kernel(values, f"sums_{stage.name}", stage, "sums")


def _kernel(values: Values, name: str, stage: Stage, role: Role) -> ChainKernel:
    program = values.program
    assert len(program.stack) == 1
    return ChainKernel(
        name=name,
        stage=stage.name,
        notes=tuple(stage_text(values.stages[each]) for each in below(dict(values.stages), stage.name)),
        lines=tuple(program.stack[0].lines(1)),
        sums=role not in ("keys", "pairs"),
        loops=program.stack[0].depth,
        role=role,
        fold=values.fold,
        deep=values.deep,
        paired=values.paired,
        arguments=values.arguments(),
        helpers=tuple(sorted(program.helpers)),
    )
