"""Inputs of calls that use some of the rows of keys.

From: an input with an element for each row of a cache, or for each of their blocks.  To: the same for the positions in
use.  Lists are as long as they are, and what has as many elements as it needs stays.
"""

from __future__ import annotations

from torch import Tensor

from spdsl.runtime.evaluate import evaluate
from spdsl.semantics.nodes import Extent, Load, Table, TableAxis
from spdsl.semantics.rewrite import walk


def shortened(table: Table, given: Tensor, rows: int, length: int) -> Tensor:
    """An input of a call that uses the first ``length`` positions of ``rows`` rows of keys."""
    behind = given.dim() - len(table.axes)
    if length == rows or behind < 0:
        return given
    for place, axis in enumerate(table.axes[:-1] if table.listed else table.axes, behind):
        whole, part = _elements(axis, rows), _elements(axis, length)
        if part is not None and part != whole == given.shape[place]:
            given = given.narrow(place, 0, part)
    return given


def _elements(axis: TableAxis, n: int) -> int | None:
    """How many elements an axis has for ``n`` positions; None where something else says it."""
    if axis.kind == "token":
        return n
    asked = [node for node in walk(axis.size) if isinstance(node, Extent | Load)]
    if axis.kind != "axis" or any(node != Extent(name="n") for node in asked):
        return None
    return int(evaluate(axis.size, {"n": n}))
