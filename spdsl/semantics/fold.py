"""Constant folding and light simplification: from an expression to one with the same meaning and fewer nodes.

The meaning of constants is that of `OPS`, Python's, within 64-bit ints and floats.  What cannot be computed (a division
by zero, a power too large) is an error only if it is still there at the end: `if block > 0 then q // block else 0` is
fine for a block of 0.  Nothing here reorders float arithmetic.
"""

from __future__ import annotations

from spdsl.diagnostics import error
from spdsl.semantics import build
from spdsl.semantics.bounds import Facts, interval
from spdsl.semantics.nodes import Apply, Const, Expr, Reduce, Top
from spdsl.semantics.ops import OPS
from spdsl.semantics.rewrite import transform, walk

INT_LOW, INT_HIGH = -(2**63), 2**63 - 1
_FLIPPED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


class _FaultError(Exception):
    """Why constants cannot be computed, and what would help."""

    def __init__(self, message: str, help: str = "use other numbers, or choose with `if … then … else …`") -> None:
        super().__init__(message)
        self.message, self.help = message, help


def fold(expr: Expr, *, code: str = "SP307", facts: Facts | None = None) -> Expr:
    """Fold and simplify.  Raises `SpatError` with ``code`` where an operation that remains cannot be computed.

    ``facts`` are ranges of parameters and tables; comparisons that they decide become constants.
    """
    known = facts or Facts()
    folded = transform(expr, lambda node: _simplify(node, known))
    for node in walk(folded):
        if isinstance(node, Apply):
            _refuse_fault(node, code)
    return folded


def fold_constants(expr: Expr, *, code: str) -> Expr:
    """Fold what consists of constants alone; raises `SpatError` with ``code`` if that cannot be computed."""
    return fold(expr, code=code)


def _refuse_fault(node: Apply, code: str) -> None:
    try:
        if _is_divided_by_zero(node):
            raise _FaultError("division by zero")
        if all(isinstance(arg, Const) for arg in node.args):
            _compute(node)
    except _FaultError as fault:
        shown = ""
        if all(isinstance(arg, Const) for arg in node.args):
            from spdsl.semantics.show import print_expr

            shown = f" in `{print_expr(node)}`"
        raise error(code, f"{fault.message}{shown}", node.span, help=fault.help) from None


def _is_divided_by_zero(node: Apply) -> bool:
    return node.op in ("div", "floordiv", "mod") and isinstance(node.args[1], Const) and node.args[1].value == 0


def _compute(node: Apply) -> Const:
    """The value of an operation on constants, in 64 bits."""
    values = [arg.value for arg in node.args if isinstance(arg, Const)]
    if node.op == "pow":
        _guard_power(*values)
    try:
        value = OPS[node.op].fold(*values)
    except ZeroDivisionError:
        raise _FaultError("division by zero") from None
    except OverflowError:
        raise _FaultError("the result is larger than any float") from None
    except ValueError:
        raise _FaultError(f"`{OPS[node.op].symbol or node.op}` has no value here") from None
    if isinstance(value, complex):
        raise _FaultError("a root of a negative number has no real value")
    if node.dtype == "float":
        return Const(value=float(value), span=node.span)
    if node.dtype == "int":
        value = int(value)
        if not INT_LOW <= value <= INT_HIGH:
            raise _FaultError("the result does not fit into 64 bits")
        return Const(value=value, span=node.span)
    return Const(value=bool(value), span=node.span)


def _guard_power(base: float, exponent: float) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        if exponent < 0 and base == 0:
            raise _FaultError("division by zero")
        if abs(base) > 1 and exponent * (abs(base).bit_length() - 1) > 64:
            raise _FaultError("the result does not fit into 64 bits")


def _simplify(node: Expr, facts: Facts) -> Expr | None:
    match node:
        case Apply(args=args) if all(isinstance(arg, Const) for arg in args):
            try:
                return _compute(node)
            except _FaultError:
                return None
        case Apply(op="and" | "or" | "not" | "where"):
            return _logic(node)
        case Apply(op="lt" | "le" | "gt" | "ge" | "eq" | "ne"):
            return _decided(node, facts)
        case Apply(dtype="int"):
            return _arithmetic(node)
        case Apply(op="mul" | "add" | "sub" | "div", args=(left, Const(value=value))):
            # Exact for floats too; x + 0.0 is not, for x = -0.0, and nobody can tell.
            neutral = 1.0 if node.op in ("mul", "div") else 0.0
            return left if value == neutral else None
        case Reduce(kind="any" | "all", body=Const(value=value)) if value is (node.kind == "all"):
            return Const(value=value, span=node.span)
        case Reduce(kind="mean" | "min" | "max", body=Const() as body):
            return body
        case Top(count=Const(value=0)) | Top(only=Const(value=False)):
            return Const(value=False, span=node.span)
        case _:
            return None


def _logic(node: Apply) -> Expr | None:
    match node.op, node.args:
        case "and", (Const(value=value), other) | (other, Const(value=value)):
            return other if value else build.FALSE
        case "or", (Const(value=value), other) | (other, Const(value=value)):
            return build.TRUE if value else other
        case "and" | "or", (left, right) if left is right:
            return left
        case "and" | "or", (left, right):
            return _without_repeats(node, left, right)
        case "not", (Apply(op="not", args=(inner,)),):
            return inner
        case "not", (Apply(op=op, args=inner),) if op in _FLIPPED and inner[0].dtype == "int":
            return Apply(op=_FLIPPED[op], args=inner, dtype="bool", span=node.span)
        case "where", (Const(value=condition), yes, no):
            return yes if condition else no
        case "where", (_, yes, no) if yes is no or (isinstance(yes, Const) and yes == no):
            return yes
        case "where", (condition, Const(value=True), Const(value=False)):
            return condition
        case "where", (condition, Const(value=True), no):
            return build.place(build.disj(condition, no), node.span)
        case "where", (condition, yes, Const(value=False)):
            return build.place(build.conj(condition, yes), node.span)
        case _:
            return None


def _without_repeats(node: Apply, left: Expr, right: Expr) -> Expr | None:
    """A chain of `and` or `or` whose right side repeats parts of the left (the same objects)."""
    before = {id(part) for part in _links(node.op, left)}
    parts = _links(node.op, right)
    new = [part for part in parts if id(part) not in before]
    if len(new) == len(parts):
        return None
    whole = left
    for part in new:
        whole = Apply(op=node.op, args=(whole, part), dtype="bool", span=node.span)
    return whole


def _links(op: str, expr: Expr, most: int = 32) -> list[Expr]:
    """The first parts of a chain of one operation; parts beyond ``most`` are left in one piece."""
    found: list[Expr] = []
    stack = [expr]
    while stack:
        part = stack.pop()
        if isinstance(part, Apply) and part.op == op and len(found) + len(stack) < most:
            stack.extend(reversed(part.args))
        else:
            found.append(part)
    return found


def _decided(node: Apply, facts: Facts) -> Expr | None:
    """A comparison whose outcome the ranges of its sides tell."""
    left, right = node.args
    if left is right and left.dtype == "int":
        return Const(value=node.op in ("le", "ge", "eq"), span=node.span)
    if not (isinstance(left, Const) or isinstance(right, Const)) or left.dtype == "bool":
        return None
    # Rows of queries may lie before position 0 (padding); nothing is assumed about them.
    (a, b), (c, d) = (interval(side, _without_queries(facts)) for side in (left, right))
    below = b is not None and c is not None and b < c
    above = a is not None and d is not None and a > d
    not_above = b is not None and c is not None and b <= c
    not_below = a is not None and d is not None and a >= d
    outcome: bool | None
    match node.op:
        case "lt":
            outcome = True if below else False if not_below else None
        case "le":
            outcome = True if not_above else False if above else None
        case "gt":
            outcome = True if above else False if not_above else None
        case "ge":
            outcome = True if not_below else False if below else None
        case "eq":
            outcome = False if below or above else None
        case _:
            outcome = True if below or above else None
    return None if outcome is None else Const(value=outcome, span=node.span)


def _without_queries(facts: Facts) -> Facts:
    return Facts(
        indices={"q": (None, None), "i": (None, None), **facts.indices},
        extents=facts.extents,
        tables=facts.tables,
        params=facts.params,
    )


def _arithmetic(node: Apply) -> Expr | None:
    match node.op, node.args:
        case "add", (left, Const(value=0)):
            return left
        case "add", (Const(value=0), right):
            return right
        case "sub", (left, Const(value=0)):
            return left
        case "sub", (left, right) if left is right:
            return Const(value=0, span=node.span)
        case "add" | "sub", (Apply(op="add" | "sub", args=(inner, Const(value=first))) as sum_, Const(value=second)):
            total = (first if sum_.op == "add" else -first) + (second if node.op == "add" else -second)
            return _shifted(node, inner, total)
        case "add", (Const() as first, right) if not isinstance(right, Const):
            return _simplify_again(Apply(op="add", args=(right, first), dtype="int", span=node.span))
        case "mul" | "floordiv", (left, Const(value=1)):
            return left
        case "mul", (Const(value=1), right):
            return right
        case "mul", (_, Const(value=0)) | (Const(value=0), _):
            return Const(value=0, span=node.span)
        case "mul", (Apply(op="mul", args=(inner, Const(value=first))), Const(value=second)):
            return _scaled(node, "mul", inner, first, second)
        case "floordiv", (Apply(op="floordiv", args=(inner, Const(value=first))), Const(value=second)):
            return _scaled(node, "floordiv", inner, first, second) if min(first, second) > 0 else None
        case "mod", (_, Const(value=1)):
            return Const(value=0, span=node.span)
        case "neg", (Apply(op="neg", args=(inner,)),):
            return inner
        case "min" | "max" as op, (left, right) if left is right:
            return left
        case "min" | "max" as op, (Apply(op=inner_op, args=(inner, Const() as first)), Const() as second) if (
            inner_op == op
        ):
            bound = OPS[op].fold(first.value, second.value)
            return Apply(op=op, args=(inner, Const(value=bound)), dtype="int", span=node.span)
        case "abs", (Apply(op="neg" | "abs", args=(inner,)),):
            return Apply(op="abs", args=(inner,), dtype="int", span=node.span)
        case _:
            return None


def _simplify_again(node: Apply) -> Expr:
    return _arithmetic(node) or node


def _shifted(node: Apply, inner: Expr, by: int | float) -> Expr | None:
    if by == 0:
        return inner
    if not INT_LOW < by < INT_HIGH:
        return None
    op = "add" if by > 0 else "sub"
    return Apply(op=op, args=(inner, Const(value=abs(by))), dtype="int", span=node.span)


def _scaled(node: Apply, op: str, inner: Expr, first: int | float, second: int | float) -> Expr | None:
    product = first * second
    if not INT_LOW <= product <= INT_HIGH:
        return None
    return Apply(op=op, args=(inner, Const(value=product)), dtype="int", span=node.span)
