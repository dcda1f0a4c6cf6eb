"""Walking and rebuilding expressions, one place for all passes.

Expressions are trees on paper and graphs in memory: a `let` that is used twice is one node.  Everything here remembers
what it has done by identity, so that shared nodes cost once and stay shared, and works without recursion, so that long
chains do not exhaust the stack.

`Reduce` and `Top` are stages: they bind the positions of their side.  `substitute` leaves the bound indices alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, Index, Load, Noise, Param, Reduce, Side, Top

Rewrite = Callable[[Expr], "Expr | None"]


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct parts of an expression, in the order that `rebuild` takes them."""
    match expr:
        case Apply():
            return expr.args
        case Load():
            return expr.indices
        case Reduce():
            return (expr.body,)
        case Noise():
            return (expr.seed, *expr.per)
        case Top():
            return (expr.value, expr.only, expr.count)
        case _:
            return ()


def rebuild(expr: Expr, parts: tuple[Expr, ...]) -> Expr:
    """The expression with other parts; the same object if the parts are the same objects."""
    if all(new is old for new, old in zip(parts, children(expr), strict=True)):
        return expr
    match expr:
        case Apply():
            return replace(expr, args=parts)
        case Load():
            return replace(expr, indices=parts)
        case Reduce():
            return replace(expr, body=parts[0])
        case Noise():
            return replace(expr, seed=parts[0], per=parts[1:])
        case Top():
            return replace(expr, value=parts[0], only=parts[1], count=parts[2])
        case _:
            return expr


def walk(expr: Expr, *, into_stages: bool = True) -> Iterator[Expr]:
    """Every node once, parts before wholes; without ``into_stages`` the inside of `Reduce` and `Top` is left out."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if into_stages or not isinstance(node, (Reduce, Top)):
                stack.extend((part, False) for part in reversed(children(node)))


def transform(expr: Expr, rewrite: Rewrite, *, into_stages: bool = True) -> Expr:
    """Rewrite bottom-up: ``rewrite`` sees a node whose parts are done, and returns a new node, or None to keep it.

    Without ``into_stages`` a `Reduce` or `Top` is shown to ``rewrite`` as it stands, its inside untouched.
    """
    done: dict[int, Expr] = {}
    for node in walk(expr, into_stages=into_stages):
        opaque = not into_stages and isinstance(node, (Reduce, Top))
        whole = node if opaque else rebuild(node, tuple(done[id(part)] for part in children(node)))
        new = rewrite(whole)
        done[id(node)] = whole if new is None else new
    return done[id(expr)]


def substitute(expr: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    """Replace leaves (`Index`, `Extent`, `Param`, `Coord`) and argument-free loads by expressions.

    Inside a `Reduce` the positions and coordinates of its side are bound, inside a `Top` those of both sides are the
    candidates themselves: mappings of them do not reach in.
    """
    if not mapping:
        return expr

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Index() | Extent() | Param() | Coord() | Load(indices=()):
                return mapping.get(node)
            case Reduce():
                inner = {key: to for key, to in mapping.items() if not _of_side(key, node.side)}
                return rebuild(node, (substitute(node.body, inner),))
            case Top():
                inner = {key: to for key, to in mapping.items() if not (_of_side(key, "q") or _of_side(key, "k"))}
                return rebuild(node, tuple(substitute(part, inner) for part in children(node)))
            case _:
                return None

    return transform(expr, rewrite, into_stages=False)


def _of_side(node: Expr, side: str) -> bool:
    return node == Index(name=side) or (isinstance(node, Coord) and node.side == side)


def conjuncts(expr: Expr) -> list[Expr]:
    """The clauses that must all hold for a bool expression to hold, in order."""
    match expr:
        case Apply(op="and", args=args):
            return [clause for arg in args for clause in conjuncts(arg)]
        case _:
            return [expr]


def disjuncts(expr: Expr) -> list[Expr]:
    """The clauses of which one must hold for a bool expression to hold, in order."""
    match expr:
        case Apply(op="or", args=args):
            return [clause for arg in args for clause in disjuncts(arg)]
        case _:
            return [expr]


def on_side(expr: Expr, side: Side) -> Expr:
    """An expression of key positions, written for a side."""

    def rewrite(node: Expr) -> Expr | None:
        match node:
            case Index(name="k"):
                return Index(name=side)
            case Coord():
                return Coord(side=side, axis=node.axis)
            case _:
                return None

    return transform(expr, rewrite)


def free_indices(expr: Expr) -> frozenset[str]:
    """The indices on which the value depends, of ``q k h g b i j``; a coordinate of a side counts as that side."""
    return frozenset(name.partition(".")[0] for name in free_axes(expr))


def free_axes(expr: Expr) -> frozenset[str]:
    """As `free_indices`, but coordinates keep their names: ``q.blk``.

    A reduction over a side removes that side's axes; with ``per`` it puts the coordinate in their place.
    """
    found: dict[int, frozenset[str]] = {}
    for node in walk(expr):
        inner: frozenset[str] = frozenset().union(*(found[id(part)] for part in children(node)))
        match node:
            case Index():
                inner = frozenset((node.name,))
            case Coord():
                inner = frozenset((f"{node.side}.{node.axis}",))
            case Reduce():
                inner = frozenset(name for name in inner if name.partition(".")[0] != node.side)
                if node.axis is not None:
                    inner |= {f"{node.side}.{node.axis}"}
            case Top():
                inner |= {node.side if node.axis is None else f"{node.side}.{node.axis}"}
            case _:
                pass
        found[id(node)] = inner
    return found[id(expr)]


def mentions(expr: Expr, leaf: Expr) -> bool:
    """Whether a leaf such as ``Extent(name="layer")`` occurs anywhere, stages included."""
    return any(not children(node) and node == leaf for node in walk(expr))


def constant(value: bool | int | float) -> Const:
    """A literal without a place."""
    return Const(value=value)
