"""Write a predicate with the distance ``d = q - k`` where it can be.

From: an expanded expression.  To: one of the same value in which ``Index("d")`` replaces linear terms in which ``q``
and ``k`` have opposite factors.  Bounds of such a term are then exact, and so are those of functions of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from spdsl.runtime.evaluate import depends_on
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load, Noise

_LINEAR = frozenset({"add", "sub", "neg", "mul"})
_COMPARE = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
_DISTANCE = Index(name="d")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linear:
    """``q * Index("q") + k * Index("k") + rest``; ``rest`` has neither."""

    q: int
    k: int
    rest: Expr


def with_distances(expr: Expr) -> Expr:
    """The expression in terms of ``q``, ``k`` and ``d = q - k``."""
    return _Rewriter(memo={}).rewrite(expr)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewriter:
    memo: dict[int, tuple[Expr, Expr]]

    def rewrite(self, expr: Expr) -> Expr:
        if id(expr) not in self.memo:
            # The key node is kept with its result, so that its identity stays its own.
            self.memo[id(expr)] = (expr, self._new(expr))
        return self.memo[id(expr)][1]

    def _new(self, expr: Expr) -> Expr:
        match expr:
            case Apply(op=op) if op in _LINEAR and expr.dtype == "int":
                return self._distance(linear(expr)) or self._parts(expr)
            case Apply(op=op, args=(left, right)) if op in _COMPARE and left.dtype == right.dtype == "int":
                difference = Apply(op="sub", args=(left, right), dtype="int")
                found = self._distance(linear(difference))
                return replace(expr, args=(found, Const(value=0))) if found else self._parts(expr)
            case Apply():
                return self._parts(expr)
            case Load(indices=indices):
                return replace(expr, indices=tuple(map(self.rewrite, indices)))
            case Noise(per=per):
                return replace(expr, per=tuple(map(self.rewrite, per)))
            case _:
                return expr

    def _parts(self, expr: Apply) -> Apply:
        return replace(expr, args=tuple(map(self.rewrite, expr.args)))

    def _distance(self, found: _Linear | None) -> Expr | None:
        if found is None or found.q == 0 or found.q != -found.k:
            return None
        scaled = _times(_DISTANCE, found.q)
        if found.rest == Const(value=0):
            return scaled
        return Apply(op="add", args=(scaled, found.rest), dtype="int")


def linear(expr: Expr) -> _Linear | None:
    """The linear form of an int expression; None if it is not linear in ``q`` and ``k``."""
    match expr:
        case Index(name="q"):
            return _Linear(q=1, k=0, rest=Const(value=0))
        case Index(name="k"):
            return _Linear(q=0, k=1, rest=Const(value=0))
        case Apply(op="neg", args=(x,)):
            return _scaled(linear(x), -1)
        case Apply(op="sub", args=(x, y)):
            return _sum(linear(x), _scaled(linear(y), -1))
        case Apply(op="add", args=(x, y)):
            return _sum(linear(x), linear(y))
        case Apply(op="mul", args=(Const(value=int(factor)), x)) | Apply(op="mul", args=(x, Const(value=int(factor)))):
            return _scaled(linear(x), factor)
        case _:
            return None if _varies(expr) else _Linear(q=0, k=0, rest=expr)


def _varies(expr: Expr) -> bool:
    return not depends_on(expr).isdisjoint({"q", "k"})


def _scaled(form: _Linear | None, factor: int) -> _Linear | None:
    if form is None:
        return None
    return _Linear(q=form.q * factor, k=form.k * factor, rest=_times(form.rest, factor))


def _sum(a: _Linear | None, b: _Linear | None) -> _Linear | None:
    if a is None or b is None:
        return None
    return _Linear(q=a.q + b.q, k=a.k + b.k, rest=_plus(a.rest, b.rest))


def _times(rest: Expr, factor: int) -> Expr:
    if isinstance(rest, Const):
        return Const(value=int(rest.value) * factor)
    return rest if factor == 1 else Apply(op="mul", args=(rest, Const(value=factor)), dtype="int")


def _plus(a: Expr, b: Expr) -> Expr:
    match a, b:
        case Const(value=x), Const(value=y):
            return Const(value=int(x) + int(y))
        case Const(value=0), _:
            return b
        case _, Const(value=0):
            return a
        case _:
            return Apply(op="add", args=(a, b), dtype="int")
