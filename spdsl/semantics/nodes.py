"""The checked pattern: typed expressions over named axes, and nothing that needs a lookup by name.

An expression denotes an array whose axes are a subset of ``b h g q k`` and of coordinates such as ``q.blk``; it is
written pointwise, as its value at one point.  ``q`` and ``k`` are absolute positions.  After `check`, parameters are
`Param` nodes; `bind` replaces them, and the extents that a call fixes, by constants; `expand` replaces coordinates by
arithmetic: the analysis and the kernels see arithmetic over ``q k h g b``, table loads and stages alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from spdsl.diagnostics import Span

if TYPE_CHECKING:
    from spdsl.semantics.graph import StageGraph

Dtype: TypeAlias = Literal["bool", "int", "float"]
Side: TypeAlias = Literal["q", "k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What all nodes share: where they came from, ignored by equality."""

    span: Span | None = field(default=None, compare=False, repr=False)


# ---------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, kw_only=True)
class Const(Node):
    """A literal."""

    value: bool | int | float

    @property
    def dtype(self) -> Dtype:
        """The type of the literal."""
        return "bool" if isinstance(self.value, bool) else "int" if isinstance(self.value, int) else "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Node):
    """The value of an index variable.

    In patterns ``q k h g b``.  In tile bounds also ``i`` (query tile) and ``j`` (key tile).
    """

    name: str

    @property
    def dtype(self) -> Dtype:
        """Always an int."""
        return "int"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent(Node):
    """A size that a call fixes: ``n nq heads groups d`` and ``layer``; in tile bounds also ``q_start``.

    ``n nq q_start`` stay run-time integers; the others are constants once bound.
    """

    name: str

    @property
    def dtype(self) -> Dtype:
        """Always an int."""
        return "int"


@dataclass(frozen=True, slots=True, kw_only=True)
class Param(Node):
    """A parameter of the pattern, or item ``item`` of a tuple parameter."""

    name: str
    dtype: Dtype
    item: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeParam(Node):
    """An int parameter that stays open when a pattern is bound: each call brings its value, of the declared range."""

    name: str
    low: int | None = None
    high: int | None = None

    @property
    def dtype(self) -> Dtype:
        """Always an int."""
        return "int"

    @property
    def variable(self) -> str:
        """Its name among the variables of kernels and evaluators, where no other name begins in this way."""
        return f"p_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coord(Node):
    """``q.blk`` or ``k.y``: the coordinate of a position on an axis or grid."""

    side: Side
    axis: str

    @property
    def dtype(self) -> Dtype:
        """Always an int."""
        return "int"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Node):
    """An element of an input table, one index for each declared axis.

    A table with an axis ``q`` is read at the absolute position.  Bool tables give bool.
    """

    table: str
    dtype: Dtype
    indices: tuple[Expr, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply(Node):
    """An operation of `spdsl.semantics.ops.OPS` on its arguments."""

    op: str
    args: tuple[Expr, ...]
    dtype: Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Node):
    """A reduction of ``body`` over positions of one side.

    With ``axis`` the positions are those of one coordinate (``per = side.axis``) and the value has that coordinate as
    its axis; without, all existing positions (``over = side``).  ``body`` is written with ``Index(side)`` free.
    Positions outside ``0 <= position < n`` do not exist and take no part.  Over nothing, any is false, all is true, sum
    is 0, and mean, min and max are an error of `bind`'s caller to avoid: a coordinate always has a member.
    """

    kind: Literal["any", "all", "sum", "mean", "min", "max"]
    side: Side
    axis: str | None
    body: Expr
    dtype: Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(Node):
    """Philox4x32-10, key = seed, counter = the indices in order, first word / 2**32: uniform in [0, 1)."""

    seed: Expr
    per: tuple[Expr, ...]

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Top(Node):
    """Whether this candidate is among the ``count`` largest.

    They are the largest ``value`` along ``side.axis`` (or ``side``) where ``only`` holds.
    Ties go to the smaller index; fewer candidates than asked for means all of them.
    """

    value: Expr
    only: Expr
    count: Expr
    side: Side
    axis: str | None

    @property
    def dtype(self) -> Dtype:
        """Always a bool."""
        return "bool"


Expr: TypeAlias = Const | Index | Extent | Param | FreeParam | Coord | Load | Apply | Reduce | Noise | Top


# ---------------------------------------------------------------- declarations


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds(Node):
    """An inclusive range; None leaves a side open."""

    low: int | float | None = None
    high: int | float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter(Node):
    """A declared parameter; ``length`` is the number of items of a tuple, None for a scalar."""

    name: str
    dtype: Dtype
    length: int | None
    bounds: Bounds | None
    default: bool | int | float | tuple[bool | int | float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableAxis(Node):
    """One axis of a table: ``kind`` is ``token q h g b``, ``axis`` (a coordinate, ``size`` its count), ``own`` or
    ``free`` (an index by the name ``label``; of a free size where ``size`` is the extent of that name).

    ``size`` is the extent as an expression; ``label`` is how the user wrote it, for messages.
    """

    kind: Literal["token", "q", "h", "g", "b", "axis", "own", "free"]
    size: Expr
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Node):
    """A declared input, or a stage (``made``).

    ``listed``: a bool table that is given as lists.  In place of its last axis stand, ascending, the indices of its
    true elements, at most ``most`` if that is known, and then numbers too large to be one.  ``implied``: it is true
    wherever the other clauses of the sets that read it hold.
    """

    name: str
    dtype: Dtype
    axes: tuple[TableAxis, ...]
    bounds: Bounds | None
    sorted: bool
    made: bool = False
    listed: bool = False
    most: int | None = None
    implied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis(Node):
    """A division of positions or of another coordinate.

    ``of`` is the coordinate that is divided, as an expression of ``Index("k")`` and ``Coord("k", …)`` (one for each
    dimension of an N-D tile).  Exactly one of ``size`` (constant lengths, one for each ``of``), ``table`` (a sorted
    input; the coordinate is the table's value) and ``into`` (a number of equal parts) is given.  ``step`` differs from
    ``size`` for overlapping windows, of which a position has several.
    """

    name: str
    of: tuple[Expr, ...]
    size: tuple[Expr, ...] | None
    step: Expr | None
    table: str | None
    into: Expr | None
    extents: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(Node):
    """Row-major coordinates of the positions from ``start`` on.

    ``of`` is what is split, an expression of ``Index("k")``.  An unnamed grid must cover ``n`` exactly.  Outside a
    named grid every comparison of its coordinates is false (the checker has added the conditions to the comparisons).
    """

    name: str | None
    of: Expr
    coordinates: tuple[tuple[str, Expr], ...]


# ---------------------------------------------------------------- patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend(Node):
    """One softmax over the pairs that ``keep`` holds for.

    logit = softcap * tanh(scale * q.k / softcap) + bias; ``scale`` None means 1/sqrt(D).  ``sink_logit`` enters the
    denominator only.  ``bias`` may depend on everything, ``sink_logit`` on ``b h g q``, ``scale`` and ``softcap`` on
    parameters alone.
    """

    keep: Expr
    bias: Expr | None = None
    scale: Expr | None = None
    softcap: Expr | None = None
    sink_logit: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPattern(Node):
    """A pattern in which every name is resolved and every expression typed.

    ``text`` is the canonical, self-contained `.spat` text (imports inlined), which serves as a key.  A pattern that
    computes with queries, keys or values before it attends has a ``graph``; ``attend`` is then its first softmax.
    """

    name: str
    parameters: tuple[Parameter, ...]
    tables: tuple[Table, ...]
    axes: tuple[Axis, ...]
    grids: tuple[Grid, ...]
    attend: Attend
    text: str
    graph: StageGraph | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPattern(Node):
    """A pattern with parameters, layer, heads, groups and head dim fixed and folded: no `Param` is left, `Extent` only
    for ``n nq q_start``.  Parameters in ``free`` have no value here: they stand in the clauses as `FreeParam`."""

    name: str
    parameters: tuple[tuple[str, bool | int | float | tuple[bool | int | float, ...]], ...]
    tables: tuple[Table, ...]
    axes: tuple[Axis, ...]
    grids: tuple[Grid, ...]
    attend: Attend
    layer: int
    heads: int
    groups: int
    head_dim: int
    text: str
    free: tuple[FreeParam, ...] = ()
    graph: StageGraph | None = None
