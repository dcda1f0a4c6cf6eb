"""Whether vectors of queries and keys, and vectors of values, meet where a call gives them different sizes.

From a bound pattern with a graph, and the two sizes, to nothing, or an error.  Both lie along the axis ``d``, and
arithmetic between them needs vectors of one size.
"""

from __future__ import annotations

from collections.abc import Mapping

from spdsl.diagnostics import Span, SpatError, error
from spdsl.semantics.graph import Attention, Merge, Score, Stage, parts
from spdsl.semantics.nodes import BoundPattern, Expr, Load
from spdsl.semantics.rewrite import walk

_D = "d"


def refuse_other_features(pattern: BoundPattern, head_dim: int, value_dim: int) -> None:
    """Refuse what computes with values, and with queries, keys or inputs along ``d``, at once.

    Raises:
        SpatError: SP340, where the two sizes differ.
    """
    if head_dim == value_dim or pattern.graph is None:
        return
    sizes = {"Q": {head_dim}, "K": {head_dim}, "V": {value_dim}}
    sizes |= {table.name: {head_dim} for table in pattern.tables if _D in (axis.label for axis in table.axes)}
    for stage in pattern.graph.stages:
        met = [_sizes(group, sizes) for group in _meeting(stage)]
        if isinstance(stage, Merge):
            met = [set[int]().union(*(sizes[name] for name in stage.parts))]
        if any(len(found) > 1 for found in met):
            raise _met(pattern, stage.span, head_dim, value_dim)
        sizes[stage.name] = met[-1] if _D in stage.axes else set()
    if len(_sizes((pattern.graph.result,), sizes)) > 1:
        raise _met(pattern, pattern.graph.result.span, head_dim, value_dim)


def has_other_features(pattern: BoundPattern) -> bool:
    """Whether vectors of values may have another size than those of queries and keys."""
    try:
        refuse_other_features(pattern, 1, 2)
    except SpatError:
        return False
    return True


def _met(pattern: BoundPattern, span: Span | None, head_dim: int, value_dim: int) -> SpatError:
    return error(
        "SP340",
        f"`v` has vectors of {value_dim} numbers and `q` of {head_dim}, and `{pattern.name}` computes with both",
        span,
        help=f"give values of {head_dim} numbers, or inputs along an axis of their own instead of `d`",
    )


def _meeting(stage: Stage) -> tuple[tuple[Expr, ...], ...]:
    """The expressions of a stage, those together whose vectors meet; last, those that its own vectors are made of."""
    match stage:
        case Score(left=left, right=right):
            return ((left, right),)
        case Attention(query=query, key=key, value=value):
            return ((query, key), (value,))
        case _:
            return tuple((part,) for part in reversed(parts(stage)))


def _sizes(exprs: tuple[Expr, ...], known: Mapping[str, set[int]]) -> set[int]:
    loads = (node for expr in exprs for node in walk(expr) if isinstance(node, Load))
    return set[int]().union(*(known.get(node.table, set()) for node in loads))
