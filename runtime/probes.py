"""The rows of queries that a condition may hold for: what a probe such as `q >= n - 64` leaves.

From: a condition on pairs, or a stage and those that read it, and the sizes of a call.  To: a range of rows.  Nothing
is asked of the device.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache, partial

from spdsl.runtime.evaluate import value_of
from spdsl.semantics.graph import Pool, Select, Softmax, Stage, StageGraph, loads, parts
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index
from spdsl.semantics.rewrite import conjuncts, walk

ORDERS = ("lt", "le", "gt", "ge")


@lru_cache(maxsize=256)
def probed_rows(condition: Expr, nq: int, n: int, q_start: int) -> range:
    """The rows outside of which some clause of ``condition`` on queries alone does not hold; all rows where there is no
    such clause, or none that is understood."""
    first, end = 0, nq
    for clause in conjuncts(condition):
        if not nq or not _is_one_sided(clause):
            continue

        begins = _holds(clause, 0, nq, n, q_start)
        # From the first row to the last it changes at most once.
        changed = partial(_changed, begins, clause, nq=nq, n=n, q_start=q_start)
        change = bisect_left(range(nq), True, key=changed)
        if begins:
            end = min(end, change)
        else:
            first = max(first, change)
    return range(first, max(first, end))


def rows_looked_at(graph: StageGraph, stage: Stage, nq: int, n: int, q_start: int) -> range:
    """The rows of a stage over queries outside of which those that read it look at nothing."""
    if any(stage.name in loads(value) for value in (graph.result, *(each.value for each in graph.exports))):
        return range(nq)
    read = list[range]()
    for reader in graph.stages:
        if not any(stage.name in loads(part) for part in parts(reader)):
            continue
        match reader:
            case Pool(only=only) | Softmax(only=only) | Select(only=only):
                rows = probed_rows(only, nq, n, q_start)
                if "q" in reader.axes:
                    asked = rows_looked_at(graph, reader, nq, n, q_start)
                    rows = range(max(rows.start, asked.start), min(rows.stop, asked.stop))
                read += [rows] if len(rows) else []
            case _:
                return range(nq)
    return range(min((rows.start for rows in read), default=0), max((rows.stop for rows in read), default=0))


def _holds(clause: Expr, row: int, nq: int, n: int, q_start: int) -> bool:
    return bool(value_of(clause, {"q": row + q_start, "n": n, "nq": nq, "q_start": q_start}))


def _changed(begins: bool, clause: Expr, row: int, *, nq: int, n: int, q_start: int) -> bool:
    return _holds(clause, row, nq, n, q_start) != begins


def _is_one_sided(clause: Expr) -> bool:
    """Whether a clause compares a position of a query, and extents, added and subtracted, with others."""
    match clause:
        case Apply(op=op, args=(left, right)) if op in ORDERS:
            return all(_is_linear(node) for side in (left, right) for node in walk(side))
        case _:
            return False


def _is_linear(node: Expr) -> bool:
    match node:
        case Index(name="q") | Extent(name="n" | "nq" | "q_start") | Const(value=int()):
            return True
        case Apply(op="add" | "sub"):
            return True
        case _:
            return False
