"""Selections of the best keys of the past by numbers that belong to the keys alone: each key has a lifetime.

From: a bound pattern with stages.  To: the same pattern in which a key is kept from its own query on until one number
more.  A key that has left the best of a prefix never comes back, as prefixes only grow.  So a set of pairs with a list
for each query becomes one number for each key, and a list of those that live for each run of queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from spdsl.semantics import build
from spdsl.semantics.graph import Select, StageGraph
from spdsl.semantics.nodes import Apply, Axis, BoundPattern, Const, Coord, Expr, Extent, Index, Load, Table, TableAxis
from spdsl.semantics.regraph import mapped, needed
from spdsl.semantics.rewrite import free_axes, transform, walk

RUN = 64
"""Queries that share a list of the keys that live."""

_Q, _K = Index(name="q"), Index(name="k")
_PAST = (Apply(op="le", args=(_K, _Q), dtype="bool"), Apply(op="ge", args=(_Q, _K), dtype="bool"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """A pattern that reads two tables more: ``until``, the first query after the last one that keeps a key, and
    ``alive``, the keys that any query of a run keeps, as lists.

    ``value`` over ``heads`` and ``k`` is what keys are ranked by, and the ``most`` best of every prefix are kept.
    """

    pattern: BoundPattern
    until: str
    alive: str
    value: Expr
    heads: tuple[str, ...]
    most: int


def lifetimes(pattern: BoundPattern) -> Lifetimes | None:
    """The pattern by the lifetimes of keys, if its only stage beside softmaxes is such a selection."""
    graph = pattern.graph
    if graph is None:
        return None
    made = [stage for stage in graph.stages if stage not in graph.attentions]
    match made:
        case [Select(only=only, by="count", over="k", also=(), least=None, rank=None) as select] if only in _PAST:
            pass
        case _:
            return None
    *heads, rows, columns = select.axes
    amount = select.amount
    plain = (rows, columns) == ("q", "k") and select.forced == Const(value=False)
    if not plain or not isinstance(amount, Const) or int(amount.value) < 1 or not _is_of_keys(select, pattern):
        return None
    until, alive, run, one = (f"{select.name}_{each}" for each in ("until", "alive", "run", "one"))
    tables = _tables(pattern, tuple(heads), until, alive, (run, one), int(amount.value) + RUN)
    axes = tuple(_blocks(name, size) for name, size in ((run, RUN), (one, 1)))
    found = replace(pattern, tables=(*pattern.tables, *tables), axes=(*pattern.axes, *axes))
    own = tuple(Index(name=each) for each in heads)
    lives = Load(table=alive, dtype="bool", indices=(*own, Coord(side="q", axis=run), Coord(side="k", axis=one)))
    still = Apply(op="lt", args=(_Q, Load(table=until, dtype="int", indices=(*own, _K))), dtype="bool")
    kept = build.conj(_PAST[0], lives, still)
    return Lifetimes(
        pattern=replace(found, graph=_with(graph, select, kept)),
        until=until,
        alive=alive,
        value=select.value,
        heads=tuple(heads),
        most=int(amount.value),
    )


def _is_of_keys(select: Select, pattern: BoundPattern) -> bool:
    """Whether what is ranked belongs to keys, and is made of inputs alone."""
    given = {table.name for table in pattern.tables if not table.listed}
    read = {node.table for node in walk(select.value) if isinstance(node, Load)}
    return read <= given and free_axes(select.value) <= {*select.axes} - {"q"}


def _with(graph: StageGraph, select: Select, kept: Expr) -> StageGraph:
    """The graph that asks ``kept`` where it read the selection."""

    def rewrite(node: Expr) -> Expr | None:
        return kept if isinstance(node, Load) and node.table == select.name else None

    return needed(mapped(graph, lambda expr: transform(expr, rewrite)))


def _tables(
    pattern: BoundPattern, heads: tuple[str, ...], until: str, alive: str, axes: tuple[str, str], most: int
) -> tuple[Table, Table]:
    sizes = {"h": pattern.heads, "g": pattern.groups}
    shared = tuple(
        TableAxis(kind="h" if each == "h" else "g", size=Const(value=sizes[each]), label=each) for each in heads
    )
    token = TableAxis(kind="token", size=Extent(name="n"), label="token")
    run = TableAxis(kind="axis", size=build.ceildiv(Extent(name="n"), RUN), label=f"q.{axes[0]}")
    one = TableAxis(kind="axis", size=Extent(name="n"), label=f"k.{axes[1]}")
    return (
        Table(name=until, dtype="int", axes=(*shared, token), bounds=None, sorted=False),
        Table(
            name=alive,
            dtype="bool",
            axes=(*shared, run, one),
            bounds=None,
            sorted=False,
            listed=True,
            most=most,
            implied=True,
        ),
    )


def _blocks(name: str, size: int) -> Axis:
    extents = (Extent(name="n"),)
    return Axis(name=name, of=(_K,), size=(Const(value=size),), step=None, table=None, into=None, extents=extents)
