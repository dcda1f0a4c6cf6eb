"""From expressions to Triton text: one table, operation → text.

Names keep their shapes: in every kernel ``q`` and ``k`` are a column and a row vector (or the other way round), so the
same text broadcasts to a tile wherever it stands.  Loads do not occur here: lowering has given each of them a name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from typing_extensions import assert_never

from spdsl.semantics.bounds import interval, is_non_negative
from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, FreeParam, Index, Load, Noise, Param, Reduce, Top
from spdsl.semantics.ops import is_pow2
from spdsl.semantics.rewrite import transform

COMPARE, OR, AND, SHIFT, ADD, MUL, UNARY, ATOM = 1, 2, 3, 4, 5, 6, 7, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How an operation is written: its text, how tightly it binds, and how tightly its arguments must.

    ``helper`` names a function of the generated file that the text calls.
    """

    text: str
    binds: int = ATOM
    needs: tuple[int, ...] = (0, 0, 0)
    helper: str | None = None


FORMS: dict[str, Form] = {
    "add": Form(text="{0} + {1}", binds=ADD, needs=(ADD, MUL)),
    "sub": Form(text="{0} - {1}", binds=ADD, needs=(ADD, MUL)),
    "mul": Form(text="{0} * {1}", binds=MUL, needs=(MUL, UNARY)),
    "div": Form(text="{0} / {1}", binds=MUL, needs=(MUL, UNARY)),
    "floordiv": Form(text="floor_div({0}, {1})", helper="floor_div"),
    "mod": Form(text="floor_mod({0}, {1})", helper="floor_mod"),
    "pow": Form(text="power({0}, {1})", helper="power"),
    "neg": Form(text="-{0}", binds=UNARY, needs=(ATOM,)),
    "abs": Form(text="tl.abs({0})"),
    "min": Form(text="tl.minimum({0}, {1})"),
    "max": Form(text="tl.maximum({0}, {1})"),
    "isqrt": Form(text="isqrt({0})", helper="isqrt"),
    "is_pow2": Form(text="is_pow2({0})", helper="is_pow2"),
    "bitlen": Form(text="bitlen({0})", helper="bitlen"),
    "floor": Form(text="tl.cast(tl.floor({0}), tl.int32)"),
    "ceil": Form(text="tl.cast(tl.ceil({0}), tl.int32)"),
    "sqrt": Form(text="tl.sqrt(tl.cast({0}, tl.float32))"),
    "exp": Form(text="tl.exp(tl.cast({0}, tl.float32))"),
    "log": Form(text="tl.log(tl.cast({0}, tl.float32))"),
    "float": Form(text="tl.cast({0}, tl.float32)"),
    "lt": Form(text="{0} < {1}", binds=COMPARE, needs=(OR, OR)),
    "le": Form(text="{0} <= {1}", binds=COMPARE, needs=(OR, OR)),
    "gt": Form(text="{0} > {1}", binds=COMPARE, needs=(OR, OR)),
    "ge": Form(text="{0} >= {1}", binds=COMPARE, needs=(OR, OR)),
    "eq": Form(text="{0} == {1}", binds=COMPARE, needs=(OR, OR)),
    "ne": Form(text="{0} != {1}", binds=COMPARE, needs=(OR, OR)),
    "and": Form(text="{0} & {1}", binds=AND, needs=(AND, SHIFT)),
    "or": Form(text="{0} | {1}", binds=OR, needs=(OR, AND)),
    "not": Form(text="~{0}", binds=UNARY, needs=(UNARY,)),
    "where": Form(text="tl.where({0}, {1}, {2})"),
}
"""Every operation of the language; special cases that print shorter are in `_form`."""

TRUNCATING: dict[str, Form] = {
    "quotient": Form(text="{0} // {1}", binds=MUL, needs=(MUL, UNARY)),
    "remainder": Form(text="{0} % {1}", binds=MUL, needs=(MUL, UNARY)),
}
"""What Triton's own operators do, which truncate; `truncated` puts them where that makes no difference."""


def truncated(expr: Expr) -> Expr:
    """``expr`` with truncating divisions wherever both sides are proved not to be negative.

    Rows at negative positions keep nothing whatever the predicate says, so positions count as non-negative here.
    """

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Apply(op="floordiv" | "mod" as op, args=(left, right)) if _may_truncate(left, right):
                name = "quotient" if op == "floordiv" else "remainder"
                return Apply(op=name, args=(left, right), dtype="int", span=node.span)
            case _:
                return None

    return transform(expr, rewrite)


def _may_truncate(left: Expr, right: Expr) -> bool:
    low, _ = interval(_floored(right))
    return low is not None and low >= 1 and is_non_negative(_floored(left))


def _floored(expr: Expr) -> Expr:
    """The expression as the interval analysis knows it: where both agree, flooring for truncating."""

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Apply(op="quotient" | "remainder" as op, args=args):
                return Apply(op="floordiv" if op == "quotient" else "mod", args=args, dtype="int")
            case _:
                return None

    return transform(expr, rewrite)


def text_of(expr: Expr) -> str:
    """The Triton text of an expression without loads."""
    return _print(expr)[0]


def helpers_of(expr: Expr) -> frozenset[str]:
    """The functions of the generated file that the text of ``expr`` calls."""
    match expr:
        case Apply(args=args):
            own = _form(expr).helper
            return frozenset[str]({own} if own else ()).union(*(helpers_of(arg) for arg in args))
        case Load(indices=args):
            return frozenset[str]().union(*(helpers_of(arg) for arg in args))
        case _:
            return frozenset()


def _print(expr: Expr) -> tuple[str, int]:
    match expr:
        case Const(value=value):
            return literal(value)
        case Index(name=name) | Extent(name=name) | Param(name=name):
            return name, ATOM
        case FreeParam(variable=name):
            return name, ATOM
        case Apply(args=args):
            form = _form(expr)
            parts = [_argument(arg, need) for arg, need in zip(_shown(expr, args), form.needs, strict=False)]
            return form.text.format(*parts), form.binds
        case Load(table=table):
            raise TypeError(f"the load of {table} has no name yet")
        case Coord() | Reduce() | Noise() | Top():
            raise TypeError(f"{type(expr).__name__} is not expanded")
        case _:
            assert_never(expr)


def _argument(expr: Expr, need: int) -> str:
    text, binds = _print(expr)
    return text if binds >= need else f"({text})"


def _form(expr: Apply) -> Form:
    match expr:
        # Shifts and masks floor for either sign, and cost one instruction where divisions of signed ints cost four.
        # As operands they stand in brackets: readers know their precedence from several languages.
        case Apply(op="mod" | "remainder", args=(_, Const(value=int() as by))) if is_pow2(by):
            return Form(text=f"{{0}} & {by - 1}", binds=0, needs=(UNARY,))
        case Apply(op="floordiv" | "quotient", args=(_, Const(value=int() as by))) if is_pow2(by):
            return Form(text=f"{{0}} >> {by.bit_length() - 1}", binds=0, needs=(UNARY,))
        case Apply(op="quotient" | "remainder" as op):
            return TRUNCATING[op]
        case Apply(op="pow", dtype="int", args=(Const(value=2), _)):
            return Form(text="1 << {1}", binds=SHIFT, needs=(0, ADD))
        case Apply(op="pow", args=(Const(value=2 | 2.0), _)):
            return Form(text="tl.exp2(tl.cast({1}, tl.float32))")
        case Apply(op="pow", dtype="int"):
            return Form(text="int_power({0}, {1})", helper="int_power")
        case Apply(op=op):
            return FORMS[op]


def _shown(expr: Apply, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Arguments as they are printed: an int literal among floats becomes a float literal."""
    if expr.dtype == "float" and expr.op not in ("where", "pow"):
        return tuple(
            Const(value=float(arg.value)) if isinstance(arg, Const) and not isinstance(arg.value, bool) else arg
            for arg in args
        )
    return args


def literal(value: bool | int | float) -> tuple[str, int]:
    """A literal and how tightly it binds."""
    if isinstance(value, int) and not -(1 << 31) <= value < 1 << 31:
        return f"tl.full((), {value}, tl.int64)", ATOM  # where a literal takes the type of what it meets
    if isinstance(value, bool) or not isinstance(value, float):
        return repr(value), UNARY if value < 0 else ATOM
    if math.isinf(value):
        return ('float("inf")', ATOM) if value > 0 else ('float("-inf")', ATOM)
    return repr(value), UNARY if value < 0 else ATOM
