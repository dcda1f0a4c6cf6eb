"""The derivative of a float expression with respect to one load of a table.

From: an expression and a load in it.  To: how the value changes with that element, other elements of the table held fixed.
Comparisons and roundings are constants for the gradient; at a kink the derivative is that of the side the value is on.
"""

from __future__ import annotations

from collections.abc import Callable

from spdsl.diagnostics import error
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr, Load
from spdsl.semantics.rewrite import children, walk

ZERO, ONE = Const(value=0.0), Const(value=1.0)


def derivative(expr: Expr, load: Load) -> Expr:
    """``d expr / d load``, folded.

    Raises:
        SpatError: an operation between the load and the value has no derivative (SP405).
    """
    found: dict[int, Expr] = {}
    for node in walk(expr, into_stages=False):
        found[id(node)] = ONE if node == load else _chain(node, load, found)
    return fold(found[id(expr)])


def _chain(node: Expr, load: Load, found: dict[int, Expr]) -> Expr:
    parts = children(node)
    slopes = [found.get(id(part), ZERO) for part in parts]
    moving = [slope != ZERO for slope in slopes]
    if not isinstance(node, Apply) or node.dtype != "float" or not any(moving):
        return ZERO
    rule = _RULES.get(node.op)
    if rule is None:
        raise error(
            "SP405",
            f"`{node.op}` of `{load.table}` has no derivative",
            node.span,
            help=f"write it with + - * / min max abs exp log sqrt, or pass `{load.table}` without requires_grad",
        )
    total: Expr = ZERO
    for slope, share, moves in zip(slopes, rule(node, *node.args), moving, strict=True):
        if moves and share is not None:
            total = _sum(total, _product(slope, share))
    return total


def _sum(a: Expr, b: Expr) -> Expr:
    return b if a == ZERO else a if b == ZERO else build.add(a, b)


def _product(a: Expr, b: Expr) -> Expr:
    return b if a == ONE else a if b == ONE else build.mul(a, b)


def _if(condition: Expr, yes: Expr, no: Expr) -> Expr:
    return build.apply("where", condition, yes, no)


def _div(node: Apply, a: Expr, b: Expr) -> tuple[Expr, ...]:
    return build.apply("div", ONE, b), build.apply("neg", build.apply("div", a, build.mul(b, b)))


def _pow(node: Apply, a: Expr, b: Expr) -> tuple[Expr, ...]:
    return build.mul(b, build.apply("pow", a, build.sub(b, 1.0))), build.mul(node, build.apply("log", a))


def _pick(op: str) -> Callable[..., tuple[Expr, ...]]:
    def rule(node: Apply, a: Expr, b: Expr) -> tuple[Expr, ...]:
        first = build.apply(op, a, b)
        return _if(first, ONE, ZERO), _if(first, ZERO, ONE)

    return rule


# For each operation, what a small change of each argument does to the value; None where an argument has no slope.
_RULES: dict[str, Callable[..., tuple[Expr | None, ...]]] = {
    "add": lambda node, a, b: (ONE, ONE),
    "sub": lambda node, a, b: (ONE, Const(value=-1.0)),
    "mul": lambda node, a, b: (b, a),
    "div": _div,
    "pow": _pow,
    "neg": lambda node, a: (Const(value=-1.0),),
    "abs": lambda node, a: (_if(build.apply("lt", a, 0.0), Const(value=-1.0), _if(build.apply("gt", a, 0.0), ONE, ZERO)),),
    "min": _pick("le"),
    "max": _pick("ge"),
    "exp": lambda node, a: (node,),
    "log": lambda node, a: (build.apply("div", ONE, a),),
    "sqrt": lambda node, a: (build.apply("div", Const(value=0.5), node),),
    "where": lambda node, c, a, b: (None, _if(c, ONE, ZERO), _if(c, ZERO, ONE)),
}
