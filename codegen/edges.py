"""One comparison for each edge of a set: clauses about pairs become those of walked positions with bounds of a row.

From a predicate to an equal one, in which sums of both sides are parted: ``q - k < w`` becomes ``k > q - w``, and
all upper bounds of one term become their least.  So a tile computes rows and columns once, and compares.  Clauses that
read tables are left as they are: their values may be as large as ints are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from spdsl.codegen.arith import add, both, compare, maximum, minimum, number, sub
from spdsl.semantics.nodes import Apply, Const, Expr, Load, Side
from spdsl.semantics.rewrite import free_indices, walk

_FLIPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def with_edges(keep: Expr, walked: Side) -> Expr:
    """``keep`` with its clauses about pairs as bounds of terms of the ``walked`` side."""
    match keep:
        case Apply(op="and"):
            return _conjunction(tuple(_clauses(keep, walked)), walked)
        case Apply(op="or" | "not", args=args):
            return replace(keep, args=tuple(with_edges(arg, walked) for arg in args))
        case Apply():
            return _conjunction((keep,), walked)
        case _:
            return keep


@dataclass(slots=True)
class _Bounds:
    """What bounds one term: it is at least ``least``, and below ``end``."""

    least: Expr | None = None
    end: Expr | None = None


def _clauses(keep: Expr, walked: Side) -> Iterator[Expr]:
    match keep:
        case Apply(op="and", args=args):
            for arg in args:
                yield from _clauses(arg, walked)
        case Apply(op="or" | "not"):
            yield with_edges(keep, walked)
        case _:
            yield keep


def _conjunction(clauses: tuple[Expr, ...], walked: Side) -> Expr:
    found: dict[Expr, _Bounds] = {}
    rest: Expr | None = None
    for clause in clauses:
        edges = _edges(clause, walked)
        if edges is None:
            rest = both(rest, clause)
            continue
        for term, op, bound in edges:
            known = found.setdefault(term, _Bounds())
            if op == "ge":
                known.least = bound if known.least is None else maximum(known.least, bound)
            else:
                known.end = bound if known.end is None else minimum(known.end, bound)
    total: Expr | None = None
    for term, bounds in found.items():
        total = both(total, None if bounds.least is None else compare("ge", term, bounds.least))
        total = both(total, None if bounds.end is None else compare("lt", term, bounds.end))
    total = both(total, rest)
    return Const(value=True) if total is None else total


def _edges(clause: Expr, walked: Side) -> list[tuple[Expr, str, Expr]] | None:
    """The clause as comparisons of terms of walked positions with bounds; None where it is not of this kind."""
    match clause:
        case Apply(op=str(op), args=(left, right)) if op in _FLIPPED:
            if any(isinstance(node, Load) for node in walk(clause)):
                return None
            if isinstance(right, Apply) and right.op == "abs":
                op, left, right = _FLIPPED[op], right, left
            if isinstance(left, Apply) and left.op == "abs" and op in ("lt", "le"):
                (inside,) = left.args
                below, above = _parted(inside, op, right, walked), _parted(inside, _FLIPPED[op], _minus(right), walked)
                return None if below is None or above is None else [below, above]
            edge = _parted(left, op, right, walked)
            return None if edge is None else [edge]
        case _:
            return None


def _minus(expr: Expr) -> Expr:
    return sub(number(0), expr)


def _parted(left: Expr, op: str, right: Expr, walked: Side) -> tuple[Expr, str, Expr] | None:
    """``left op right`` as (term, ``ge`` or ``lt``, bound); None unless it is of sums of terms of one side each."""
    terms: list[tuple[int, Expr]] = [*_terms(left, 1), *_terms(right, -1)]
    mine = [(sign, term) for sign, term in terms if _is_walked(term, walked)]
    others = [(sign, term) for sign, term in terms if not _is_walked(term, walked)]
    if not mine or any(_is_mixed(term, walked) for _, term in mine):
        return None
    turned = mine[0][0] < 0
    term = _sum([(-sign if turned else sign, term) for sign, term in mine])
    op = _FLIPPED[op] if turned else op
    more: list[tuple[int, Expr]] = [(1, number(1))] if op in ("gt", "le") else []
    bound = _sum([*((sign if turned else -sign, term) for sign, term in others), *more])
    return term, "ge" if op in ("gt", "ge") else "lt", bound


def _terms(expr: Expr, sign: int) -> Iterator[tuple[int, Expr]]:
    match expr:
        case Apply(op="add", dtype="int", args=(left, right)):
            yield from _terms(left, sign)
            yield from _terms(right, sign)
        case Apply(op="sub", dtype="int", args=(left, right)):
            yield from _terms(left, sign)
            yield from _terms(right, -sign)
        case Apply(op="neg", dtype="int", args=(inner,)):
            yield from _terms(inner, -sign)
        case _:
            yield sign, expr


def _sum(terms: list[tuple[int, Expr]]) -> Expr:
    total: Expr = number(0)
    constant = 0
    for sign, term in sorted(terms, key=lambda each: -each[0]):
        match term:
            case Const(value=int() as value):
                constant += sign * value
            case _:
                total = add(total, term) if sign > 0 else sub(total, term)
    return add(total, number(constant)) if constant >= 0 else sub(total, number(-constant))


def _is_position(name: str, side: str) -> bool:
    return name[0] == side and (len(name) == 1 or name[1:].isdigit())


def _is_walked(expr: Expr, walked: Side) -> bool:
    tile = "j" if walked == "k" else "i"
    return any(_is_position(name, walked) or _is_position(name, tile) for name in free_indices(expr))


def _is_mixed(expr: Expr, walked: Side) -> bool:
    own = "q" if walked == "k" else "k"
    return any(_is_position(name, own) for name in free_indices(expr))
