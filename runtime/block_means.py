"""Means and sums of vectors over blocks, windows or runs of neighbours, by one kernel that reads them where they lie.

From: a reduction of a tensor, or of means of it, per an axis of blocks of one size, or any of a tensor per an axis by a
table.  To: its whole array; None where it is of another kind.  Means and sums are differentiated by a kernel, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from spdsl.runtime.memo import Memo
from spdsl.runtime.points import TENSOR_AXES
from spdsl.semantics.build import TRUE
from spdsl.semantics.graph import TENSORS, Pool, Reduction, Stage, index_of, side_of
from spdsl.semantics.nodes import Apply, Axis, BoundPattern, Const, Coord, Expr, Index, Load

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A reduction of ``source``, a tensor or an earlier stage, per the axis ``per``.

    It is over runs of ``size`` entries, ``step`` apart, each of ``each`` positions.  With ``floor`` entries are taken
    at length 1: divided by the root of the sum of their squares, or of this number where it is larger.
    """

    source: str
    per: str
    side: str
    size: int
    step: int
    each: int
    mean: bool
    floor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfRuns:
    """A reduction of ``source``, a tensor, over the runs of positions that are the members of the axis ``name``."""

    source: str
    name: str
    side: str
    kind: Reduction


_MOST = 1024
"""Stages that are remembered."""

_known: dict[tuple[int, str], tuple[BoundPattern, Blocks | OfRuns | None]] = {}


def block_means(arrays: Arrays, stage: Stage) -> Tensor | None:
    """The array ``[batch, heads, blocks, features]`` of such a reduction, in fp32; else None."""
    pattern, lines = arrays.lines.pattern, arrays.lines
    # By identity: hashing a pattern takes longer than a launch.  The entry keeps it alive.
    key = id(pattern), stage.name
    if key not in _known:
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = pattern, _blocks_of(pattern, dict(arrays.stages), stage)
    found = _known[key][1]
    if isinstance(found, OfRuns) and arrays.kernels:
        return _of_runs(arrays, found)
    # Blocks align to position 0, and so have to do the rows of queries.
    if not isinstance(found, Blocks) or not arrays.kernels or (found.side == "q" and lines.q_start != 0):
        return None
    given = arrays.tensors[found.source] if found.source in TENSORS else arrays.array(found.source, None, Memo())
    if given.dim() != 4 or not given.is_floating_point() or (found.floor is not None and given.requires_grad):
        return None
    from spdsl.runtime.mean_kernels import of_blocks

    sizes = (found.size, found.step, lines.size(found.per), found.each, lines.size(found.side), found.mean)
    return of_blocks(given, *sizes, found.floor)


def _of_runs(arrays: Arrays, found: OfRuns) -> Tensor | None:
    lines, given = arrays.lines, arrays.tensors[found.source]
    runs = lines.runs(found.name)
    differentiated = found.kind in ("mean", "sum") or not given.requires_grad
    # A table has a run for each token; queries behind them are of the last one's.
    behind = found.side == "q" and lines.q_start + lines.nq > lines.n
    if runs is None or behind or not given.is_floating_point() or not differentiated:
        return None
    from spdsl.runtime.run_means import of_runs

    return of_runs(given, runs, lines.q_start if found.side == "q" else 0, found.kind)


def _blocks_of(pattern: BoundPattern, stages: dict[str, Stage], stage: Stage) -> Blocks | OfRuns | None:
    match stage:
        case Pool(kind="mean" | "sum" | "max" | "min" as kind, windows=None, per=str() as per, over=over):
            value, floor = _at_length_one(stages, stage.value)
        case _:
            return None
    if not isinstance(value, Load):
        return None
    side, name = side_of(over), value.table
    if stage.only != TRUE or side is None or len(stage.axes) != 3 or stage.axes[1] != per:
        return None
    inner = (stage.axes[0], over, stage.axes[2])
    below = stages.get(name)
    source = TENSOR_AXES.get(name) if below is None else below.axes if isinstance(below, Pool) else None
    if source != inner or value.indices[-3:] != tuple(map(index_of, inner)):
        return None
    axes = {axis.name: axis for axis in pattern.axes}
    by_table = per.partition(".")[2]
    if by_table in axes and axes[by_table].table is not None:
        fits = over == side and below is None and floor is None
        return OfRuns(source=name, name=by_table, side=side, kind=kind) if fits else None
    if kind not in ("mean", "sum"):
        return None
    each = _positions(axes, over.partition(".")[2])
    size, step = _window(axes, per.partition(".")[2])
    if size is None or each is None or size % each or size == each or step % each:
        return None
    return Blocks(
        source=name,
        per=per,
        side=side,
        size=size // each,
        step=step // each,
        each=each,
        mean=kind == "mean",
        floor=floor,
    )


def _at_length_one(stages: dict[str, Stage], value: Expr) -> tuple[Expr, float | None]:
    """What is divided by the root of the sum of its squares, and the least such sum; else the value itself."""
    match value:
        case Apply(
            op="div", args=(x, Apply(op="sqrt", args=(Apply(op="max", args=(Load() as sums, Const() as least)),)))
        ):
            below = stages.get(sums.table)
        case _:
            return value, None
    match below:
        case Pool(kind="sum", over="d", per=None, windows=None, value=Apply(op="mul", args=(one, two))) if (
            one == two == x and below.only == TRUE and sums.indices == tuple(map(index_of, below.axes))
        ):
            return x, float(least.value)
        case _:
            return value, None


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
