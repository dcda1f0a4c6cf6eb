"""Bool expression → affine skeleton and atoms: what isl cannot express becomes a truth value of its own.

Every clause that is not affine (a table read at each position, a power of two, a random choice) is replaced by a bool
parameter, the same one wherever the clause stands.  Of each such `Atom` two affine sets are known: where it certainly
holds, and where it may hold.  Questions about single pairs stay exact under this: a pair meets one value of each atom.
Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from spdsl.analysis.affine import NotAffineError, abstract
from spdsl.analysis.wording import describe
from spdsl.semantics import build
from spdsl.semantics.nodes import Apply, Const, Expr, Load, Reduce, Table, Top
from spdsl.semantics.rewrite import transform, walk
from spdsl.semantics.show import print_expr

POWERS = 10
"""Powers of two that `is_pow2` is certain of: enough for small lengths; larger ones only may hold."""

_CHOICES = 4  # conditions lifted out of one comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """A clause that is not affine: ``certain`` implies it, and it implies ``possible``; both are affine."""

    name: str
    clause: Expr
    certain: Expr
    possible: Expr
    why: str

    @property
    def symbol(self) -> Expr:
        """The bool parameter that stands for the clause."""
        return Load(table=self.name, dtype="bool")


def split(
    exprs: Sequence[Expr], tables: Sequence[Table], expand: Callable[[Expr], Expr]
) -> tuple[tuple[Expr, ...], tuple[Atom, ...]]:
    """Skeletons of expanded bool expressions, and the atoms they share; ``expand`` opens the inside of selections."""
    work = _Splitter(tables={table.name: table for table in tables}, expand=expand)
    return tuple(work.logic(expr) for expr in exprs), tuple(work.atoms.values())


def is_affine(expr: Expr) -> NotAffineError | None:
    """Why an expression is not affine in positions and in what is fixed for a call; None if it is."""
    try:
        abstract([expr], shape="offset", heads=1, groups=1)
    except NotAffineError as problem:
        return problem
    return None


class _Splitter:
    """The walk behind `split`; collects atoms by their clause."""

    def __init__(self, *, tables: dict[str, Table], expand: Callable[[Expr], Expr]) -> None:
        self.tables = tables
        self.expand = expand
        self.atoms: dict[Expr, Atom] = {}

    def logic(self, expr: Expr) -> Expr:
        """The skeleton of a bool expression."""
        match expr:
            case Apply(op="and" | "or" | "not", args=args):
                return replace(expr, args=tuple(self.logic(a) for a in args))
            case Apply(op="where" | "eq" | "ne", args=args) if args[-1].dtype == "bool":
                return replace(expr, args=tuple(self.logic(a) for a in args))
            case _:
                return self._leaf(expr, _CHOICES)

    def _leaf(self, expr: Expr, choices: int) -> Expr:
        problem = is_affine(expr)
        if problem is None:
            return expr
        match expr:
            case Apply(op="ne", args=(a, b)):
                return _not(self._leaf(replace(expr, op="eq", args=(a, b)), choices))
            case Apply(op="gt", args=(a, b)):
                return self._leaf(replace(expr, op="lt", args=(b, a)), choices)
            case Apply(op="ge"):
                return _not(self._leaf(replace(expr, op="lt"), choices))
            case Apply(op="le", args=(a, b)):
                return _not(self._leaf(replace(expr, op="lt", args=(b, a)), choices))
        choice = _choice(expr) if choices else None
        if choice is not None:
            yes, no = (self._leaf(_chosen(expr, choice, side), choices - 1) for side in (1, 2))
            return replace(choice, args=(self.logic(choice.args[0]), yes, no), dtype="bool")
        return self._atom(expr, problem)

    def _atom(self, clause: Expr, problem: NotAffineError) -> Expr:
        if isinstance(clause, Apply) and clause.op == "eq":
            clause = replace(clause, args=tuple(sorted(clause.args, key=print_expr)))
        known = self.atoms.get(clause)
        if known is None:
            certain, possible = (
                bound if is_affine(bound) is None else Const(value=side)
                for side, bound in zip((False, True), self._bounds(clause), strict=True)
            )
            name = f"?{len(self.atoms)}"
            known = Atom(name=name, clause=clause, certain=certain, possible=possible, why=_why(problem))
            self.atoms[clause] = known
        return known.symbol

    def _bounds(self, clause: Expr) -> tuple[Expr, Expr]:
        """Where a clause certainly holds, and where it may."""
        match clause:
            case Apply(op="is_pow2", args=(x,)):
                small = build.disj(*(build.apply("eq", x, 2**i) for i in range(POWERS)))
                fours = build.conj(build.apply("ge", x, 4), build.apply("eq", build.mod(x, 4), 0))
                return small, build.disj(build.apply("eq", x, 1), build.apply("eq", x, 2), fours)
            case Apply(op="lt" | "eq" as op, args=(Load() as a, Load() as b)) if _same_row(a, b):
                return self._of_one_table(op, a, b)
            case Apply(op="lt", args=(a, b)) if a.dtype == b.dtype == "int":
                return self._below(a, b, certain=True), self._below(a, b, certain=False)
            case Apply(op="eq", args=(a, b)) if a.dtype == b.dtype == "int":
                # equal values are neither certainly below nor certainly above each other
                apart = build.disj(self._below(a, b, certain=True), self._below(b, a, certain=True))
                return build.FALSE, _not(apart)
            case Top(only=only):
                return build.FALSE, self.expand(only)
            case _:
                return build.FALSE, build.TRUE

    def _of_one_table(self, op: str, a: Load, b: Load) -> tuple[Expr, Expr]:
        """Two elements of a row of a table: equal at equal places, and in order if the table is sorted."""
        table = self.tables.get(a.table)
        is_sorted = table is not None and table.sorted
        here, there = a.indices[-1], b.indices[-1]
        if op == "eq":
            return build.apply("eq", here, there), build.TRUE
        return build.FALSE, build.apply("lt" if is_sorted else "ne", here, there)

    def _below(self, a: Expr, b: Expr, *, certain: bool) -> Expr:
        """Whether ``a < b`` for all values, or for some, that the ranges of tables allow."""
        left, right = self._extreme(a, certain), self._extreme(b, not certain)
        return Const(value=not certain) if left is None or right is None else build.apply("lt", left, right)

    def _extreme(self, expr: Expr, up: bool) -> Expr | None:
        """An affine bound of an int expression from above or below, by the declared ranges; None if there is none."""
        if is_affine(expr) is None:
            return expr
        match expr:
            case Load(table=name):
                table = self.tables.get(name)
                bounds = None if table is None else table.bounds
                end = None if bounds is None else bounds.high if up else bounds.low
                return Const(value=end) if isinstance(end, int) else None
            case Apply(op="add" | "min" | "max", args=(a, b)):
                return _rebuilt(expr, self._extreme(a, up), self._extreme(b, up))
            case Apply(op="sub", args=(a, b)):
                return _rebuilt(expr, self._extreme(a, up), self._extreme(b, not up))
            case Apply(op="neg", args=(a,)):
                return _rebuilt(expr, self._extreme(a, not up))
            case Apply(op="floordiv", args=(a, Const(value=by) as divisor)) if by > 0:
                return _rebuilt(expr, self._extreme(a, up), divisor)
            case (
                Apply(op="mul", args=(a, Const(value=by) as scale))
                | Apply(op="mul", args=(Const(value=by) as scale, a))
            ):
                return _rebuilt(expr, self._extreme(a, up == (by >= 0)), scale)
            case _:
                return None


def _why(problem: NotAffineError) -> str:
    culprit = problem.culprit
    shown = f"{culprit.kind}(…)" if isinstance(culprit, Reduce) else describe(culprit, 40)
    return f"`{shown}`, which {problem.why}"


def _not(expr: Expr) -> Expr:
    return build.apply("not", expr)


def _rebuilt(expr: Apply, *args: Expr | None) -> Expr | None:
    found = [arg for arg in args if arg is not None]
    return replace(expr, args=tuple(found)) if len(found) == len(args) else None


def _same_row(a: Load, b: Load) -> bool:
    return a.table == b.table and bool(a.indices) and a.indices[:-1] == b.indices[:-1]


def _choice(expr: Expr) -> Apply | None:
    """An `if` among numbers inside a comparison."""
    for node in walk(expr, into_stages=False):
        if isinstance(node, Apply) and node.op == "where" and node is not expr:
            return node
    return None


def _chosen(expr: Expr, choice: Apply, side: int) -> Expr:
    return transform(expr, lambda node: choice.args[side] if node == choice else None, into_stages=False)
