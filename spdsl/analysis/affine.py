"""Expression → integer set: a bool expression over ``q`` and ``k`` as an isl set of pairs ``[q, k]``.

From an expanded expression of `spdsl.semantics.nodes` to an isl set or value, by piecewise affine operations.  Whatever
depends on neither ``q`` nor ``k`` and is not affine by itself (loads such as ``prefix[b]``, ``h * h``) becomes one
opaque parameter.  This pass does not choose tiles and knows no lengths beyond their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import islpy as isl
from typing_extensions import assert_never

from spdsl.analysis.piecewise import Piecewise
from spdsl.analysis.tiles import Shape
from spdsl.analysis.wording import describe
from spdsl.semantics.bounds import Facts, interval
from spdsl.semantics.nodes import (
    Apply,
    Const,
    Coord,
    Expr,
    Extent,
    FreeParam,
    Index,
    Load,
    Noise,
    Param,
    Reduce,
    Table,
    Top,
)

_COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
_LOGIC = ("and", "or", "not")


class NotAffineError(Exception):
    """``culprit`` cannot be written with sums, constant multiples and constant divisions of positions."""

    def __init__(self, culprit: Expr, why: str) -> None:
        self.culprit = culprit
        self.why = why
        super().__init__(f"`{describe(culprit)}` {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """What the parameters of a set stand for, by name, in a fixed order; and the facts about them."""

    meaning: tuple[tuple[str, Expr], ...]
    heads: int
    groups: int
    tables: tuple[Table, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(name for name, _ in self.meaning)

    @property
    def free(self) -> frozenset[str]:
        """Those that stand for free parameters and what is computed from these alone."""
        return frozenset(name for name, expr in self.meaning if _is_of_parameters(expr))

    @property
    def has_promises(self) -> bool:
        """Whether the context rests on the declared range of an input."""
        return any(_has_loads(expr) and self._range(expr) != (None, None) for _, expr in self.meaning)

    def context(self, space: isl.Space) -> isl.Set:
        """The facts on indices, bool values and declared bounds, as a set of ``space``."""
        known = isl.Set.universe(space)
        builder = Piecewise(space)
        for name, expr in self.meaning:
            low, high = self._range(expr)
            value = builder.parameter(name)
            if low is not None:
                known = known.intersect(value.ge_set(builder.constant(low)))
            if high is not None:
                known = known.intersect(value.le_set(builder.constant(high)))
        if {"h", "g"} <= set(self.names):
            ratio = isl.Val(max(1, self.heads // self.groups))
            known = known.intersect(builder.parameter("h").scale_down_val(ratio).floor().eq_set(builder.parameter("g")))
        return known

    def _range(self, expr: Expr) -> tuple[int | None, int | None]:
        match expr:
            case Index(name="h"):
                return 0, self.heads - 1
            case Index(name="g"):
                return 0, self.groups - 1
            case Index(name="b"):
                return 0, None
            case Extent(name=name):
                return (None if name == "q_start" else 0), None
            case FreeParam(low=low, high=high):
                return low, high
            case Load(table=table, dtype="int"):
                bounds = next((t.bounds for t in self.tables if t.name == table), None)
                return (None, None) if bounds is None else (_whole(bounds.low), _whole(bounds.high))
            case Apply(dtype="int"):
                declared = {t.name: (t.bounds.low, t.bounds.high) for t in self.tables if t.bounds is not None}
                lowest, highest = interval(expr, Facts(tables=declared))
                return _whole(lowest), _whole(highest)
            case _:
                return (0, 1) if expr.dtype == "bool" else (None, None)


def _whole(value: int | float | None) -> int | None:
    return value if isinstance(value, int) else None


def abstract(
    exprs: Sequence[Expr],
    *,
    shape: Shape,
    heads: int,
    groups: int,
    tables: Sequence[Table] = (),
    over: bool = False,
) -> tuple[tuple[Expr, ...], Symbols]:
    """Expressions with opaque parts named, and what the names mean; the names are shared.

    With ``over``, clauses that are not affine are replaced so that the set only grows.  For ``square`` shapes ``nq`` is
    ``n`` and ``q_start`` is 0.

    Raises:
        NotAffineError: a value, or without ``over`` a clause, is not affine.
    """
    work = _Abstraction(square=shape == "square", over=over)
    affine = tuple(work.logic(e, positive=True) if e.dtype == "bool" else work.value(e) for e in exprs)
    meaning = tuple(sorted(work.meaning.items()))
    return affine, Symbols(meaning=meaning, heads=heads, groups=groups, tables=tuple(tables))


def space_of(names: Sequence[str]) -> isl.Space:
    """The space of pairs ``[q, k]`` with these parameters."""
    return isl.Space.create_from_names(isl.DEFAULT_CONTEXT, set=["q", "k"], params=list(names))


def pairs_where(expr: Expr, space: isl.Space) -> isl.Set:
    """The set of an abstracted bool expression in ``space``, which has all its names as parameters."""
    return Piecewise(space).holds(expr)


def value_of(expr: Expr, space: isl.Space) -> isl.PwAff:
    """The value of an abstracted int expression at the points of ``space``."""
    return Piecewise(space).value(expr)


# ---------------------------------------------------------------- naming what is opaque


def children(expr: Expr) -> Iterator[Expr]:
    """The direct subexpressions."""
    match expr:
        case Const() | Index() | Extent() | Param() | FreeParam() | Coord():
            return
        case Load(indices=indices):
            yield from indices
        case Apply(args=args):
            yield from args
        case Reduce(body=body):
            yield body
        case Noise(seed=seed, per=per):
            yield from (seed, *per)
        case Top(value=value, only=only, count=count):
            yield from (value, only, count)
        case _:
            assert_never(expr)


def is_program_constant(expr: Expr) -> bool:
    """Whether a kernel can compute the value once: ints and bools over ``h g b``, lengths and loads, not q or k."""
    if expr.dtype == "float" or isinstance(expr, Param | Coord | Reduce | Noise | Top):
        return False
    if isinstance(expr, Index) and expr.name in ("q", "k"):
        return False
    return all(is_program_constant(child) for child in children(expr))


def _is_of_parameters(expr: Expr) -> bool:
    parts = tuple(children(expr))
    return all(map(_is_of_parameters, parts)) if parts else isinstance(expr, FreeParam | Const)


def _is_of_call(expr: Expr) -> bool:
    return isinstance(expr, FreeParam | Load) or any(_is_of_call(child) for child in children(expr))


def _has_loads(expr: Expr) -> bool:
    return isinstance(expr, Load) or any(_has_loads(child) for child in children(expr))


class _Abstraction:
    """The walk behind `abstract`; collects names in ``meaning``."""

    def __init__(self, *, square: bool, over: bool) -> None:
        self.square = square
        self.over = over
        self.meaning: dict[str, Expr] = {}

    def logic(self, expr: Expr, *, positive: bool) -> Expr:
        """Abstract a bool expression; ``positive`` says whether growing it grows the whole."""
        if isinstance(expr, Apply) and expr.op in _LOGIC:
            turned = expr.op == "not"
            args = tuple(self.logic(a, positive=positive != turned) for a in expr.args)
            return replace(expr, args=args)
        if not self.over:
            return self.value(expr)
        before = dict(self.meaning)
        try:
            return self.value(expr)
        except NotAffineError:
            self.meaning = before
            return Const(value=positive)

    def value(self, expr: Expr) -> Expr:
        """Abstract any int or bool expression.  Raises `NotAffineError`."""
        match expr:
            case Const(value=value):
                if isinstance(value, float):
                    raise NotAffineError(expr, "is not an integer")
                return expr
            case Extent(name=name):
                return self._extent(name)
            case Index(name=name):
                return expr if name in ("q", "k") else self._named(name, expr)
            case FreeParam(variable=name):
                return self._named(name, expr)
            case Apply(op="floordiv" | "mod") if is_program_constant(expr) and _is_of_call(expr):
                # isl need not know how `window // 2` comes about: any value of it is a window.
                return self._opaque(expr)
            case Apply():
                return self._apply(expr)
            case Load() if is_program_constant(expr):
                return self._opaque(expr)
            case Load():
                raise NotAffineError(expr, "is read from a table at every position")
            case Reduce() | Top() | Noise():
                raise NotAffineError(expr, "is computed from the inputs or drawn at random, not from positions alone")
            case Param() | Coord():
                raise NotAffineError(expr, "is not expanded")
            case _:
                assert_never(expr)

    def _extent(self, name: str) -> Expr:
        if self.square and name == "q_start":
            return Const(value=0)
        name = "n" if self.square and name == "nq" else name
        return self._named(name, Extent(name=name))

    def _named(self, name: str, expr: Expr) -> Expr:
        self.meaning[name] = expr
        return Extent(name=name)

    def _opaque(self, expr: Expr) -> Expr:
        named = (name for name, known in self.meaning.items() if known == expr and known.dtype == expr.dtype)
        name = next(named, f"${len(self.meaning)}")
        self.meaning[name] = expr
        if expr.dtype == "bool":
            return Apply(op="ge", args=(Extent(name=name), Const(value=1)), dtype="bool")
        return Extent(name=name)

    def _apply(self, expr: Apply) -> Expr:
        before = dict(self.meaning)
        try:
            args = tuple(self.value(a) for a in expr.args)
            return self._affine(expr, args)
        except NotAffineError:
            if not is_program_constant(expr):
                raise
            self.meaning = before
            return self._opaque(expr)

    def _affine(self, expr: Apply, args: tuple[Expr, ...]) -> Expr:
        rebuilt = replace(expr, args=args)
        match expr.op:
            case "add" | "sub" | "neg" | "abs" | "min" | "max" | "where" | "and" | "or" | "not":
                return rebuilt
            case op if op in _COMPARE:
                return rebuilt
            case "mul":
                if not any(isinstance(a, Const) for a in args):
                    raise NotAffineError(expr, "multiplies two values that are not constants")
                return rebuilt
            case "floordiv" | "mod":
                divisor = args[1]
                if not isinstance(divisor, Const) or divisor.value == 0:
                    raise NotAffineError(expr, "divides by a value that is not a constant")
                return rebuilt
            case _:
                raise NotAffineError(expr, "is not linear in the positions")
