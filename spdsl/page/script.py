"""From expressions to JavaScript: one table, operation → text, so that a page can work out a mask for itself.

Every value is a number or a boolean of JavaScript, exact for ints below 2**53.  The text is made of this table, of
numbers and of the names of parameters and inputs, which are identifiers: nothing else of a file reaches it.
"""

from __future__ import annotations

import json
import math

from typing_extensions import assert_never

from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, FreeParam, Index, Load, Noise, Param, Reduce, Top

FORMS: dict[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "floordiv": "Math.floor({0} / {1})",
    "mod": "mod({0}, {1})",
    "pow": "Math.pow({0}, {1})",
    "neg": "-{0}",
    "abs": "Math.abs({0})",
    "min": "Math.min({0}, {1})",
    "max": "Math.max({0}, {1})",
    "isqrt": "isqrt({0})",
    "is_pow2": "isPow2({0})",
    "bitlen": "bitlen({0})",
    "floor": "Math.floor({0})",
    "ceil": "Math.ceil({0})",
    "sqrt": "Math.sqrt({0})",
    "exp": "Math.exp({0})",
    "log": "Math.log({0})",
    "float": "{0}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} === {1}",
    "ne": "{0} !== {1}",
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "not": "!{0}",
    "where": "{0} ? {1} : {2}",
}
"""Every operation of the language; the functions that the texts call stand in ``page.html``."""


class NoScriptError(Exception):
    """An expression that a page cannot work out by itself: a selection or a reduction."""


def script(expr: Expr) -> str:
    """The expression as JavaScript of ``q k h g``, of ``E`` (extents), ``P`` (parameters) and ``T`` (tables).

    Raises:
        NoScriptError: it selects or reduces.
    """
    match expr:
        case Const(value=bool() as value):
            return "true" if value else "false"
        case Const(value=float() as value) if not math.isfinite(value):
            return "Infinity" if value > 0 else "-Infinity" if value < 0 else "NaN"
        case Const(value=value):
            return f"({json.dumps(value)})"
        case Index(name="b"):
            return "0"
        case Index(name=name):
            return name
        case Extent(name=name):
            return f"E.{name}"
        case Param(name=name, item=None):
            return f"P[{json.dumps(name)}]"
        case Param(name=name, item=item):
            return f"P[{json.dumps(name)}][{item}]"
        case Load(table=table, indices=indices):
            return f"T[{json.dumps(table)}]({', '.join(script(index) for index in indices)})"
        case Apply(op=op, args=args):
            return f"({FORMS[op].format(*(script(arg) for arg in args))})"
        case FreeParam() | Coord() | Noise() | Reduce() | Top():
            raise NoScriptError(type(expr).__name__)
        case _:
            assert_never(expr)
