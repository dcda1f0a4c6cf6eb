"""The derivative of a float expression with respect to one table load, for the gradients of bias tables and sinks.

Rules of calculus on expanded expressions; conditions, ints and selections are constants.  At a kink (``min``, ``max``,
``abs``) the derivative is that of the side which the value takes; of equal sides, the first.
"""

from __future__ import annotations

from spdsl.diagnostics import SpatError, error
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Const, Expr, Load, Reduce
from spdsl.semantics.rewrite import children, walk

_ZERO = Const(value=0.0)
_ONE = Const(value=1.0)


def derivative(expr: Expr, load: Load) -> Expr:
    """The derivative d ``expr`` / d ``load``, folded.

    All loads equal to ``load`` are that variable; other loads of the same table are not.

    Raises:
        SpatError: the load passes through a reduction, or a power whose exponent depends on it (SP290).
    """
    found: dict[int, Expr] = {}
    for node in walk(expr):
        found[id(node)] = fold(_rule(node, load, [found[id(part)] for part in children(node)]))
    return found[id(expr)]


def _rule(node: Expr, load: Load, parts: list[Expr]) -> Expr:
    match node:
        case Load() if node == load:
            return _ONE
        case Apply(dtype="float"):
            if all(_is_zero(part) for part in parts):
                return _ZERO
            return _apply(node, parts)
        case Reduce(dtype="float"):
            if _is_zero(parts[0]):
                return _ZERO
            raise _refusal(node, f"the gradient of `{node.kind}` over positions")
        case _:
            return _ZERO


def _is_zero(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value == 0.0


def _mul(a: Expr, b: Expr) -> Expr:
    if _is_zero(a) or _is_zero(b):
        return _ZERO
    if a == _ONE:
        return b
    return a if b == _ONE else build.mul(a, b)


def _add(a: Expr, b: Expr) -> Expr:
    return b if _is_zero(a) else a if _is_zero(b) else build.add(a, b)


def _sub(a: Expr, b: Expr) -> Expr:
    return a if _is_zero(b) else _neg(b) if _is_zero(a) else build.sub(a, b)


def _neg(a: Expr) -> Expr:
    return _ZERO if _is_zero(a) else build.apply("neg", a)


def _apply(node: Apply, parts: list[Expr]) -> Expr:
    args = node.args
    match node.op:
        case "add":
            return _add(parts[0], parts[1])
        case "sub":
            return _sub(parts[0], parts[1])
        case "neg":
            return _neg(parts[0])
        case "mul":
            return _add(_mul(parts[0], args[1]), _mul(args[0], parts[1]))
        case "div":
            top = _sub(parts[0], _mul(node, parts[1]))
            return _ZERO if _is_zero(top) else build.apply("div", top, args[1])
        case "pow" if _is_zero(parts[1]):
            slope = build.mul(args[1], build.apply("pow", args[0], build.sub(args[1], 1.0)))
            return _mul(slope, parts[0])
        case "where":
            return build.apply("where", args[0], parts[1], parts[2])
        case "min":
            return build.apply("where", build.apply("le", args[0], args[1]), parts[0], parts[1])
        case "max":
            return build.apply("where", build.apply("ge", args[0], args[1]), parts[0], parts[1])
        case "abs":
            return build.apply("where", build.apply("ge", args[0], 0.0), parts[0], _neg(parts[0]))
        case "exp":
            return _mul(node, parts[0])
        case "log":
            return build.apply("div", parts[0], args[0])
        case "sqrt":
            return build.apply("div", parts[0], build.mul(2.0, node))
        case op:
            raise _refusal(node, f"the gradient of `{op}`")


def _refusal(node: Expr, what: str) -> SpatError:
    return error(
        "SP290",
        f"{what} with respect to a table is not supported yet",
        node.span,
        help="call without asking for this gradient: detach the table",
    )
