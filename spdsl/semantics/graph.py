"""What is computed from queries and keys before attention runs: a graph of stages, each an array with named axes.

A stage reads inputs, the tensors ``Q K V`` and earlier stages, all by `Load`, pointwise: a load of a stage has one
index for each of its axes.  Every array has the batch as one more axis in front.  Axes are ``h`` and ``g``, positions
``q`` and ``k``, coordinates such as ``k.blk``, the distance ``q-k``, and free axes such as the features ``d``, which
are indices by their name.  At most one axis belongs to each side.  What ``only`` has removed is absent: each stage
that ranks or reduces says of which entries (``only``) it is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from typing_extensions import assert_never

from spdsl.semantics.nodes import Apply, Attend, Coord, Dtype, Expr, Index, Load, Node, Side
from spdsl.semantics.rewrite import walk

Reduction: TypeAlias = Literal["any", "all", "sum", "mean", "min", "max"]
Windows: TypeAlias = Literal["inside", "touching"]

DISTANCE = "q-k"
TENSORS = ("Q", "K", "V")
"""The tables that hold the tensors of a call: `Load`s with an index for batch, head, position and feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Node):
    """The sum of ``left`` times ``right`` along the free axis ``over``, times ``scale``: by default 1 / √(its size)."""

    name: str
    axes: tuple[str, ...]
    left: Expr
    right: Expr
    over: str
    scale: Expr | None

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Node):
    """A reduction of ``value`` where ``only`` holds: the axis ``over`` goes, and ``per`` takes its place.

    ``per`` is None, a coordinate of the same side, ``g`` for ``h``, or the distance for both positions (then ``over``
    is the distance, too).  Positions count: a coarse value counts once for each position it shares with a member of
    ``per``.  With ``windows``, members of ``over`` count once, if they lie inside a member of ``per`` or touch it.
    Over nothing, any is false, all is true, and the others are 0.
    """

    name: str
    axes: tuple[str, ...]
    kind: Reduction
    value: Expr
    only: Expr
    over: str
    per: str | None
    windows: Windows | None
    dtype: Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Node):
    """The softmax of ``value`` along ``over`` among the entries where ``only`` holds; 0 elsewhere."""

    name: str
    axes: tuple[str, ...]
    value: Expr
    only: Expr
    over: str

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Node):
    """The best entries along ``over``, among those where ``only`` or ``forced`` holds.

    The order: forced entries, then larger values, then smaller indices; a NaN is absent.  By ``count`` they are the
    first ``amount``; by ``mass`` all forced ones and as many others as it takes for their values to sum up to
    ``amount`` times the sum of all, where negative values count as 0; what counts as 0 is not taken.  ``least`` are
    taken in any case.  Entries along ``also`` are ranked together with those along ``over``, row by row in the order
    of these axes.  With ``rank``, an axis of ``amount`` entries, the set has one entry for each place in the order.
    """

    name: str
    axes: tuple[str, ...]
    value: Expr
    only: Expr
    forced: Expr
    amount: Expr
    by: Literal["count", "mass"]
    over: str
    also: tuple[str, ...] = ()
    least: Expr | None = None
    rank: str | None = None

    @property
    def dtype(self) -> Dtype:
        """Always a bool."""
        return "bool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth(Node):
    """For each entry along ``over`` the sum of the ``width`` around it, an odd number, divided by ``width``.

    What is absent, or past an end, counts as 0.
    """

    name: str
    axes: tuple[str, ...]
    value: Expr
    only: Expr
    over: str
    width: Expr

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descend(Node):
    """A search inside of each member of ``per``: the largest ``value`` that halving its positions meets.

    From all positions of the member that exist, the half is taken, again and again until one is left, whose middle has
    the larger ``value``, the first where they are equal.  The middle of positions a to b - 1 is (a + b) // 2, and the
    first half is the longer one.  What is not in ``only`` is smaller than all numbers; NaN where only that was met.
    """

    name: str
    axes: tuple[str, ...]
    value: Expr
    only: Expr
    per: str

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix(Node):
    """A reduction, for each query, of the ``value`` of keys up to it: the axis ``k`` becomes ``q``."""

    name: str
    axes: tuple[str, ...]
    kind: Literal["sum", "mean"]
    value: Expr
    only: Expr

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark(Node):
    """The set of the points at which ``value`` holds: a condition on the numbers of other stages."""

    name: str
    axes: tuple[str, ...]
    value: Expr

    @property
    def dtype(self) -> Dtype:
        """Always a bool."""
        return "bool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Node):
    """A softmax of ``query`` over ``key``, applied to ``value``: arrays over heads, ``rows`` or ``columns``, features.

    Its clauses are written at a pair of a query on the axis ``rows`` and a key on the axis ``columns``.  With
    ``member``, a free axis, it is one softmax for each member.
    """

    name: str
    axes: tuple[str, ...]
    query: Expr
    key: Expr
    value: Expr
    rows: str
    columns: str
    attend: Attend
    member: str | None = None

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge(Node):
    """One softmax over the keys of several: ``parts`` are the names of `Attention` or `Merge` stages.

    With ``over`` they are the members of one part along that axis.  ``counted``: a pair may be in several of them, and
    then counts as often.  By ``mean`` it is the mean of those that keep something, which has no LSE.  ``stopped``:
    their shares are constants for the gradient.
    """

    name: str
    axes: tuple[str, ...]
    parts: tuple[str, ...]
    counted: bool
    over: str | None = None
    by: Literal["lse", "mean"] = "lse"
    stopped: bool = False

    @property
    def dtype(self) -> Dtype:
        """Always a float."""
        return "float"


Stage: TypeAlias = Score | Pool | Softmax | Select | Smooth | Descend | Prefix | Mark | Attention | Merge


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGraph(Node):
    """All stages, earlier ones first; what the pattern returns, over ``h q d``, and what it exports, by name.

    ``titles`` are what the pattern calls some of the stages, by name; like places, equality ignores them.
    """

    stages: tuple[Stage, ...]
    result: Expr
    exports: tuple[Export, ...] = ()
    titles: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(each for each in self.stages if each.name == name)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The softmaxes, in order."""
        return tuple(each for each in self.stages if isinstance(each, Attention))

    @property
    def returned(self) -> str | None:
        """The softmax that is returned as it is, and so has an LSE; None if arithmetic follows."""
        match self.result:
            case Load(table=name) if not any(isinstance(index, Apply) for index in self.result.indices):
                stage = self.stage(name)
                return name if isinstance(stage, Attention | Merge) and getattr(stage, "by", "lse") == "lse" else None
            case _:
                return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Node):
    """A value that is returned beside the output: ``value`` where ``only`` holds (else 0), along ``axes``."""

    name: str
    axes: tuple[str, ...]
    value: Expr
    only: Expr


def parts(stage: Stage) -> tuple[Expr, ...]:
    """The expressions of a stage, in a fixed order."""
    match stage:
        case Score(left=left, right=right, scale=scale):
            return (left, right) if scale is None else (left, right, scale)
        case (
            Pool(value=value, only=only)
            | Softmax(value=value, only=only)
            | Prefix(value=value, only=only)
            | Descend(value=value, only=only)
        ):
            return (value, only)
        case Select(value=value, only=only, forced=forced, amount=amount, least=least):
            return (value, only, forced, amount) if least is None else (value, only, forced, amount, least)
        case Smooth(value=value, only=only, width=width):
            return (value, only, width)
        case Mark(value=value):
            return (value,)
        case Attention(query=query, key=key, value=value, attend=attend):
            clauses = (attend.keep, attend.bias, attend.scale, attend.softcap, attend.sink_logit)
            return (query, key, value, *(clause for clause in clauses if clause is not None))
        case Merge():
            return ()
        case _:
            assert_never(stage)


def expressions(graph: StageGraph) -> Iterator[Expr]:
    """Every expression of a graph."""
    for stage in graph.stages:
        yield from parts(stage)
    yield graph.result
    for export in graph.exports:
        yield from (export.value, export.only)


_MOST = 8192
"""Expressions whose loads are remembered."""

_loads: dict[int, tuple[Expr, frozenset[str]]] = {}


def loads(expr: Expr) -> frozenset[str]:
    """The names of the tables, tensors and stages that an expression reads."""
    # By identity: every call of a pattern asks, and hashing an expression takes as long as going through it.  The entry
    # keeps it alive.
    found = _loads.get(id(expr))
    if found is None:
        if len(_loads) >= _MOST:
            _loads.clear()
        names = frozenset(node.table for node in walk(expr) if isinstance(node, Load))
        found = _loads[id(expr)] = expr, names
    return found[1]


def index_of(axis: str) -> Expr:
    """The index along an axis, as an expression."""
    side, _, name = axis.partition(".")
    if name:
        return Coord(side="q" if side == "q" else "k", axis=name)
    if axis == DISTANCE:
        return Apply(op="sub", args=(Index(name="q"), Index(name="k")), dtype="int")
    return Index(name=axis)


def side_of(axis: str) -> Side | None:
    """The side to which positions or coordinates belong; None for heads, distances and free axes."""
    match axis.partition(".")[0]:
        case "q":
            return "q"
        case "k":
            return "k"
        case _:
            return None


def on_side(axes: tuple[str, ...] | frozenset[str], side: Side) -> str | None:
    """The axis of a side, if there is one."""
    return next((axis for axis in sorted(axes) if side_of(axis) == side), None)


def ordered(axes: frozenset[str]) -> tuple[str, ...]:
    """Axes in the order in which arrays have them: heads, distances and free axes, queries, keys, features."""

    def rank(axis: str) -> tuple[int, str]:
        place = {"h": 0, "g": 1, DISTANCE: 4, "d": 6, "e": 6}.get(axis)
        if place is None:
            place = {"q": 3, "k": 5, None: 2}[side_of(axis)]
        return place, axis

    return tuple(sorted(axes, key=rank))


def ranks_queries(stage: Stage) -> bool:
    """Whether queries compete with each other, so that no row can be made without the others."""
    return isinstance(stage, Select) and any(side_of(axis) == "q" for axis in (stage.over, *stage.also))


def is_free(axis: str) -> bool:
    """Whether an axis must be closed before a value can stand in a set: neither heads nor a side."""
    return axis not in ("b", "h", "g", DISTANCE) and side_of(axis) is None
