"""From an expanded bias or sink to the gradients of the tables it loads.

The gradient of a table element is a sum over all pairs that read it.  Each kind of index has its own way to be summed
in a fixed order; an index that has none is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Literal

from spdsl.analysis.plans import TableGradient
from spdsl.diagnostics import error
from spdsl.semantics import build
from spdsl.semantics.differentiate import derivative
from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load
from spdsl.semantics.rewrite import free_indices, transform, walk

By = Literal["none", "query", "key", "distance", "pair"]


def table_gradients(
    clauses: Iterable[tuple[Literal["bias", "sink_logit"], Expr | None]], wanted: frozenset[str]
) -> tuple[TableGradient, ...]:
    """One entry for each distinct load of a wanted table in the clauses.

    Raises:
        SpatError: a table in ``wanted`` is read at an index whose gradient cannot be summed in a fixed order, or by a
            clause that is not differentiable in it.
    """
    found: list[TableGradient] = []
    for of, clause in clauses:
        if clause is None:
            continue
        found += [
            TableGradient(
                table=load.table,
                of=of,
                factor=derivative(clause, load),
                indices=load.indices,
                by=_position(load),
            )
            for load in _loads(clause, wanted)
        ]
    return tuple(found)


def _loads(clause: Expr, wanted: frozenset[str]) -> list[Load]:
    loads: dict[Load, None] = {}
    for node in walk(clause):
        if isinstance(node, Load) and node.table in wanted:
            loads.setdefault(node)
    return list(loads)


def _position(load: Load) -> By:
    indices = frozenset[str]().union(*(free_indices(index) for index in load.indices)) & {"q", "k"}
    if not indices:
        return "none"
    if indices == {"q"}:
        return "query"
    if indices == {"k"}:
        return "key"
    if all(_of_distance(index) for index in load.indices):
        return "distance"
    if _is_pair(load):
        return "pair"
    raise error(
        "SP402",
        f"`{load.table}` is read at an index that mixes q and k, and its gradient cannot be summed in a fixed order",
        load.span,
        help="index it by b, h, g, q, k, q - k or blocks of these, or pass it without requires_grad",
    )


def _of_distance(index: Expr) -> bool:
    """Whether an index expression depends on q and k only through ``q - k`` (or ``k - q``)."""
    return not free_indices(distance_form(index)) & {"q", "k"}


def distance_form(index: Expr) -> Expr:
    """``index`` with every sum in which q and k stand as a multiple of ``q - k`` written by ``Index("distance")``."""

    def rewrite(node: Expr) -> Expr | None:
        if not isinstance(node, Apply) or node.op not in ("add", "sub", "neg") or node.dtype != "int":
            return None
        terms = _terms(node)
        times = terms.pop(Index(name="q"), 0)
        if not times or terms.pop(Index(name="k"), 0) != -times:
            return None
        distance = build.mul(times, Index(name="distance"))
        return reduce(lambda total, term: build.add(total, build.mul(term[1], term[0])), terms.items(), distance)

    return transform(index, rewrite)


def _terms(node: Expr) -> dict[Expr, int]:
    """What an expression adds and subtracts, and how often."""
    match node:
        case Apply(op="add" | "sub" as op, args=(a, b), dtype="int"):
            total, sign = _terms(a), 1 if op == "add" else -1
            for term, times in _terms(b).items():
                total[term] = total.get(term, 0) + sign * times
            return total
        case Apply(op="neg", args=(a,), dtype="int"):
            return {term: -times for term, times in _terms(a).items()}
        case _:
            return {node: 1}


def _is_pair(load: Load) -> bool:
    """Whether distinct pairs read distinct elements, apart from batch and heads: ``[…, q, k]``."""
    names = [index.name for index in load.indices if isinstance(index, Index)]
    plain = all(isinstance(index, Index | Const) for index in load.indices)
    return plain and names.count("q") == 1 and names.count("k") == 1
