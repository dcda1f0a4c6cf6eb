"""Selections of blocks of keys that queries make one by one: how they are found in a set.

From a predicate to the list that it looks up for a pair, and what is left to test of pairs that are listed.  Nothing is
planned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from spdsl.semantics.nodes import Apply, Const, Expr, Index, Load, Side, Table
from spdsl.semantics.rewrite import conjuncts, walk

FINEST = 16
"""Keys of the smallest blocks that are walked tile by tile: those of a matrix instruction.  Of smaller ones, several
are gathered into a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """Runs of ``rows`` queries look up blocks of ``block`` keys in the lists of ``table``; ``keep`` is the rest.

    Where runs are of uneven length, the sorted table ``runs`` says which each query belongs to, and ``rows`` is 0.
    ``by_head``: each query head has lists of its own, else the heads of a group share them.  No list is longer than
    ``most``, if that is known.
    """

    table: str
    rows: int
    block: int
    by_head: bool
    most: int | None
    keep: Expr
    runs: str = ""

    @property
    def fine(self) -> bool:
        """Whether a tile holds several blocks."""
        return self.block < FINEST


def picked(keep: Expr, tables: Sequence[Table]) -> Picked | None:
    """The selection that every pair of ``keep`` belongs to; None where there is none, or several."""
    listed = {table.name: table for table in tables if table.listed}
    clauses = conjuncts(keep)
    read = [node for node in walk(keep) if isinstance(node, Load) and node.table in listed]
    if len(read) != 1 or read[0] not in clauses:
        return None
    (load,) = read
    *heads, query, key = load.indices
    runs = _table_of_runs(query, tables)
    rows, block = 0 if runs else _run(query, "q"), _run(key, "k")
    # Runs of queries are counted from position 0 on, single queries from the first of the call.
    if rows is None or (rows == 1) != (listed[load.table].axes[len(heads)].kind == "q"):
        return None
    if (
        block is None
        or (block % FINEST and FINEST % block)
        or not all(head in _HEADS for head in heads)
        or len(heads) > 1
    ):
        return None
    rest = [clause for clause in clauses if clause != load]
    by_head = Index(name="h") in heads
    most = listed[load.table].most
    rest_of = conjunction(rest)
    return Picked(table=load.table, rows=rows, block=block, by_head=by_head, most=most, keep=rest_of, runs=runs)


_HEADS = (Index(name="h"), Index(name="g"))


def _table_of_runs(index: Expr, tables: Sequence[Table]) -> str:
    """The sorted table of tokens that says which run a query belongs to; empty where it is none."""
    match index:
        case Load(table=name, indices=(Index(name="q"),)):
            (table,) = (each for each in tables if each.name == name)
            return name if table.sorted and [axis.kind for axis in table.axes] == ["token"] else ""
        case _:
            return ""


def _run(index: Expr, side: Side) -> int | None:
    """How many neighbours of a side have the same index; None where it is no number of a block."""
    match index:
        case Index(name=name) if name == side:
            return 1
        case Apply(op="floordiv", args=(Index(name=name), Const(value=int() as size))) if name == side and size > 0:
            return size
        case _:
            return None


def conjunction(clauses: Sequence[Expr]) -> Expr:
    """All of these at once; true where there are none."""
    if not clauses:
        return Const(value=True)
    return reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool", span=b.span), clauses)
